"""One family of components: random parameters, the mixture that is tested and its reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution

from pyro_mixtures import Mixture, MixtureSameFamily
from pyro_mixtures.distributions import MixtureDistribution
from tests.families.references import ReferenceMixture
from tests.registry import Parameters, leaves


def real_line(_: Parameters) -> tuple[float, float]:
    return -math.inf, math.inf


@dataclass(frozen=True)
class Draw:
    """Random numbers for the parameters of K components in D dimensions.

    Args:
        locs: ``(*B, K, D)``.
        scales: in each coordinate from the lowest to the highest in random order, ``(*B, K, D)``.
        generator: of all further numbers.
    """

    locs: Tensor
    scales: Tensor
    generator: torch.Generator

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def between(self, low: float, high: float, shape: Sequence[int] | None = None) -> Tensor:
        """Log-uniform numbers, ``(*B, K, D)`` unless told."""
        shape = self.locs.shape if shape is None else shape
        uniform = torch.rand(*shape, generator=self.generator, dtype=torch.float64)
        return low * (high / low) ** uniform


@dataclass(frozen=True)
class Components:
    """A family of components, with random parameters for it.

    Args:
        draw: random component parameters, each ``(*B, K or 1, ...)``; one that all components
            share has 1 in the place of K.
        build: the components, a distribution of batch shape ``(*B, K)`` or, for a ``Mixture``, a
            list of K distributions of batch shape ``B``.
        dims: dimensions in which the family exists.
        event: the event shape for a dimension, if not ``(D,)``.
        kinks: places in each coordinate where a density has a kink, ``(*B, K, D)``.
        interval: ends of the support in each coordinate.
        moments: whether all moments exist; where not, tests use bounded costs.
        transports: velocity fields for the weights.
    """

    draw: Callable[[Draw], Parameters]
    build: Callable[[Parameters], Distribution | list[Distribution]]
    dims: tuple[int, ...] = (1, 2, 3, 5)
    event: Callable[[int], tuple[int, ...]] = lambda D: (D,)  # noqa: E731
    kinks: Callable[[Parameters], Tensor] | None = None
    interval: Callable[[Parameters], tuple[Tensor | float, Tensor | float]] = real_line
    moments: bool = True
    transports: tuple[str, ...] = ("telescoping",)

    @property
    def dimension(self) -> int:
        """Two where the family has that."""
        return 2 if 2 in self.dims else 1

    def parameters(
        self,
        batch_shape: tuple[int, ...] = (),
        K: int = 3,
        D: int = 2,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        scales: tuple[float, float] = (0.5, 1.5),
        spread: float = 1.0,
        shift: float = 0.7,
    ) -> Parameters:
        """Random parameters with gradient, the weights' last: ``logits (*B, K)``. The common shift
        of all means finds fields that take distances from the origin."""
        generator = torch.Generator().manual_seed(seed)
        shape = (*batch_shape, K, D)
        numbers = Draw(torch.zeros(shape), torch.zeros(shape), generator)
        rank = numbers.randn(*shape).argsort(-2).double()
        order = rank / (K - 1) if K > 1 else torch.full(shape, 0.5).double()
        scale = scales[0] * (scales[1] / scales[0]) ** order
        locs = shift + spread * numbers.randn(*shape)
        parameters = {
            **self.draw(Draw(locs, scale, generator)),
            "logits": numbers.randn(*batch_shape, K),
        }
        return leaves({name: value.to(dtype) for name, value in parameters.items()})

    def mixture(self, parameters: Parameters, **options) -> MixtureDistribution:
        """The mixture that is tested."""
        components = self.build(parameters)
        weights = Categorical(logits=parameters["logits"], validate_args=False)
        if isinstance(components, list):
            return Mixture(weights, components, **options)
        return MixtureSameFamily(weights, components, **options)

    def example(
        self, batch_shape: tuple[int, ...] = (), **settings
    ) -> tuple[Parameters, MixtureDistribution]:
        """Parameters and the mixture of them."""
        parameters = self.parameters(batch_shape, D=self.dimension, **settings)
        return parameters, self.mixture(parameters)

    def reference(self, parameters: Parameters) -> Distribution:
        """Its density, and moments where they exist, from torch and Pyro."""
        components = self.build(parameters)
        weights = Categorical(logits=parameters["logits"], validate_args=False)
        if isinstance(components, list):
            return ReferenceMixture(weights, components)
        return torch.distributions.MixtureSameFamily(weights, components, validate_args=False)

    def component_log_prob(self, parameters: Parameters, value: Tensor) -> Tensor:
        """Of the reference's components, ``(*X, *B, *E) -> (*X, *B, K)``."""
        components = self.build(parameters)
        if isinstance(components, list):
            return torch.stack([component.log_prob(value) for component in components], -1)
        return components.log_prob(value.unsqueeze(value.dim() - len(components.event_shape)))

    def component_samples(self, parameters: Parameters, count: int) -> Tensor:
        """Of every component, ``(count, *B, K, *E)``."""
        components = self.build(parameters)
        if isinstance(components, list):
            samples = [component.sample((count,)) for component in components]
            return torch.stack(samples, parameters["logits"].dim())
        return components.sample((count,))
