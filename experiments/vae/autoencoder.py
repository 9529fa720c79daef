"""The autoencoder: a decoder with its prior as the model, an encoder to a mixture as the guide."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_mixtures import estimators
from pyro_mixtures.distributions import MixtureOfDiagNormals
from pyro_mixtures.infer import Annealing
from pyro_mixtures.nn import ConditionalMixture, HierarchicalPrior, MixturePrior, VampPrior
from pyro_mixtures.numerics.validation import check_choice

ESTIMATORS: dict[str, Callable[[Any], Any]] = {
    "pathwise": estimators.pathwise,
    "clustered": estimators.clustered,
    "score": estimators.score,
    "gumbel_soft": functools.partial(estimators.gumbel_soft, density="nested", num_nested=20),
    "gumbel_hard": estimators.gumbel_hard,
}
"""Gradients of the posterior's parameters by name: functions of a mixture."""

PRIORS = ("standard", "mixture", "vamp", "hierarchical")


@dataclass(frozen=True)
class Sizes:
    """Of the layers.

    Attributes:
        latent: D, size of a latent; a hierarchical prior has as many of the second level.
        encoder: sizes of the encoder's hidden layers.
        decoder: sizes of the decoder's.
        gated: hidden layers are gated linear units (Dauphin et al.), and not ReLU.
        prior_components: of a mixture and of a VampPrior, whose pseudo-inputs give K each.
    """

    latent: int
    encoder: tuple[int, ...]
    decoder: tuple[int, ...]
    gated: bool = False
    prior_components: int = 500


def layers(features: int, hidden: tuple[int, ...], gated: bool) -> nn.Sequential:
    """Hidden layers."""
    modules: list[nn.Module] = []
    for size in hidden:
        modules += [nn.Linear(features, 2 * size if gated else size)]
        modules += [nn.GLU() if gated else nn.ReLU()]
        features = size
    return nn.Sequential(*modules)


class SharedEncoder(nn.Module):
    """One network to the means, scales and weights of K diagonal Normals."""

    def __init__(self, pixels: int, sizes: Sizes, event_size: int, num_components: int) -> None:
        super().__init__()
        self.body = layers(pixels, sizes.encoder, sizes.gated)
        self.head = ConditionalMixture(
            sizes.encoder[-1], event_size, num_components, validate_args=False
        )

    def forward(self, images: Tensor) -> Any:
        return self.head(self.body(images))


class SeparateEncoders(nn.Module):
    """K networks, each to a Normal, of equal weights (Kviman et al. 2023)."""

    def __init__(self, pixels: int, sizes: Sizes, event_size: int, num_components: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(
            SharedEncoder(pixels, sizes, event_size, 1) for _ in range(num_components)
        )

    def forward(self, images: Tensor) -> MixtureOfDiagNormals:
        normals = [encoder(images) for encoder in self.encoders]
        locs = torch.cat([q.locs for q in normals], -2)
        scales = torch.cat([q.coord_scale for q in normals], -2)
        return MixtureOfDiagNormals(locs, scales, torch.zeros(len(normals)), validate_args=False)


class Guide(nn.Module):
    """The posterior of the latents by an encoder, and the gradient that trains it.

    In evaluation mode (``eval()``) the mixtures are those themselves, whatever the estimator.

    Args:
        encoder: a module from images to mixtures.
        estimator: a name in :data:`ESTIMATORS`, or None for objectives that draw each component.
        beta: weight of the divergence from the prior while training.
    """

    def __init__(self, encoder: nn.Module, estimator: str | None, beta: float = 1.0) -> None:
        super().__init__()
        if estimator is not None:
            check_choice("estimator", estimator, tuple(ESTIMATORS))
        self.encoder, self.estimator, self.beta = encoder, estimator, beta

    def forward(self, images: Tensor, seen: Tensor | None = None) -> None:
        """The guide of :class:`Model`; what is seen of the images are they themselves or less."""
        with pyro.plate("images", len(images)):
            posterior = self.encoder(images if seen is None else seen)
            if self.training and self.estimator is not None:
                posterior = ESTIMATORS[self.estimator](posterior)
            with Annealing(self.beta if self.training else 1.0):
                pyro.sample("z", posterior)


class Model(nn.Module):
    """Images of independent pixels given a latent, and the prior of that.

    Args:
        prior: a module whose call returns the prior.
        decoder: a module from latents to the logits of the pixels.
        beta: weight of the divergence from the prior while training.
    """

    def __init__(self, prior: nn.Module, decoder: nn.Module, beta: float = 1.0) -> None:
        super().__init__()
        self.prior, self.decoder, self.beta = prior, decoder, beta

    def forward(self, images: Tensor, seen: Tensor | None = None) -> None:
        """The model of a batch of images."""
        with pyro.plate("images", len(images)):
            with Annealing(self.beta if self.training else 1.0):
                z = pyro.sample("z", self.prior())
            pixels = dist.Bernoulli(logits=self.decoder(z), validate_args=False)
            pyro.sample("x", pixels.to_event(1), obs=images)


class StandardPrior(nn.Module):
    """A standard Normal."""

    scale: Tensor

    def __init__(self, event_size: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(event_size))

    def forward(self) -> TorchDistribution:
        return dist.Normal(torch.zeros_like(self.scale), self.scale).to_event(1)


class Decoder(nn.Module):
    """The logits of the pixels, of the first coordinates of a latent."""

    def __init__(self, pixels: int, sizes: Sizes) -> None:
        super().__init__()
        self.latent = sizes.latent
        self.body = layers(sizes.latent, sizes.decoder, sizes.gated)
        self.output = nn.Linear(sizes.decoder[-1], pixels)

    def forward(self, z: Tensor) -> Tensor:
        return self.output(self.body(z[..., : self.latent]))


def prior_module(
    name: str, sizes: Sizes, encoder: Callable[[Tensor], Any], num_components: int, images: Tensor
) -> nn.Module:
    """A prior in :data:`PRIORS`; the VampPrior starts at some of the images.

    The encoder makes mixtures of ``num_components``.
    """
    check_choice("prior", name, PRIORS)
    if name == "mixture":
        return MixturePrior(sizes.latent, sizes.prior_components, validate_args=False)
    if name == "vamp":
        chosen = torch.randperm(len(images))[: sizes.prior_components // num_components]
        return VampPrior(encoder, images[chosen], lo=0.0, hi=1.0, validate_args=False)
    if name == "hierarchical":
        hidden = sizes.decoder[-1:]
        lower = ConditionalMixture(
            sizes.latent, sizes.latent, 1, hidden=hidden, validate_args=False
        )
        return HierarchicalPrior(StandardPrior(sizes.latent), lower)
    return StandardPrior(sizes.latent)
