"""Means of sampled gradients against exact ones, where grids do not reach.

The cost is a product of univariate ones, whose expectation under independent coordinates takes
univariate quadratures only, or a function of a linear form, which for elliptical laws is
univariate, too. Costs are bounded, and their slopes fall off as the tails are long.
"""

import math

import pytest
import torch
from pyro.distributions import MultivariateStudentT
from torch import Tensor
from torch.distributions import Dirichlet, Independent, Normal, StudentT

from tests.families.registry import COMPONENTS, Components
from tests.families.test_unbiased_grid import axis, is_end, on_line
from tests.registry import Parameters, gradients, leaves

REPLICAS = 2000
# Normal tails give 6e-7 for each entry beyond 5 standard errors. The tests below compare some 8e3
# entries: a false alarm for 5 seeds in 1000. The seed is fixed.
THRESHOLD = 5.0


def wave(x: Tensor) -> Tensor:
    """Neither even nor odd; of one number for each coordinate ``(..., D)``."""
    coordinates = torch.arange(x.shape[-1], dtype=x.dtype)
    return 1 + 0.5 * ((0.8 + 0.2 * coordinates) * x.asinh() + coordinates).sin()


def component_means(family, parameters: Parameters, mean, *arrays: Tensor) -> Tensor:
    """``(*B, K)``, by a function of components and of arrays ``(S, *B or 1, 1, ...)``."""
    components = family.build(parameters)
    if not isinstance(components, list):
        return mean(components, *arrays)
    arrays = tuple(x.squeeze(parameters["logits"].dim()) for x in arrays)
    return torch.stack([mean(component, *arrays) for component in components], -1)


def line(family: Components, parameters: Parameters) -> tuple[Tensor, Tensor]:
    """Points ``(S, *B or 1, 1, D or 1)`` of each coordinate's interval, and weights."""
    low, high = family.interval(parameters)
    far = 450.0 if family.moments else 1e12
    start = -90.0 if is_end(low) else -far
    kinks = family.kinks(parameters).detach().flatten() if family.kinks else torch.zeros(0)
    s, weights = axis(1, start, 36.0 if is_end(high) else far, kinks)
    if is_end(low) and not (isinstance(low, float) and low == 0):
        inside = (s > -30) & (s < 30 if is_end(high) else True)  # not rounded to an end
        s, weights = s[inside], weights[inside]
    ones = (1,) * (parameters["logits"].dim() + 1)
    z, log_slope = on_line(s.reshape(-1, *ones), low, high)
    return z, weights.reshape(-1, *ones) * log_slope.exp()


class Product:
    """Of families with independent coordinates."""

    @staticmethod
    def cost(z: Tensor) -> Tensor:
        return wave(z).prod(-1)

    @staticmethod
    def expected(family: Components, parameters: Parameters, D: int) -> Tensor:
        """Of each component, ``(*B, K)``."""
        z, weights = line(family, parameters)
        weighted = weights * wave(z.expand(*z.shape[:-1], D))

        def mean(component, z, weighted):
            return (component.base_dist.log_prob(z).exp() * weighted).sum(0).prod(-1)

        return component_means(family, parameters, mean, z, weighted)


class Elliptical:
    """Of a linear form."""

    @staticmethod
    def direction(D: int) -> Tensor:
        return torch.linspace(0.5, 1.5, D, dtype=torch.float64) / D**0.5

    @classmethod
    def cost(cls, z: Tensor) -> Tensor:
        return cls.wave((z @ cls.direction(z.shape[-1])).unsqueeze(-1)).squeeze(-1)

    @staticmethod
    def wave(t: Tensor) -> Tensor:
        return (1.5 * (t - 0.5).asinh() + 0.5).sin()

    @classmethod
    def expected(cls, family: Components, parameters: Parameters, D: int) -> Tensor:
        t, weights = line(family, parameters)
        weighted = weights * cls.wave(t)

        def mean(component, t, weighted):
            loc = component.loc @ cls.direction(D)
            scale = torch.linalg.vector_norm(component.scale_tril.mT @ cls.direction(D), dim=-1)
            form = Normal(loc, scale)
            if isinstance(component, MultivariateStudentT):
                form = StudentT(component.df, loc, scale)
            return (form.log_prob(t.squeeze(-1)).exp() * weighted.squeeze(-1)).sum(0)

        return component_means(family, parameters, mean, t, weighted)


