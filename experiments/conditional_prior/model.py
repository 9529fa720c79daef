"""Lower halves of images given upper ones, by latents whose prior depends on what is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_mixtures.nn import ConditionalMixture

PRIORS = ("none", "standard", "conditional")


@dataclass(frozen=True)
class Candidate:
    """A model of lower halves.

    Attributes:
        prior: ``conditional`` on the upper half, ``standard``, or ``none``: pixels that are
            independent given the upper half.
        num_components: K of a conditional prior.
        posterior_components: of the posterior.
        bottleneck: the decoder sees the latent alone, and not the upper half besides.
        latent: size of the latent.
        hidden: units of each network's hidden layer.
        reading: of the pixels, in :data:`~experiments.vae.images.READINGS`.
    """

    prior: str = "conditional"
    num_components: int = 1
    posterior_components: int = 1
    bottleneck: bool = False
    latent: int = 20
    hidden: int = 256
    reading: str = "dynamic"


def halves(images: Tensor) -> tuple[Tensor, Tensor]:
    """What is given, y, and what is to be completed, x: upper and lower pixels."""
    upper, lower = images.chunk(2, -1)
    return upper, lower


class Model(nn.Module):
    """p(x | z, y) p(z | y), of batches of whole images."""

    def __init__(self, candidate: Candidate, pixels: int) -> None:
        super().__init__()
        self.candidate = candidate
        half, hidden = pixels // 2, candidate.hidden
        seen = 0 if candidate.bottleneck else half
        latent = 0 if candidate.prior == "none" else candidate.latent
        self.decoder = nn.Sequential(
            nn.Linear(latent + seen, hidden), nn.ReLU(), nn.Linear(hidden, half)
        )
        if candidate.prior == "conditional":
            self.network = encoder(half, candidate, candidate.num_components)

    def prior(self, upper: Tensor) -> Any:
        """Of the latents, given the upper halves."""
        if self.candidate.prior == "conditional":
            return self.network(upper)
        zeros = torch.zeros(*upper.shape[:-1], self.candidate.latent)
        return dist.Normal(zeros, 1.0, validate_args=False).to_event(1)

    def logits(self, upper: Tensor, z: Tensor | None) -> Tensor:
        """Of the lower halves' pixels."""
        if z is None:
            return self.decoder(upper)
        if self.candidate.bottleneck:
            return self.decoder(z)
        return self.decoder(torch.cat([z, upper.expand(*z.shape[:-1], -1)], -1))

    def forward(self, images: Tensor) -> None:
        upper, lower = halves(images)
        with pyro.plate("images", len(images)):
            z = None
            if self.candidate.prior != "none":
                z = pyro.sample("z", self.prior(upper))
            pixels = dist.Bernoulli(logits=self.logits(upper, z), validate_args=False)
            pyro.sample("x", pixels.to_event(1), obs=lower)

    def completed(self, upper: Tensor, num_samples: int) -> Tensor:
        """Probabilities of the lower halves' pixels by draws of z, ``(S, B, pixels / 2)``."""
        if self.candidate.prior == "none":
            return self.logits(upper, None).sigmoid().expand(num_samples, -1, -1)
        return self.logits(upper, self.prior(upper).sample((num_samples,))).sigmoid()


class Guide(nn.Module):
    """q(z | x, y), by whole images."""

    def __init__(self, candidate: Candidate, pixels: int) -> None:
        super().__init__()
        self.latent = candidate.prior != "none"
        if self.latent:
            self.encoder = encoder(pixels, candidate, candidate.posterior_components)

    def forward(self, images: Tensor) -> None:
        if self.latent:
            with pyro.plate("images", len(images)):
                pyro.sample("z", self.encoder(images))


def encoder(pixels: int, candidate: Candidate, num_components: int) -> nn.Module:
    """A network from pixels to mixtures of Normals."""
    return nn.Sequential(
        nn.Linear(pixels, candidate.hidden),
        nn.ReLU(),
        ConditionalMixture(
            candidate.hidden, candidate.latent, num_components, validate_args=False
        ),
    )
