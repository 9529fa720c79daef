"""Models and guides whose latents are weights, or mixtures with weights that are latent, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from experiments.vae.autoencoder import ESTIMATORS, Sizes, layers
from pyro_mixtures.distributions import (
    KumaraswamyStickBreaking,
    MixtureOfDiagNormals,
    StickBreaking,
)
from pyro_mixtures.nn.floors import AboveFloor
from pyro_mixtures.nn.named_outputs import NamedOutputs
from pyro_mixtures.nn.spread import START_SCALE, spread_locs

SCALES = AboveFloor(1e-3)
STICKS = AboveFloor(0.05)
"""Of the parameters of Kumaraswamy sticks, whose gradients are right from there on."""


class StickPrior(nn.Module):
    """A prior of weights, whose call returns it.

    Args:
        weights: of ``Beta`` sticks.
    """

    a: Tensor
    b: Tensor

    def __init__(self, weights: StickBreaking) -> None:
        super().__init__()
        self.register_buffer("a", weights.sticks.concentration1.clone())
        self.register_buffer("b", weights.sticks.concentration0.clone())

    @property
    def num_weights(self) -> int:
        return len(self.a) + 1

    def forward(self) -> StickBreaking:
        return StickBreaking(dist.Beta(self.a, self.b, validate_args=False), validate_args=False)


class Sticks(nn.Module):
    """A layer from features to weights of Kumaraswamy sticks, at first those of the prior.

    (Near to them where the prior's sticks are no Kumaraswamy ones: these are ``Beta(1, c)``.)
    """

    def __init__(self, features: int, prior: StickPrior) -> None:
        super().__init__()
        self.outputs = NamedOutputs(features, {"a": prior.a.shape, "b": prior.b.shape}, ())
        self.outputs.start_at({"a": STICKS.inv(prior.a), "b": STICKS.inv(prior.b)})

    def forward(self, features: Tensor) -> KumaraswamyStickBreaking:
        found = self.outputs(features)
        return KumaraswamyStickBreaking(
            STICKS(found["a"]), STICKS(found["b"]), validate_args=False
        )


class StickEncoder(nn.Module):
    """A network from images to weights (SB-VAE)."""

    def __init__(self, pixels: int, sizes: Sizes, prior: StickPrior) -> None:
        super().__init__()
        self.body = layers(pixels, sizes.encoder, sizes.gated)
        self.sticks = Sticks(sizes.encoder[-1], prior)

    def forward(self, images: Tensor) -> KumaraswamyStickBreaking:
        return self.sticks(self.body(images))


class Normals(nn.Module):
    """A layer from features to means and scales of K Normals.

    Args:
        features: size of the features.
        locs: means at first, ``(K, D)``.
        scale: of all at first.
    """

    def __init__(self, features: int, locs: Tensor, scale: float = START_SCALE) -> None:
        super().__init__()
        self.outputs = NamedOutputs(features, {"locs": locs.shape, "scales": locs.shape}, ())
        self.outputs.start_at({"locs": locs, "scales": SCALES.inv(torch.tensor(scale))})

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        found = self.outputs(features)
        return found["locs"], SCALES(found["scales"])


class Posterior(NamedTuple):
    """Of an image.

    Attributes:
        weights: their distribution.
        locs: means of the components, ``(*B, K, D)``.
        scales: theirs, ``(*B, K, D)``.
    """

    weights: KumaraswamyStickBreaking
    locs: Tensor
    scales: Tensor


class MixtureEncoder(nn.Module):
    """A network to the weights and the components of a mixture.

    Args:
        features: size of what it sees.
        sizes: of the hidden layers.
        prior: of the weights.
        locs: means of the components at first, ``(K, D)``.
    """

    def __init__(self, features: int, sizes: Sizes, prior: StickPrior, locs: Tensor) -> None:
        super().__init__()
        self.body = layers(features, sizes.encoder, sizes.gated)
        self.sticks = Sticks(sizes.encoder[-1], prior)
        self.normals = Normals(sizes.encoder[-1], locs)

    def forward(self, seen: Tensor) -> Posterior:
        features = self.body(seen)
        return Posterior(self.sticks(features), *self.normals(features))


class ComponentPriors(nn.Module):
    """Fixed components of the latent's prior, of variance one.

    Args:
        means: of each component, the same in each coordinate.
        event_size: D.
    """

    locs: Tensor
    scales: Tensor

    def __init__(self, means: Sequence[float], event_size: int) -> None:
        super().__init__()
        locs = torch.tensor(means).unsqueeze(-1).expand(-1, event_size)
        self.register_buffer("locs", locs.clone())
        self.register_buffer("scales", torch.ones_like(locs))
        self.are_one = len(set(means)) == 1

    def forward(self, log_weights: Tensor) -> TorchDistribution:
        """The prior given the weights; of components that are the same it is a Normal."""
        if self.are_one:
            return dist.Normal(self.locs[0], self.scales[0], validate_args=False).to_event(1)
        return MixtureOfDiagNormals(self.locs, self.scales, log_weights, validate_args=False)

    def start(self) -> Tensor:
        """Means for a posterior to start at: those of the prior, or apart where these are one."""
        return spread_locs(*self.locs.shape) if self.are_one else self.locs.clone()


class MixtureModel(nn.Module):
    """Images given a latent, which is of a mixture given the weights, which have a prior."""

    def __init__(
        self, weights: StickPrior, components: ComponentPriors, decoder: nn.Module
    ) -> None:
        super().__init__()
        self.weights, self.components, self.decoder = weights, components, decoder

    def forward(self, images: Tensor) -> None:
        """The model of a batch of images."""
        with pyro.plate("images", len(images)):
            prior = self.weights()
            weights = pyro.sample("weights", prior)
            z = pyro.sample("z", self.components(prior.log_weights(weights)))
            self.observe(z, images)

    def observe(self, z: Tensor, images: Tensor) -> None:
        """The images given the latent that is decoded."""
        pixels = dist.Bernoulli(logits=self.decoder(z), validate_args=False)
        pyro.sample("x", pixels.to_event(1), obs=images)


class MixtureGuide(nn.Module):
    """Weights and a latent of each image by an encoder.

    In evaluation mode the mixtures are those themselves, whatever the estimator.

    Args:
        encoder: of the images.
        estimator: of the mixtures' gradients, in :data:`~experiments.vae.autoencoder.ESTIMATORS`;
            None for objectives that draw each component.
    """

    def __init__(self, encoder: MixtureEncoder, estimator: str | None) -> None:
        super().__init__()
        self.encoder, self.estimator = encoder, estimator

    def forward(self, images: Tensor) -> None:
        """The guide of :class:`MixtureModel`."""
        with pyro.plate("images", len(images)):
            self.draw("weights", "z", self.encoder(images))

    def draw(self, weights: str, z: str, posterior: Posterior) -> Tensor:
        """Samples of two sites; that of the latent."""
        q, locs, scales = posterior
        log_weights = q.log_weights(pyro.sample(weights, q))
        mixture = MixtureOfDiagNormals(locs, scales, log_weights, validate_args=False)
        if self.training and self.estimator is not None:
            mixture = ESTIMATORS[self.estimator](mixture)
        return pyro.sample(z, mixture)


class TwoLayerModel(MixtureModel):
    """A second latent, of which a network makes the components' priors of the one that is decoded.

    Both have weights of their own, with the same prior.
    """

    def __init__(
        self, weights: StickPrior, components: ComponentPriors, decoder: nn.Module, sizes: Sizes
    ) -> None:
        super().__init__(weights, components, decoder)
        self.body = layers(sizes.latent, sizes.decoder[-1:], sizes.gated)
        self.normals = Normals(sizes.decoder[-1], components.start(), 1.0)

    def forward(self, images: Tensor) -> None:
        """The model of a batch of images."""
        with pyro.plate("images", len(images)):
            prior = self.weights()
            weights = pyro.sample("top_weights", prior)
            top = pyro.sample("top", self.components(prior.log_weights(weights)))
            locs, scales = self.normals(self.body(top))
            logits = prior.log_weights(pyro.sample("weights", prior))
            below = MixtureOfDiagNormals(locs, scales, logits, validate_args=False)
            self.observe(pyro.sample("z", below), images)


class TwoLayerGuide(MixtureGuide):
    """Weights and latent of the images, and from the latent those above it."""

    def __init__(
        self, encoder: MixtureEncoder, above: MixtureEncoder, estimator: str | None
    ) -> None:
        super().__init__(encoder, estimator)
        self.above = above

    def forward(self, images: Tensor) -> None:
        """The guide of :class:`TwoLayerModel`."""
        with pyro.plate("images", len(images)):
            z = self.draw("weights", "z", self.encoder(images))
            self.draw("top_weights", "top", self.above(z))


def stick_prior(name: str, concentration: float, num_weights: int) -> StickPrior:
    """A symmetric ``dirichlet``, or ``gem``, that of a Dirichlet process."""
    if name == "gem":
        return StickPrior(StickBreaking.gem(concentration, num_weights))
    return StickPrior(StickBreaking.dirichlet(torch.full((num_weights,), concentration)))