class Monomials:
    """Of a simplex."""

    @staticmethod
    def powers(D: int) -> Tensor:
        """Two terms ``(2, D + 1)``."""
        return torch.stack([torch.arange(D + 1.0) % 3, torch.arange(D + 1.0) % 2]).double()

    @classmethod
    def cost(cls, z: Tensor) -> Tensor:
        scales = torch.tensor([1e4, 1e2]).double()
        return (z.unsqueeze(-2).pow(cls.powers(z.shape[-1] - 1)).prod(-1) * scales).sum(-1)

    @classmethod
    def expected(cls, family: Components, parameters: Parameters, D: int) -> Tensor:
        concentration = parameters["concentration"].unsqueeze(-2)
        total, powers = concentration.sum(-1), cls.powers(D)
        log_means = ((concentration + powers).lgamma() - concentration.lgamma()).sum(-1)
        log_means = log_means + total.lgamma() - (total + powers.sum(-1)).lgamma()
        return (log_means.exp() * torch.tensor([1e4, 1e2]).double()).sum(-1)


def problem_of(family: Components) -> type | None:
    """None where no expectation is known: the grids judge those."""
    components = family.build(family.parameters(D=family.dims[0]))
    component = components[0] if isinstance(components, list) else components
    if isinstance(component, Dirichlet):
        return Monomials
    if hasattr(component, "scale_tril"):
        return Elliptical
    return Product if isinstance(component, Independent) else None


each_problem = pytest.mark.parametrize(
    ("family", "problem"),
    [
        pytest.param(family, problem_of(family), id=name)
        for name, family in COMPONENTS.items()
        if 5 in family.dims and problem_of(family)
    ],
)


def assert_mean(samples: Tensor, expected: Tensor) -> None:
    """Over the first dimension; a standard error of zero is for what is exactly so."""
    standard_error = (samples.std(0) / len(samples) ** 0.5).clamp_min(1e-12)
    assert ((samples.mean(0) - expected) / standard_error).abs().max() < THRESHOLD


def expected_cost(family, problem, parameters: Parameters, D: int) -> Tensor:
    """``(*B,)``."""
    return (parameters["logits"].softmax(-1) * problem.expected(family, parameters, D)).sum(-1)


@each_problem
@pytest.mark.parametrize(
    ("weight_gradient", "batch_shape", "sample_shape"),
    [("pathwise", (2,), ()), ("pathwise", (3, 1), (4,)), ("hybrid", (), (2, 3))],
)
def test_mean_gradient(family, problem, weight_gradient, batch_shape, sample_shape):
    D = 5
    settings = {"scales": (0.7, 1.4), "spread": 0.7, "seed": 7}
    parameters = family.parameters(batch_shape, K=3, D=D, **settings)
    replicas = leaves({name: x.expand(REPLICAS, *x.shape) for name, x in parameters.items()})
    mixture = family.mixture(replicas, weight_gradient=weight_gradient)
    z = mixture.rsample(sample_shape)
    score = torch.as_tensor(mixture.score_parts(z.detach()).score_function)
    value = problem.cost(z)
    count = math.prod(sample_shape)
    estimate = gradients((value + value.detach() * score).sum() / count, replicas)
    expected = expected_cost(family, problem, parameters, D)
    rows = value.detach().reshape(count, REPLICAS, *batch_shape)
    assert_mean(rows.mean(0), expected)
    for name, exact in gradients(expected.sum(), parameters).items():
        assert_mean(estimate[name], exact)


@each_problem
def test_samples(family, problem):
    """They come from the mixture, each entry of a batch from its own, and are independent."""
    parameters = family.parameters((3, 1), K=4, D=5, spread=3.0, scales=(0.3, 3.0))
    parameters = {name: value.detach() for name, value in parameters.items()}
    z = family.mixture(parameters).sample((10_000, 2))  # (S, 2, 3, 1, *E)
    value = problem.cost(z)
    expected = expected_cost(family, problem, parameters, 5)
    assert_mean(value.flatten(0, 1), expected)
    deviation = (value - expected).flatten(1)  # (S, 2 * 3)
    products = deviation.unsqueeze(-1) * deviation.unsqueeze(-2)
    assert_mean(products.flatten(1)[:, ~torch.eye(6, dtype=torch.bool).flatten()], 0.0)
