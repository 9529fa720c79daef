"""The autoencoders that are compared, and a fit of one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from experiments.lab.processes import launch
from experiments.lab.trainer import Trainer
from experiments.lab.trainer_settings import Training
from experiments.vae import images
from experiments.vae.autoencoder import (
    Decoder,
    Guide,
    Model,
    SeparateEncoders,
    SharedEncoder,
    Sizes,
    prior_module,
)
from pyro_mixtures.diagnostics import Evaluation, elbo_terms, evaluate_data
from pyro_mixtures.infer import (
    SIWAE_ELBO,
    BaselinedTrace_ELBO,
    ImportanceWeighted_ELBO,
    MarginalizedMixture_ELBO,
)

SMALL = Sizes(latent=50, encoder=(400,), decoder=(200,))
"""Of Jankowiak and Karaletsos, section E.6."""
GATED = Sizes(latent=40, encoder=(300, 300), decoder=(300, 300), gated=True)
"""Of Tomczak and Welling."""
TINY = Sizes(latent=4, encoder=(32,), decoder=(32,), prior_components=10)
"""For a quick run."""

BOUNDS: dict[str, Callable[[], Any]] = {
    "elbo": lambda: BaselinedTrace_ELBO(max_plate_nesting=1),
    "iwae": lambda: ImportanceWeighted_ELBO(5, vectorize_particles=True, max_plate_nesting=1),
    "marginalized": lambda: MarginalizedMixture_ELBO(max_plate_nesting=1),
    "siwae": lambda: SIWAE_ELBO(max_plate_nesting=1),
}
"""Objectives by name; the last two draw each component and need no estimator."""
FEW = 500
"""Test images of which the terms of the ELBO and the components are told."""
DRAWS = {"elbo": 1, "iwae": 5}
"""Evaluations of the decoder for each image of a step; the others have one for each component."""


@dataclass(frozen=True)
class Candidate:
    """An autoencoder and how it is trained.

    Attributes:
        num_components: K of the posterior.
        estimator: of the posterior's gradient, in
            :data:`~experiments.vae.autoencoder.ESTIMATORS`; of no effect where the bound draws
            each component.
        bound: in :data:`BOUNDS`.
        prior: in :data:`~experiments.vae.autoencoder.PRIORS`.
        separate: an encoder for each component.
        beta: weight of the divergence from the prior.
        reading: of the pixels, in :data:`~experiments.vae.images.READINGS`.
        sizes: of the layers.
    """

    num_components: int = 1
    estimator: str = "pathwise"
    bound: str = "elbo"
    prior: str = "standard"
    separate: bool = False
    beta: float = 1.0
    reading: str = "fixed"
    sizes: Sizes = SMALL

    @property
    def decoded(self) -> int:
        """Evaluations of the decoder for each image of a step."""
        return DRAWS.get(self.bound, self.num_components)


def start(candidate: Candidate, data: images.Images, seed: int) -> tuple[Model, Guide, Any]:
    """Model and guide at their starting point, and the objective."""
    pyro.set_rng_seed(seed)
    sizes, pixels = candidate.sizes, data.side**2
    event_size = sizes.latent * (2 if candidate.prior == "hierarchical" else 1)
    kind = SeparateEncoders if candidate.separate else SharedEncoder
    encoder = kind(pixels, sizes, event_size, candidate.num_components)
    one_draw = candidate.bound in DRAWS and candidate.num_components > 1
    guide = Guide(encoder, candidate.estimator if one_draw else None, candidate.beta)
    prior = prior_module(
        candidate.prior, sizes, encoder, candidate.num_components, data.train.images
    )
    model = Model(prior, Decoder(pixels, sizes), candidate.beta)
    return model, guide, BOUNDS[candidate.bound]()


def fit(
    folder: Path,
    candidate: Candidate,
    training: Training,
    num_images: int | None,
    num_samples: int,
    judged: int,
    watched: int,
    device: str,
    resume: bool,
    progress: bool,
) -> dict[str, Any]:
    """Train an autoencoder and judge it by the test images.

    Args:
        folder: of the fit.
        candidate: what to fit.
        training: settings.
        num_images: of each set, at most; None for all.
        num_samples: of each test image, for the bounds.
        judged: how many test images' bounds are told, at most.
        watched: how many validation images' :func:`terms` are told after each epoch.
        device: as for :func:`~experiments.lab.processes.launch`.
        resume: go on from a checkpoint.
        progress: show a bar.

    Returns:
        ``rows`` of the training, ``elbo`` and ``iw_bound`` of each test image, their
        ``effective_sample_size``, :func:`terms`, :func:`components` and the ``parameters`` of
        model and guide.
    """
    torch.set_num_threads(1)
    data = images.load(candidate.reading)
    model, guide, elbo = start(candidate, data, training.seed)
    rows = train(
        folder,
        (model, guide, elbo),
        data,
        training,
        {"candidate": dataclasses.asdict(candidate)},
        further=lambda held_out: terms(model, guide, held_out[:watched]) if watched else {},
        num_images=num_images,
        device=device,
        resume=resume,
        progress=progress,
    )
    model, guide = model.cpu().eval(), guide.cpu().eval()
    test = data.test.images[:num_images]
    found = evaluate(model, guide, spread(test, judged), num_samples=num_samples)
    return {
        **terms(model, guide, spread(test, FEW)),
        "components": components(guide, spread(test, FEW)),
        "rows": rows,
        "elbo": found.elbo.float(),
        "iw_bound": found.iw_bound.float(),
        "effective_sample_size": found.effective_sample_size.float(),
        "parameters": {"model": model.state_dict(), "guide": guide.state_dict()},
    }


def train(
    folder: Path,
    start: tuple[nn.Module, nn.Module, Any],
    data: images.Images,
    training: Training,
    configuration: Mapping[str, Any],
    *,
    further: Callable[[Tensor], Mapping[str, float]],
    num_images: int | None,
    device: str,
    resume: bool,
    progress: bool,
) -> list[dict[str, Any]]:
    """Train model and guide by an objective, ``start``, on some images; the rows of the training.

    ``further`` makes figures of the validation images, which each row gets besides.
    """
    model, guide, elbo = start
    held_out = data.validation.images[: num_images and num_images // 5]
    trainer = Trainer(
        launch(device),
        folder,
        elbo,
        model,
        guide,
        training,
        {**configuration, "images": num_images},
        further=lambda: further(held_out),
        resume=resume,
        progress=progress,
    )
    training_data = data.training_data()
    if num_images is not None:
        training_data = type(training_data)(training_data.tensors[0][:num_images])
    with pyro.validation_enabled(False):  # the images are checked; the trainer meets each NaN
        return trainer.fit(training_data, TensorDataset(held_out))


def spread(images: Tensor, count: int) -> Tensor:
    """So many of the images, evenly spread, or all."""
    return images[:: max(1, len(images) // count)]


def evaluate(model: nn.Module, guide: nn.Module, *batch: Tensor, num_samples: int) -> Evaluation:
    """Bounds for each image; model and guide are in evaluation mode."""
    with pyro.validation_enabled(False):
        return evaluate_data(
            model,
            guide,
            *batch,
            plate="images",
            num_samples=num_samples,
            vectorize=True,
            progress=False,
        )


def terms(model: Model, guide: Guide, images: Tensor) -> dict[str, float]:
    """Forms of the ELBO of some images; mutual information is at most the log of their number."""
    with pyro.validation_enabled(False):
        found = elbo_terms(model, guide, images, plate="images", num_samples=2)
    names = ("distortion", "rate", "mutual_information", "marginal_kl", "total_correlation")
    each = {name: getattr(found, name).item() for name in names}
    return {**each, "active_units": float(found.active_units)}


@torch.no_grad()
def components(guide: Guide, images: Tensor, num_samples: int = 20) -> float:
    """How many components the posterior of an image has, in the geometric mean over images.

    The exponential of the mutual information of component and sample,
    E log(q(k | z) / w_k): 1 where components lie on each other, or one has all the weight, and K
    for K that are apart and weigh the same.
    """
    posterior = guide.encoder(images)
    z = posterior.sample((num_samples,))
    joint = posterior.component_log_prob(z) + posterior.log_weights
    posteriors = joint.log_softmax(-1)
    information = (posteriors.exp() * (posteriors - posterior.log_weights)).nansum(-1).mean()
    return math.exp(information)


def trained(
    candidate: Candidate, data: images.Images, parameters: dict[str, Any]
) -> tuple[Model, Guide]:
    """Model and guide with these parameters, in evaluation mode."""
    model, guide, _ = start(candidate, data, 0)
    model.load_state_dict(parameters["model"])
    guide.load_state_dict(parameters["guide"])
    return model.eval(), guide.eval()


def step(candidate: Candidate, data: images.Images, batch_size: int) -> Callable[[], None]:
    """A step of a fit, to be timed."""
    return update(start(candidate, data, 0), data.train.images[:batch_size].round())


def update(start: tuple[nn.Module, nn.Module, Any], batch: Tensor) -> Callable[[], None]:
    """A step of model and guide by an objective, ``start``."""
    model, guide, elbo = start
    adam = torch.optim.Adam({*model.parameters(), *guide.parameters()}, lr=1e-4)

    def update() -> None:
        adam.zero_grad()
        with pyro.validation_enabled(False):
            (elbo.differentiable_loss(model, guide, batch) / len(batch)).backward()
        adam.step()

    return update
