"""The models that are compared, and a fit of one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from experiments.dlgmm import judgement
from experiments.dlgmm.autoencoder import (
    ComponentPriors,
    MixtureEncoder,
    MixtureGuide,
    MixtureModel,
    StickEncoder,
    TwoLayerGuide,
    TwoLayerModel,
    stick_prior,
)
from experiments.lab.trainer_settings import Training
from experiments.vae import images
from experiments.vae.autoencoder import (
    Decoder,
    Guide,
    Model,
    SharedEncoder,
    Sizes,
    StandardPrior,
)
from experiments.vae.fits import evaluate, spread, train, update
from pyro_mixtures.infer import BaselinedTrace_ELBO, MarginalizedMixture_ELBO
from pyro_mixtures.numerics.validation import check_choice

NARROW = Sizes(latent=25, encoder=(500, 500), decoder=(500, 500))
"""Of the text: two layers, and a latent of 25."""
TINY = Sizes(latent=4, encoder=(32, 32), decoder=(32, 32))
"""For a quick run."""

APART = (-1.5, -0.75, 0.0, 0.75, 1.5)
"""Means of the components' priors of the text's pictures, in each coordinate."""

KINDS = ("gauss", "sticks", "mixture", "two_layers")
WAYS = ("each", "clustered", "pathwise")
"""Draws of each component, or one of the mixture, with these gradients."""

FEW = 2000
"""Test images whose latents are kept, for an embedding."""
NORMED = 100
"""Validation images of whose loss the norm of the gradient is told after each epoch."""
DRAWN = 32
"""Images that are drawn from each of the outermost components."""


@dataclass(frozen=True)
class Candidate:
    """A model and how it is trained.

    Attributes:
        kind: in :data:`KINDS`: one Normal (Gauss-VAE), weights (SB-VAE), or a mixture (DLGMM, and
            DLDPMM by its ``prior``) in one stochastic layer or two.
        num_components: K of a mixture; the number of weights that are the latent of ``sticks``.
        way: in :data:`WAYS`, of a mixture.
        prior: of the weights, ``dirichlet`` or ``gem``.
        concentration: of the prior.
        means: of the components' priors; by default all are standard Normals.
        reading: of the pixels, in :data:`~experiments.vae.images.READINGS`.
        sizes: of the layers.
    """

    kind: str = "mixture"
    num_components: int = 5
    way: str = "clustered"
    prior: str = "dirichlet"
    concentration: float = 1.0
    means: tuple[float, ...] | None = None
    reading: str = "fixed"
    sizes: Sizes = NARROW


def start(
    candidate: Candidate, data: images.Images, seed: int
) -> tuple[nn.Module, nn.Module, Any]:
    """Model and guide at their starting point, and the objective."""
    check_choice("kind", candidate.kind, KINDS)
    check_choice("way", candidate.way, WAYS)
    pyro.set_rng_seed(seed)
    sizes, pixels, count = candidate.sizes, data.side**2, candidate.num_components
    one_draw = BaselinedTrace_ELBO(max_plate_nesting=1)
    if candidate.kind == "gauss":
        guide = Guide(SharedEncoder(pixels, sizes, sizes.latent, 1), None)
        return Model(StandardPrior(sizes.latent), Decoder(pixels, sizes)), guide, one_draw
    weights = stick_prior(candidate.prior, candidate.concentration, count)
    if candidate.kind == "sticks":
        sizes = dataclasses.replace(sizes, latent=count)
        model = Model(weights, Decoder(pixels, sizes))
        return model, Guide(StickEncoder(pixels, sizes, weights), None), one_draw
    components = ComponentPriors(candidate.means or (0.0,) * count, sizes.latent)
    encoder = MixtureEncoder(pixels, sizes, weights, components.start())
    decoder = Decoder(pixels, sizes)
    each = candidate.way == "each"
    estimator = None if each else candidate.way
    elbo = MarginalizedMixture_ELBO(max_plate_nesting=1) if each else one_draw
    if candidate.kind == "mixture":
        return MixtureModel(weights, components, decoder), MixtureGuide(encoder, estimator), elbo
    above = MixtureEncoder(sizes.latent, sizes, weights, components.start())
    deep = TwoLayerModel(weights, components, decoder, sizes)
    return deep, TwoLayerGuide(encoder, above, estimator), elbo


def step(candidate: Candidate, data: images.Images, batch_size: int) -> Callable[[], None]:
    """A step of a fit, to be timed."""
    return update(start(candidate, data, 0), data.train.images[:batch_size].round())


def fit(
    folder: Path,
    candidate: Candidate,
    training: Training,
    num_images: int | None,
    num_samples: tuple[int, int],
    judged: int,
    device: str,
    resume: bool,
    progress: bool,
) -> dict[str, Any]:
    """Train a model and judge it by the test images.

    Args:
        folder: of the fit.
        candidate: what to fit.
        training: settings.
        num_images: of each set, at most; None for all.
        num_samples: of each test image, for the bounds: of all, and of ``judged`` of them.
        judged: how many test images have the second number, at most.
        device: as for :func:`~experiments.lab.processes.launch`.
        resume: go on from a checkpoint.
        progress: show a bar.

    Returns:
        ``rows`` of the training, ``elbo`` and ``iw_bound`` of each test image, ``long_bound`` of
        those with more samples and how much ``further`` these get, :func:`of_weights`,
        :func:`of_latents`, ``drawn`` of the outermost components where they are apart, and the
        ``parameters`` of model and guide.
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
        further=lambda held_out: gradient_norm(model, guide, elbo, held_out[:NORMED]),
        num_images=num_images,
        device=device,
        resume=resume,
        progress=progress,
    )
    model, guide = model.cpu().eval(), guide.cpu().eval()
    test = data.test.images[:num_images]
    few, many = num_samples
    found = evaluate(model, guide, test, num_samples=few)
    longer = evaluate(model, guide, spread(test, judged), num_samples=many)
    pyro.set_rng_seed(training.seed)
    return {
        **of_weights(model, guide, test),
        **of_latents(guide, data, num_images),
        "drawn": draws(model) if candidate.means is not None else None,
        "rows": rows,
        "elbo": found.elbo.float(),
        "iw_bound": found.iw_bound.float(),
        "long_bound": longer.iw_bound.float(),
        "further": (longer.iw_bound - spread(found.iw_bound, judged)).float(),
        "effective_sample_size": longer.effective_sample_size.float(),
        "parameters": {"model": model.state_dict(), "guide": guide.state_dict()},
    }


