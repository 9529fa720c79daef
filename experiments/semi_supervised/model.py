"""A decoder of labels and styles, its encoders, and the loss of images with labels and without.

Kingma et al., *Semi-supervised Learning with Deep Generative Models*, 2014: the model M2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiments.discrete_codes.autoencoder import log_likelihood
from experiments.discrete_codes.choices import ESTIMATORS, KINDS
from pyro_mixtures.nn import ConditionalMixture

DIGITS = 10
SUPERVISED = "labels alone"
"""The classifier without a model, instead of an estimator."""


@dataclass(frozen=True)
class Candidate:
    """A model, its posterior, and what trains them.

    Attributes:
        labels: how many training images have one.
        estimator: of the gradient through the labels that are not known, in
            :data:`~experiments.discrete_codes.choices.ESTIMATORS`, or :data:`SUPERVISED`.
        num_components: K of the posterior of the style.
        auxiliary: weight of the classification loss, its mean over images with labels, where the
            mean bound of images without has the weight 1.
        known: weight of the mean bound of images with labels, likewise.
        latent: size of the style.
        hidden: units of each network's hidden layer.
        reading: of the pixels, in :data:`~experiments.vae.images.READINGS`.
    """

    labels: int
    estimator: str = "marginalized"
    num_components: int = 1
    auxiliary: float = 1.0
    known: float = 1.0
    latent: int = 4
    hidden: int = 128
    reading: str = "dynamic"


class Decoder(nn.Module):
    """Logits of the pixels from the label and the style."""

    def __init__(self, candidate: Candidate, pixels: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(DIGITS + candidate.latent, candidate.hidden),
            nn.ReLU(),
            nn.Linear(candidate.hidden, pixels),
        )

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        y = y.expand(*z.shape[:-1], DIGITS)
        return self.network(torch.cat([y, z], -1))


class StyleEncoder(nn.Module):
    """A mixture of Normals for the style, from the pixels and the label."""

    def __init__(self, candidate: Candidate, pixels: int) -> None:
        super().__init__()
        self.pixels = nn.Linear(pixels, candidate.hidden)
        self.label = nn.Linear(DIGITS, candidate.hidden, bias=False)
        self.head = ConditionalMixture(
            candidate.hidden,
            candidate.latent,
            candidate.num_components,
            weight_gradient="pathwise",
            validate_args=False,
        )

    def forward(self, images: Tensor, y: Tensor) -> Any:
        return self.head((self.pixels(images) + self.label(y)).relu())


class Encoder(nn.Module):
    """The classifier and the encoder of styles, and the loss.

    Args:
        candidate: what is trained.
        images: those with labels, grey, ``(labels, pixels)``.
        digits: theirs.
        batch_size: images with labels in a step.
    """

    images: Tensor
    digits: Tensor

    def __init__(
        self, candidate: Candidate, images: Tensor, digits: Tensor, batch_size: int
    ) -> None:
        super().__init__()
        pixels = images.shape[1]
        self.candidate, self.batch_size = candidate, min(batch_size, len(images))
        self.classifier = nn.Sequential(
            nn.Linear(pixels, candidate.hidden), nn.ReLU(), nn.Linear(candidate.hidden, DIGITS)
        )
        self.style = StyleEncoder(candidate, pixels)
        self.register_buffer("images", images, persistent=False)
        self.register_buffer("digits", digits, persistent=False)

    def joint(self, decoder: Decoder, images: Tensor, y: Tensor) -> Tensor:
        """A draw of the bound on log p(x | y), ``(S, B)``, of labels ``(S, B or 1, 10)``."""
        q = self.style(images, y)
        z = q.rsample()  # (S, B, D)
        prior = -(z.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi)) / 2
        return log_likelihood(decoder(y, z), images) + prior - q.log_prob(z)

    def bound(self, decoder: Decoder, images: Tensor) -> Tensor:
        """A draw of the bound on log p(x), ``(B)``; labels are summed out in evaluation mode."""
        kind, logits = KINDS["categorical"], self.classifier(images).unsqueeze(-2)  # (B, 1, 10)
        estimator = ESTIMATORS[self.candidate.estimator if self.training else "marginalized"]
        told = estimator(kind, logits, lambda y: self.joint(decoder, images, y.squeeze(-2)))
        return told - kind.divergence(logits)

    def loss(self, decoder: Decoder, images: Tensor) -> Tensor:
        """Of a step: its mean by weights, times the number of images."""
        if not self.training:
            return -self.bound(decoder, images).sum()
        chosen = torch.randperm(len(self.images))[: self.batch_size]
        seen, digits = torch.bernoulli(self.images[chosen]), self.digits[chosen]
        wrong = nn.functional.cross_entropy(self.classifier(seen), digits)
        if self.candidate.estimator == SUPERVISED:
            return len(images) * wrong
        y = nn.functional.one_hot(digits, DIGITS).to(seen)[None]  # (1, B, 10)
        known = self.joint(decoder, seen, y) - math.log(DIGITS)
        told = self.candidate.auxiliary * wrong - self.candidate.known * known.mean()
        return len(images) * told - self.bound(decoder, images).sum()

    def accuracy(self, images: Tensor, digits: Tensor) -> float:
        """Part of the images whose digit is told."""
        found = self.classifier(images).argmax(-1) == digits
        return found.float().mean().item()
