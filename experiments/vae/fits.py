"""The autoencoders that are compared, and a fit of one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor
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
from pyro_mixtures.diagnostics import Evaluation, evaluate_data
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
        device: as for :func:`~experiments.lab.processes.launch`.
        resume: go on from a checkpoint.
        progress: show a bar.

    Returns:
        ``rows`` of the training, ``elbo`` and ``iw_bound`` of each test image, their
        ``effective_sample_size`` and the ``parameters`` of model and guide.
    """
    torch.set_num_threads(1)
    fabric = launch(device)
    data = images.load(candidate.reading)
    model, guide, elbo = start(candidate, data, training.seed)
    trainer = Trainer(
        fabric,
        folder,
        elbo,
        model,
        guide,
        training,
        {"candidate": dataclasses.asdict(candidate), "images": num_images},
        resume=resume,
        progress=progress,
    )
    training_data = data.training_data()
    if num_images is not None:
        training_data = type(training_data)(training_data.tensors[0][:num_images])
    held_out = TensorDataset(data.validation.images[: num_images and num_images // 5])
    with pyro.validation_enabled(False):  # the images are checked; the trainer meets each NaN
        rows = trainer.fit(training_data, held_out)
    model, guide = model.cpu(), guide.cpu()
    found = evaluate(model, guide, data.test.images[:num_images], num_samples=num_samples)
    return {
        "rows": rows,
        "elbo": found.elbo.float(),
        "iw_bound": found.iw_bound.float(),
        "effective_sample_size": found.effective_sample_size.float(),
        "parameters": {"model": model.state_dict(), "guide": guide.state_dict()},
    }


def evaluate(model: Model, guide: Guide, *batch: Tensor, num_samples: int) -> Evaluation:
    """Bounds for each image, of the mixtures themselves and without a weight of the divergence."""
    modules = model.eval(), guide.eval()
    with pyro.validation_enabled(False):
        return evaluate_data(
            *modules,
            *batch,
            plate="images",
            num_samples=num_samples,
            vectorize=True,
            progress=False,
        )


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
    model, guide, elbo = start(candidate, data, 0)
    batch = data.train.images[:batch_size].round()
    adam = torch.optim.Adam({*model.parameters(), *guide.parameters()}, lr=1e-4)

    def update() -> None:
        adam.zero_grad()
        with pyro.validation_enabled(False):
            (elbo.differentiable_loss(model, guide, batch) / len(batch)).backward()
        adam.step()

    return update


def seconds_of(rows: list[dict[str, Any]], num_images: int) -> list[float]:
    """Seconds of training at each row, of rows of all epochs."""
    total, each = 0.0, []
    for row in rows:
        rate = row.get("data_per_second", math.inf)
        total += num_images / rate
        each.append(total)
    return each
