"""Every mixture family with what the tests need to judge it: a new family is one more entry.

The reference of a family is built of torch's own distributions, so that densities, moments and
their gradients come from code that shares nothing with this package.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
)

from pyro_mixtures.distributions import (
    AVFMixtureOfDiagNormals,
    GaussianScaleMixture,
    MixtureDistribution,
    MixtureOfDiagNormals,
    MixtureOfDiagNormalsSharedCovariance,
    MixtureOfNormals,
    MixtureOfNormalsSharedCovariance,
    ParametricMixture,
)

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """A mixture class, random parameters for it, and its components in torch's own terms.

    Args:
        distribution: the class.
        draw_components: random component parameters of given means and standard deviations, each
            ``(*B, K, D)``, which the family follows as far as it can, and of random numbers.
        components: the components, a distribution of batch shape ``(*B, K)``.
        groups: options of ``parameters`` for which four components in one or two dimensions form
            several groups.
        apart: options for which all components are far from each other.
    """

    distribution: type[ParametricMixture]
    draw_components: Callable[..., Parameters]
    components: Callable[[Parameters], Distribution]
    groups: dict = field(default_factory=lambda: {"spread": 3.0})
    apart: dict = field(default_factory=lambda: {"spread": 1e4})

    @property
    def has_loops(self) -> bool:
        """Whether there are compiled loops for it."""
        return self.distribution in (MixtureOfDiagNormals, MixtureOfDiagNormalsSharedCovariance)

    @property
    def has_full_factors(self) -> bool:
        """Whether parameters grow with the square of the dimension."""
        return any("DD" in letters for letters in self.distribution.component_parameters.values())

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
        rank = randn(*batch_shape, K, D).argsort(-2).double()
        order = rank / (K - 1) if K > 1 else torch.tensor(0.5).double()
        scale = (low * (high / low) ** order).expand(*batch_shape, K, D)
        locs = shift + spread * randn(*batch_shape, K, D)
        parameters = {
            **self.draw_components(locs, scale, randn),
            "component_logits": randn(*batch_shape, K),
        }
        return leaves({name: value.to(dtype) for name, value in parameters.items()})

    def build(self, parameters: Parameters, **options) -> ParametricMixture:
        return self.distribution(**parameters, **options)

    def reference(self, parameters: Parameters) -> MixtureSameFamily:
        components, logits = self.components(parameters), parameters["component_logits"]
        # torch's class wants both of the full shape
        shape = torch.broadcast_shapes(components.batch_shape, logits.shape)
        weights = Categorical(logits=logits.expand(shape), validate_args=False)
        return MixtureSameFamily(weights, components.expand(shape), validate_args=False)

    def move_away(self, parameters: Parameters, members: slice, distance: float) -> None:
        """Put some components far from the others: in place or, where all share that, in size."""
        with torch.no_grad():
            if "locs" in parameters:
                parameters["locs"][..., members, :] += distance
            else:
                parameters["component_scale"][..., members] *= distance


def independent_normal(locs: Tensor, scales: Tensor) -> Independent:
    return Independent(Normal(*torch.broadcast_tensors(locs, scales), validate_args=False), 1)


def full_normal(locs: Tensor, scale_tril: Tensor) -> MultivariateNormal:
    shape = torch.broadcast_shapes(locs.shape, scale_tril.shape[:-1])
    factors = scale_tril.tril().expand(*shape, shape[-1])
    return MultivariateNormal(locs.expand(shape), scale_tril=factors, validate_args=False)


def scale_mixture_normal(coord_scale, component_scale, component_logits, locs=None):
    scales = component_scale.unsqueeze(-1) * coord_scale.unsqueeze(-2)
    return independent_normal(torch.zeros_like(scales) if locs is None else locs, scales)


def random_factor(scale: Tensor, randn) -> Tensor:
    """Cholesky factors of correlated coordinates with standard deviations ``(*B, D)``."""
    dim = scale.shape[-1]
    below = 0.8 / dim**0.5 * randn(*scale.shape, dim).tril(-1)
    factor = below + torch.eye(dim, dtype=scale.dtype)
    return scale.unsqueeze(-1) * torch.nn.functional.normalize(factor, dim=-1)


def draw_scale_mixture(scale: Tensor) -> Parameters:
    """A common shape and sizes whose products keep to the range of the scales."""
    return {
        "coord_scale": 0.9 * scale[..., 0, :].sqrt(),
        "component_scale": scale[..., 0].sqrt(),
    }


FAMILIES = {
    "diag_normals": Family(
        MixtureOfDiagNormals,
        lambda locs, scale, randn: {"locs": locs, "coord_scale": scale},
        lambda parameters: independent_normal(parameters["locs"], parameters["coord_scale"]),
    ),
    "avf_diag_normals": Family(
        AVFMixtureOfDiagNormals,
        lambda locs, scale, randn: {
            "locs": locs,
            "coord_scale": scale,
            "control_var": 0.5 * torch.stack([randn(*locs.shape), randn(*locs.shape)], -3),
        },
        lambda parameters: independent_normal(parameters["locs"], parameters["coord_scale"]),
    ),
    "diag_normals_shared": Family(
        MixtureOfDiagNormalsSharedCovariance,
        lambda locs, scale, randn: {"locs": locs, "coord_scale": scale[..., 0, :]},
        lambda parameters: independent_normal(
            parameters["locs"], parameters["coord_scale"].unsqueeze(-2)
        ),
    ),
    "scale_mixture": Family(
        GaussianScaleMixture,
        lambda locs, scale, randn: draw_scale_mixture(scale),
        lambda parameters: scale_mixture_normal(**parameters),
        groups={"scales": (0.015, 2.5)},
        apart={"scales": (1e-20, 1e20)},
    ),
    "scale_mixture_with_locs": Family(
        GaussianScaleMixture,
        lambda locs, scale, randn: {**draw_scale_mixture(scale), "locs": locs},
        lambda parameters: scale_mixture_normal(**parameters),
    ),
    "normals": Family(
        MixtureOfNormals,
        lambda locs, scale, randn: {"locs": locs, "scale_tril": random_factor(scale, randn)},
        lambda parameters: full_normal(parameters["locs"], parameters["scale_tril"]),
    ),
    "normals_shared": Family(
        MixtureOfNormalsSharedCovariance,
        lambda locs, scale, randn: {
            "locs": locs,
            "scale_tril": random_factor(scale[..., 0, :], randn),
        },
        lambda parameters: full_normal(parameters["locs"], parameters["scale_tril"].unsqueeze(-3)),
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


def _transports_in_turn() -> Iterator[Any]:
    """Each family with the one of its transports that the families before have had least."""
    count: Counter[str] = Counter()
    for name, family in FAMILIES.items():
        transport = min(family.distribution.transports, key=lambda each: count[each])
        count[transport] += 1
        yield pytest.param(family, transport, id=f"{name}-{transport}")
    assert count.keys() == {each for f in FAMILIES.values() for each in f.distribution.transports}


each_transport_in_turn = pytest.mark.parametrize(
    ("family", "transport"), list(_transports_in_turn())
)
"""Every family and every transport; their pairs belong to ``slow``."""

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


def each_component(family: Family, parameters: Parameters) -> list[str]:
    """Names of the parameters that each component has one of its own of."""
    letters = family.distribution.component_parameters
    return [name for name in parameters if letters.get(name, "").startswith("K")]


def repeated(parameters: Parameters, batch_shape: tuple[int, ...], family: Family) -> Parameters:
    """Copies repeated in memory up to a batch shape: what ``expand`` must be equal to."""
    shapes = family.distribution._parameter_shapes()
    return leaves(
        {
            name: value.expand((*batch_shape, *value.shape[value.dim() - len(shapes[name]) :]))
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


def sample_at(mixture: ParametricMixture, points: Tensor) -> Tensor:
    """``mixture.rsample`` with a chosen outcome ``(*sample_shape, *batch_shape, D)``.

    Only the drawing is replaced: shapes and the backward pass are the real ones.
    """

    def draw(mixture, sample_shape):
        z = points.reshape(-1, *mixture.core.batch_shape, points.shape[-1]).movedim(0, -2)
        return z, None, sample_shape + mixture.batch_shape

    sample_shape = points.shape[: points.dim() - 1 - len(mixture.batch_shape)]
    with mock.patch.object(MixtureDistribution, "_draw", draw):
        return mixture.rsample(sample_shape)


def beside_its_score(mixture: Any, z: Tensor) -> Tensor:
    """A sample in a loss that uses the mixture's score term, with a cost next to zero."""
    score = mixture.score_parts(z).score_function
    return z if isinstance(score, int) else z + torch.finfo(score.dtype).tiny * score.sum()


