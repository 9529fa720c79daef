"""Every mixture family with what the tests need to judge it: a new family is one more entry.

The reference of a family is built of torch's own distributions, so that densities, moments and
their gradients come from code that shares nothing with this package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from pyro_mixtures.distributions import Mixture, MixtureOfDiagNormals

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """A mixture class, random parameters for it, and its components in torch's own terms."""

    distribution: type[Mixture]
    draw_components: Callable[..., Parameters]
    components: Callable[[Parameters], torch.distributions.Distribution]

    def parameters(
        self,
        batch_shape: tuple[int, ...] = (),
        K: int = 3,
        D: int = 2,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        scales=(0.5, 1.5),
        spread: float = 1.0,
        shift: float = 0.7,
    ) -> Parameters:
        """Random parameters with gradient. In each coordinate the components' scales run from
        ``scales[0]`` to ``scales[1]`` (numbers, or one for each coordinate) in random order. The
        common shift of all means finds fields that take distances from the origin."""
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        low, high = (torch.as_tensor(scale, dtype=torch.float64) for scale in scales)
        order = randn(*batch_shape, K, D).argsort(-2) / (K - 1) if K > 1 else torch.tensor(0.5)
        scale = (low * (high / low) ** order).expand(*batch_shape, K, D)
        locs = shift + spread * randn(*batch_shape, K, D)
        parameters = {
            **self.draw_components(locs, scale, randn),
            "component_logits": randn(*batch_shape, K),
        }
        return leaves({name: value.to(dtype) for name, value in parameters.items()})

    def build(self, parameters: Parameters, **options) -> Mixture:
        return self.distribution(**parameters, **options)

    def reference(self, parameters: Parameters) -> MixtureSameFamily:
        weights = Categorical(logits=parameters["component_logits"], validate_args=False)
        return MixtureSameFamily(weights, self.components(parameters), validate_args=False)


FAMILIES = {
    "diag_normals": Family(
        MixtureOfDiagNormals,
        lambda locs, scale, randn: {"locs": locs, "coord_scale": scale},
        lambda parameters: Independent(
            Normal(parameters["locs"], parameters["coord_scale"], validate_args=False), 1
        ),
    ),
}

each_family = pytest.mark.parametrize(
    "family", [pytest.param(family, id=name) for name, family in FAMILIES.items()]
)
each_transport = pytest.mark.parametrize(
    ("family", "transport"),
    [
        pytest.param(family, transport, id=f"{name}-{transport}")
        for name, family in FAMILIES.items()
        for transport in family.distribution.transports
    ],
)

COSTS: dict[str, Callable[[Tensor], Tensor]] = {
    "cubic": lambda z: z.pow(3).sum(-1),
    "cosine": lambda z: z.sum(-1).cos(),
    "quartic": lambda z: z.square().sum(-1).square(),
    "product": lambda z: z.prod(-1),
    "exponential": lambda z: (0.3 * z.sum(-1)).exp(),
}


def leaves(parameters: Parameters, dtype: torch.dtype | None = None) -> Parameters:
    """Copies that collect gradients."""
    return {
        name: value.detach().to(dtype or value.dtype).clone().requires_grad_()
        for name, value in parameters.items()
    }


def repeated(parameters: Parameters, batch_shape: tuple[int, ...], family: Family) -> Parameters:
    """Copies repeated in memory up to a batch shape: what ``expand`` must be equal to."""
    shapes = family.distribution._parameter_shapes()
    return leaves(
        {
            name: value.expand(*batch_shape, *value.shape[value.dim() - len(shapes[name]) :])
            for name, value in parameters.items()
        }
    )


def gradients(output: Tensor, parameters: Parameters, grad_output: Tensor | None = None):
    """Gradients of (the sum of) ``output``, by the parameters' names; zero where unused."""
    if grad_output is None:
        grad_output = torch.ones_like(output)
    values = torch.autograd.grad(
        output, list(parameters.values()), grad_output, retain_graph=True, materialize_grads=True
    )
    return dict(zip(parameters, values, strict=True))


def sample_at(mixture: Mixture, points: Tensor) -> Tensor:
    """``mixture.rsample`` with a chosen outcome ``(*sample_shape, *batch_shape, D)``.

    Only the drawing is replaced: shapes and the backward pass are the real ones.
    """

    def draw(index, *components):
        return points.reshape(-1, *index.shape[:-1], points.shape[-1]).movedim(0, -2)

    sample_shape = points.shape[: points.dim() - 1 - len(mixture.batch_shape)]
    with mock.patch.object(type(mixture), "_draw", staticmethod(draw)):
        return mixture.rsample(sample_shape)


def relative_error(actual: Parameters, expected: Parameters) -> float:
    """The largest error of any entry, relative to the largest entry of the same parameter. (One
    whose exact gradient vanishes is judged by the thousandth part of the largest of all.)"""
    expected = {name: value.detach() for name, value in expected.items()}
    largest = max(float(value.abs().amax()) for value in expected.values())
    errors = []
    for name, value in expected.items():
        error = (actual[name].detach().to(value) - value).abs().amax()
        errors.append(float(error / value.abs().amax().clamp_min(1e-3 * largest)))
    return max(errors, key=lambda error: float("inf") if error != error else error)


def grid(reference: MixtureSameFamily) -> tuple[Tensor, Tensor]:
    """Points ``(S, D)`` of a trapezoidal rule, and the volume of a cell.

    For sums of Normals times smooth functions a step of 0.65 of the smallest scale is exact to
    rounding. Components of negligible weight do not widen the grid.
    """
    component = reference.component_distribution
    mean, stddev = component.mean.detach(), component.stddev.detach()
    live = reference.mixture_distribution.probs > 1e-20
    mean, stddev = mean[live], stddev[live]
    steps = 0.65 * stddev.amin(0)
    low, high = (mean - 9 * stddev).amin(0), (mean + 9 * stddev).amax(0)
    axes = [
        torch.arange(float(a), float(b), float(h), dtype=mean.dtype)
        for a, b, h in zip(low, high, steps, strict=True)
    ]
    return torch.cartesian_prod(*axes).reshape(-1, len(axes)), steps.prod()
