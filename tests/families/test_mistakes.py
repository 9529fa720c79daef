"""Mistakes in arguments and values raise errors that say what was given and what was expected."""

import math

import pytest
import torch
from torch.distributions import (
    AffineTransform,
    Dirichlet,
    Exponential,
    Gamma,
    Independent,
    Laplace,
    LogNormal,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    Pareto,
    Uniform,
)

from pyro_mixtures import Mixture, MixtureSameFamily
from tests.families.refusing import (
    EYE,
    ONE,
    TWO,
    VECTORS,
    assert_refused,
    mixed,
    refused,
    same,
    transformed,
    weights,
)

MISTAKES = {
    "intervals": (
        lambda: same(Uniform(torch.tensor([0.25, 0.5]), 2 * TWO)),
        ["same support", "lower ends 0.25 and 0.5 (Uniform)", "TransformedDistribution"],
    ),
    "scales of Pareto": (
        lambda: same(Pareto(torch.tensor([1.0, 1.5]), ONE)),
        ["same support", "lower ends 1 and 1.5"],
    ),
    "shifts": (
        lambda: same(transformed(Exponential(ONE), AffineTransform(TWO, 1.0))),
        ["same support", "lower ends 1 and 2"],
    ),
    "directions": (
        lambda: same(transformed(Exponential(ONE), AffineTransform(0.0, torch.tensor([1.0, -1])))),
        ["same support", "lower ends 0 and -inf"],
    ),
    "one coordinate": (
        lambda: same(Independent(Uniform(0.25 * EYE[:2], 2 * torch.ones(2, 3)), 1)),
        ["same support", "0.25"],
    ),
    "one of a batch": (
        lambda: same(Uniform(torch.zeros(2, 2), torch.tensor([[1.0, 1.0], [1.0, 1.25]])), 2, 2),
        ["same support", "upper ends 1 and 1.25"],
    ),
    "no batch": (
        lambda: same(Normal(0.0, 1.0)),
        ["component_distribution", "(*B, K)", "Normal", "batch shape ()"],
    ),
    "vectors without a batch": (
        lambda: same(MultivariateNormal(torch.zeros(3), EYE)),
        ["component_distribution", "(*B, K)", "batch shape ()"],
    ),
    "number of components": (
        lambda: same(Gamma(ONE, 1.0), 3),
        ["mixture_distribution", "(3)", "component_distribution", "(2)"],
    ),
    "number of Normal components": (
        lambda: same(Normal(ONE, 1.0), 3),
        ["mixture_distribution", "(3)", "component_distribution", "(2)"],
    ),
    "one component for all": (lambda: same(Gamma(torch.ones(1), 1.0), 3), ["(3)", "(1)"]),
    "batch shapes": (
        lambda: same(Gamma(torch.ones(4, 2), 1.0), 3, 2),
        ["mixture_distribution", "[3]", "component_distribution", "[4]"],
    ),
    "transport": (
        lambda: same(Gamma(ONE, 1.0), transport="teleport"),
        ["transport", "telescoping", "'teleport'"],
    ),
    "transport of Normals": (
        lambda: same(Normal(ONE, 1.0), transport="teleport"),
        ["transport", "displacement", "telescoping", "'teleport'"],
    ),
    "displacement of others": (
        lambda: same(Gamma(ONE, 1.0), transport="displacement"),
        ["transport", "telescoping", "'displacement'"],
    ),
    "weight_gradient": (
        lambda: same(Gamma(ONE, 1.0), weight_gradient="exact"),
        ["weight_gradient", "clustered, pathwise, hybrid", "'exact'"],
    ),
    "weight_gradient of Normals": (
        lambda: same(Normal(ONE, 1.0), weight_gradient="exact"),
        ["weight_gradient", "clustered, pathwise, hybrid", "'exact'"],
    ),
    "weights in a tensor": (
        lambda: MixtureSameFamily(ONE, Gamma(ONE, 1.0)),
        ["Mixture distribution", "Categorical"],
    ),
    "one-hot weights": (
        lambda: MixtureSameFamily(OneHotCategorical(ONE / 2), Gamma(ONE, 1.0)),
        ["Mixture distribution", "Categorical"],
    ),
    "components in a list": (
        lambda: same([Gamma(1.0, 1.0)] * 2),
        ["Component distribution", "Distribution"],
    ),
    "mixed event shapes": (
        lambda: mixed(Normal(0.0, 1.0), MultivariateNormal(torch.zeros(3), EYE)),
        ["event shape", "()", "(3,)"],
    ),
    "mixed supports": (
        lambda: mixed(Normal(0.0, 1.0), Gamma(1.0, 1.0)),
        ["same support", "-inf and 0", "Normal on Real()", "Gamma on", "TransformedDistribution"],
    ),
    "vectors of different supports": (
        lambda: mixed(Dirichlet(torch.ones(3)), MultivariateNormal(torch.zeros(3), EYE)),
        ["same support", "Dirichlet on Simplex()", "MultivariateNormal", "map each onto it"],
    ),
    "mixed ends": (
        lambda: mixed(Gamma(1.0, 1.0), Pareto(2.0, 1.0)),
        ["same support", "lower ends 0 and 2"],
    ),
    "mixed number": (
        lambda: Mixture(weights(3), [Normal(0.0, 1.0), Laplace(0.0, 1.0)]),
        ["3 components", "mixture_distribution", "got 2"],
    ),
    "no components": (lambda: Mixture(weights(2), []), ["2 components", "got 0"]),
    "mixed batch shapes": (
        lambda: Mixture(weights(3, 2), [Normal(torch.ones(4), 1.0), Laplace(0.0, 1.0)]),
        ["mixture_distribution", "broadcast", "(3,), (4,), ()"],
    ),
    "mixed weights in a tensor": (
        lambda: Mixture(ONE, [Normal(0.0, 1.0), Laplace(0.0, 1.0)]),
        ["mixture_distribution", "Categorical", "Tensor"],
    ),
    "mixed transport": (
        lambda: mixed(Normal(0.0, 1.0), Normal(1.0, 1.0), transport="displacement"),
        ["transport", "telescoping", "'displacement'"],
    ),
    "mixed weight_gradient": (
        lambda: mixed(Normal(0.0, 1.0), Laplace(1.0, 1.0), weight_gradient="exact"),
        ["weight_gradient", "clustered, pathwise, hybrid", "'exact'"],
    ),
}


@refused(MISTAKES)
def test_mistakes(build, words):
    assert_refused(ValueError, build, words)


@pytest.mark.parametrize("method", ["log_prob", "component_log_prob", "responsibilities", "cdf"])
@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: same(Gamma(ONE, 1.0)), id="same family"),
        pytest.param(lambda: same(LogNormal(ONE, 1.0)), id="transformed"),
        pytest.param(lambda: mixed(Gamma(1.0, 1.0), LogNormal(0.0, 1.0)), id="mixed"),
    ],
)
def test_values_outside_the_support(build, method):
    for bad in (-1.0, math.nan):
        with pytest.raises(ValueError, match="value argument"):
            getattr(build(), method)(torch.tensor([1.0, bad]))


@pytest.mark.parametrize("method", ["log_prob", "component_log_prob", "responsibilities"])
@pytest.mark.parametrize("components", [VECTORS, Independent(Normal(EYE[:2], 1.0), 1)])
def test_values_of_another_shape(components, method):
    for shape in ((2,), (5, 4)):
        with pytest.raises((ValueError, RuntimeError), match=r"(?i)shape|size"):
            getattr(same(components), method)(torch.zeros(shape))