def same_group(mixture: Any) -> Tensor:
    """Which pairs of components share a group, ``(*B, K, K)``."""
    return mixture.groups.unsqueeze(-1) == mixture.groups.unsqueeze(-2)


def relative_error(actual: Parameters, expected: Parameters, size: float = 0.0) -> float:
    """The largest error of any entry, relative to the largest entry of the same parameter.

    One whose exact gradient vanishes is judged by the thousandth part of the largest of all, or of
    the ``size`` of what it sums: by symmetry all gradients of a parameter may vanish. The gradient
    of a ``control_var`` is that of the variance, not the exact one, which is zero.
    """
    expected = {
        name: value.detach()
        for name, value in expected.items()
        if name != "control_var" or value.any()
    }
    largest = max([size, *(float(value.abs().amax()) for value in expected.values())])
    errors = [0.0]
    for name, value in expected.items():
        error = (actual[name].detach().to(value) - value).abs().amax()
        errors.append(float(error / value.abs().amax().clamp_min(1e-3 * largest)))
    return max(errors, key=lambda error: float("inf") if error != error else error)


def covariance(component: Distribution) -> Tensor:
    """``(*B, K, D, D)``."""
    if isinstance(component, Independent):
        return component.variance.diag_embed()
    return component.covariance_matrix


