"""Mixtures of any components have the densities, moments and supports of torch's own class."""

import pyro
import pytest
import torch
from torch.distributions import (
    AffineTransform,
    Beta,
    Categorical,
    Gamma,
    Independent,
    InverseGamma,
    Laplace,
    Pareto,
    StudentT,
    TransformedDistribution,
    Uniform,
    VonMises,
)

from pyro_mixtures import Mixture, MixtureSameFamily
from tests.families.registry import EXACT, SAME, each_components
from tests.registry import gradients, randn, relative_error


@each_components
@pytest.mark.parametrize(("batch_shape", "sample_shape"), [((), ()), ((2,), (2, 3))])
def test_densities(family, batch_shape, sample_shape):
    parameters, mixture = family.example(batch_shape)
    reference = family.reference(parameters)
    value = mixture.sample(sample_shape)
    assert value.shape == sample_shape + batch_shape + family.event(family.dimension)
    expected = reference.log_prob(value)
    assert mixture.log_prob(value).shape == expected.shape == sample_shape + batch_shape
    torch.testing.assert_close(mixture.log_prob(value), expected, **EXACT)
    actual = gradients(mixture.log_prob(value), parameters)
    assert relative_error(actual, gradients(expected, parameters)) < 1e-9

    components = family.component_log_prob(parameters, value)
    torch.testing.assert_close(mixture.component_log_prob(value), components, **EXACT)
    responsibilities = mixture.responsibilities(value)
    bayes = (parameters["logits"].log_softmax(-1) + components).softmax(-1)
    torch.testing.assert_close(responsibilities, bayes, **EXACT)
    torch.testing.assert_close(responsibilities.sum(-1), torch.ones_like(expected), **EXACT)


@each_components
@pytest.mark.parametrize("batch_shape", [(), (2,)])
def test_shapes_and_moments(family, batch_shape):
    parameters, mixture = family.example(batch_shape)
    reference = family.reference(parameters)
    assert mixture.batch_shape == reference.batch_shape == batch_shape
    assert mixture.event_shape == reference.event_shape
    assert mixture.num_components == 3
    assert mixture.has_rsample
    for name in ("mean", "variance", "stddev"):
        try:
            expected = getattr(reference, name)
        except NotImplementedError:
            with pytest.raises(NotImplementedError):
                getattr(mixture, name)
            continue
        actual = getattr(mixture, name)
        assert actual.shape == batch_shape + mixture.event_shape
        torch.testing.assert_close(actual, expected, equal_nan=True, **EXACT)


@each_components
def test_support(family):
    mixture = family.example((2,))[1]
    support = mixture.support
    assert support.event_dim == len(mixture.event_shape)
    several = getattr(mixture, "component_distributions", None)
    component = several[0] if several else mixture.component_distribution
    assert type(support) is type(component.support)
    assert support.check(mixture.sample((20,))).all()


@each_components
def test_the_arguments_are_properties(family):
    parameters, mixture = family.example((2,))
    torch.testing.assert_close(
        mixture.mixture_distribution.probs, parameters["logits"].softmax(-1), **EXACT
    )
    if isinstance(mixture, Mixture):
        assert [part.batch_shape for part in mixture.component_distributions] == [(2,)] * 3
        return
    assert isinstance(mixture, torch.distributions.MixtureSameFamily)
    assert isinstance(mixture, pyro.distributions.MixtureSameFamily)
    assert type(mixture.component_distribution) is type(family.build(parameters))
    assert mixture.component_distribution.batch_shape == (2, 3)


@each_components
def test_repr(family):
    _, mixture = family.example((2,))
    assert repr(mixture).startswith(type(mixture).__name__)
    assert repr(mixture.expand((4, 2))).startswith(type(mixture).__name__)


def is_univariate(name):
    """Whether coordinates are independent and share no end that is a parameter."""
    family = SAME[name]
    components = family.build(family.parameters(D=1))
    return isinstance(components, Independent) and name not in ("pareto", "uniform")


each_univariate = pytest.mark.parametrize(
    "family", [pytest.param(SAME[name], id=name) for name in SAME if is_univariate(name)]
)


@each_univariate
def test_cdf(family):
    """That of torch where it has one; its slope is the density everywhere."""
    parameters = family.parameters(K=1, D=3)
    logits = torch.tensor([[0.3, -0.4, 0.1]], dtype=torch.float64, requires_grad=True)
    # the coordinates of one vector stand for the components
    arguments = Categorical(logits=logits), family.build(parameters).base_dist
    parameters["logits"] = logits
    mixture = MixtureSameFamily(*arguments)
    value = mixture.sample((7,)).requires_grad_()
    cdf = mixture.cdf(value)
    assert cdf.shape == (7, 1)
    reference = torch.distributions.MixtureSameFamily(*arguments)
    try:
        expected = reference.cdf(value)
    except NotImplementedError:
        assert isinstance(arguments[1], (Beta, StudentT, VonMises))
    else:
        torch.testing.assert_close(cdf, expected, rtol=1e-8, atol=1e-10)
        if not isinstance(arguments[1], (Gamma, InverseGamma)):  # torch differentiates no igamma
            values = [gradients(x, parameters) for x in (cdf, expected)]
            assert relative_error(*values) < 1e-8
    (slope,) = torch.autograd.grad(cdf.sum(), value)
    torch.testing.assert_close(slope, mixture.log_prob(value).exp(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    "components",
    [
        Uniform(torch.zeros(3), torch.full((3,), 2.0)),
        Pareto(torch.ones(3), torch.tensor([1.0, 2.0, 3.0])),
        Gamma(torch.tensor([0.5, 1.0, 3.0]), 1.0),
    ],
    ids=lambda components: type(components).__name__,
)
def test_cdf_of_broadcast_values(components):
    weights = Categorical(logits=torch.tensor([0.3, -0.4, 0.1]).expand(2, 3))
    mixture = MixtureSameFamily(weights, components)
    value = torch.tensor([[1.1], [1.9]])
    expected = (weights.probs * components.cdf(value.unsqueeze(-1))).sum(-1)
    assert mixture.cdf(value).shape == (2, 2)
    torch.testing.assert_close(mixture.cdf(value), expected)
    assert mixture.cdf(torch.tensor(1.5)).shape == (2,)


def test_independent_of_no_dimensions():
    """As good as what is in it."""
    plain = Laplace(randn(3), randn(3).exp())
    value = randn(4)
    expected = MixtureSameFamily(Categorical(torch.ones(3).double()), plain)
    for components in (
        Independent(plain, 0),
        TransformedDistribution(Independent(plain, 0), AffineTransform(0.0, 1.0)),
    ):
        mixture = MixtureSameFamily(Categorical(torch.ones(3).double()), components)
        torch.testing.assert_close(mixture.log_prob(value), expected.log_prob(value))
        torch.testing.assert_close(mixture.cdf(value), expected.cdf(value))