def gradient_norm(
    model: nn.Module, guide: nn.Module, elbo: Any, batch: Tensor
) -> dict[str, float]:
    """Of the loss of an image, by one draw for each image of a batch, as in training."""
    modules = (model, guide)
    parameters = [p for module in modules for p in module.parameters()]
    batch = batch.to(parameters[0].device)
    with torch.enable_grad():
        for module in modules:
            module.train()
        loss = elbo.differentiable_loss(model, guide, batch) / len(batch)
        gradient = torch.autograd.grad(loss, parameters)
        for module in modules:
            module.eval()
    return {"gradient_norm": torch.cat([each.flatten() for each in gradient]).norm().item()}


@torch.no_grad()
def of_weights(model: nn.Module, guide: nn.Module, seen: Tensor) -> dict[str, float]:
    """Of random weights: what they cost in nats, and how many are in use.

    ``weights_kl`` is the mean divergence from their prior, ``each`` the perplexity of an image's
    expected weights (geometric mean over images) and ``all`` that of their mean over the images;
    ``distinct`` is :func:`~experiments.dlgmm.judgement.distinct`. NaN where there are none.
    """
    if not (isinstance(model, MixtureModel) and isinstance(guide, MixtureGuide)):
        return dict.fromkeys(("weights_kl", "each", "all", "distinct"), math.nan)
    divergence = [
        kl_divergence(guide.encoder(batch).weights, model.weights()) for batch in seen.split(1000)
    ]
    weights = judgement.expected_weights(guide.encoder, seen)
    return {
        "weights_kl": torch.cat(divergence).mean().item(),
        "each": judgement.perplexity(weights).log().mean().exp().item(),
        "all": judgement.perplexity(weights.mean(0)).item(),
        "distinct": judgement.distinct(guide.encoder, spread(seen, FEW)),
    }


def of_latents(guide: nn.Module, data: images.Images, num_images: int | None) -> dict[str, Any]:
    """What the latent space knows of the digits.

    Errors of ``neighbours``; the normalized mutual information of the digit with the component
    that has the largest expected weight, ``information``, and with those of scikit-learn's
    mixtures in the latent space, ``clusters``; ``latents`` of some test images and their
    ``digits``. Without the digits all are empty.
    """
    splits: Any = judgement.labelled(data)
    if splits is None:
        return {"neighbours": {}, "information": math.nan, "clusters": {}, "latents": None}
    (seen, digits), (test, truth) = (
        (x.images[:num_images], x.digits[:num_images]) for x in splits
    )
    learned = judgement.latents(guide, seen)
    tested = (judgement.latents(guide, test), truth)
    own = math.nan
    if isinstance(guide, MixtureGuide):
        chosen = judgement.expected_weights(guide.encoder, test).argmax(-1)
        own = judgement.information(chosen, truth)
    return {
        "neighbours": judgement.neighbour_errors((learned, digits), tested),
        "information": own,
        "clusters": judgement.mixture_informations(learned, tested),
        "latents": spread(tested[0], FEW),
        "digits": spread(truth, FEW),
    }


@torch.no_grad()
def draws(model: Any) -> Tensor:
    """Probabilities of the pixels, ``(2, N, P)``.

    Of draws from the first and the last component of a
    :class:`~experiments.dlgmm.autoencoder.MixtureModel`.
    """
    components = model.components
    locs, scales = (x[[0, -1]].unsqueeze(1) for x in (components.locs, components.scales))
    z = locs + scales * torch.randn(2, DRAWN, locs.shape[-1])
    return model.decoder(z).sigmoid()