def grid(reference: MixtureSameFamily, refinement: int = 1) -> tuple[Tensor, Tensor]:
    """Points ``(S, D)`` of a trapezoidal rule for a batch of mixtures, and the volume of a cell.

    For sums of Normals a step of 0.8 of the smallest scale (with the other coordinates given) is
    exact to 1e-13; times a function whose frequency is at most one, so is a step that has one more
    point in each period of it. A field that divides by the density of the coordinates before has
    poles beside the real line and needs a ``refinement`` of the steps, but for the last
    coordinate's. Components of negligible weight do not widen the grid.
    """
    component = reference.component_distribution
    live = reference.mixture_distribution.probs > 1e-20
    mean, stddev = component.mean.detach()[live], component.stddev.detach()[live]
    given = covariance(component).detach()[live].inverse().diagonal(dim1=-2, dim2=-1).rsqrt()
    steps = 1 / (1 / (0.8 * given.amin(0)) + 1 / (2 * torch.pi))
    steps[:-1] /= refinement
    low, high = (mean - 9 * stddev).amin(0), (mean + 9 * stddev).amax(0)
    axes = [
        torch.arange(float(a), float(b), float(h), dtype=mean.dtype)
        for a, b, h in zip(low, high, steps, strict=True)
    ]
    return torch.cartesian_prod(*axes).reshape(-1, len(axes)), steps.prod()


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def assert_same(actual: Tensor, expected: Tensor, parameters: Parameters) -> None:
    """Values in float64, and gradients of them."""
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)
    weights = torch.randn_like(expected)
    torch.testing.assert_close(
        gradients(actual, parameters, weights),
        gradients(expected, parameters, weights),
        rtol=1e-8,
        atol=1e-8,
    )
