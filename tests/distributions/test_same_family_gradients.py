"""Samples of mixtures of any components, and their gradients."""

import math

import pytest
import torch
from torch.distributions import (
    AffineTransform,
    Categorical,
    Exponential,
    Gamma,
    Independent,
    Laplace,
    TransformedDistribution,
)

from pyro_mixtures import Mixture, MixtureSameFamily
from tests.families.registry import (
    COMPONENTS,
    EXACT,
    bounded_cost,
    cost_gradients,
    each_components,
    each_same,
)
from tests.registry import gradients, leaves, randn, relative_error


@each_components
def test_values_are_those_given(family):
    """To the last bit, and their own history is cut."""
    parameters, mixture = family.example((2,))
    points = mixture.rsample((5,))
    z = mixture.reparameterize(points)
    assert torch.equal(z, points)
    expected = cost_gradients(mixture, points.detach().clone(), parameters)
    actual = gradients(bounded_cost(z, len(mixture.event_shape)), parameters)
    assert relative_error(actual, expected) < 1e-12
    if family is not COMPONENTS["uniform"]:  # whose components are all the same
        assert all(value.abs().max() > 0 for value in actual.values())


@each_components
def test_constants_among_the_parameters(family):
    """A gradient reaches each parameter whether or not others ask for one."""
    parameters, mixture = family.example((2,))
    points = mixture.sample((5,))
    expected = cost_gradients(mixture, points, parameters)
    constants = {name: value.detach() for name, value in parameters.items()}
    assert not family.mixture(constants).reparameterize(points).requires_grad
    for name in parameters:
        one = leaves({name: parameters[name]})
        actual = cost_gradients(family.mixture({**constants, **one}), points, one)[name]
        torch.testing.assert_close(actual, expected[name], **EXACT)


@each_components
@pytest.mark.parametrize("linear", [True, False])
def test_second_derivative_is_refused(family, linear):
    parameters, mixture = family.example()
    z = mixture.rsample((3,))
    total = z.sum() if linear else bounded_cost(z, len(mixture.event_shape)).sum()
    first = torch.autograd.grad(total, list(parameters.values()), create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        sum(gradient.square().sum() for gradient in first).backward()


@each_same
def test_weights_given_by_probabilities(family):
    """Gradients reach them: those of the logits, by the chain rule."""
    parameters, mixture = family.example((2,))
    probs = parameters["logits"].detach().softmax(-1).requires_grad_()
    components = family.build(parameters)
    by_probs = MixtureSameFamily(Categorical(probs=probs), components)
    points = mixture.sample((5,))
    torch.testing.assert_close(by_probs.log_prob(points), mixture.log_prob(points), **EXACT)
    logits = cost_gradients(mixture, points, parameters)["logits"]
    actual = cost_gradients(by_probs, points, {"probs": probs})["probs"]
    # torch's class normalizes probabilities, so that adding to all of them changes nothing
    expected = logits / probs
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-10)


def has_common_field(family):
    """Whether the coordinates of the weights' field do not depend on the components."""
    names = ("multivariate_student_t", "shared_tanh_student_t", "mixed_elliptical")
    return family not in [COMPONENTS[name] for name in names]


@each_components
def test_dead_components(family):
    """A component of weight zero changes nothing and gets no gradient."""
    parameters = family.parameters(K=2, D=family.dimension)
    doubled = leaves(
        {
            name: torch.cat([value, value[:1]]) if len(value) == 2 else value
            for name, value in parameters.items()
        }
    )
    with torch.no_grad():
        doubled["logits"][2] = -math.inf
    mixture, larger = family.mixture(parameters), family.mixture(doubled)
    points = mixture.sample((6,))
    torch.testing.assert_close(larger.log_prob(points), mixture.log_prob(points), **EXACT)
    expected = cost_gradients(mixture, points, parameters)
    actual = cost_gradients(larger, points, doubled)
    for name, value in expected.items():
        assert not actual[name][len(value) :].any()
        if name == "logits" and not has_common_field(family):
            assert actual[name].isfinite().all()
            continue
        torch.testing.assert_close(actual[name][: len(value)], value, **EXACT)
    responsibilities = larger.responsibilities(larger.sample((50,)))
    assert not responsibilities[..., 2].any()


@each_components
def test_one_component(family):
    """Its gradients are those of a mixture of it and itself."""
    parameters = family.parameters(K=1, D=family.dimension)
    mixture = family.mixture(parameters)
    z = mixture.rsample((5,))
    actual = gradients(bounded_cost(z, len(mixture.event_shape)), parameters)
    assert not actual.pop("logits").any()
    if isinstance(mixture, Mixture):
        return
    shapes = family.parameters(K=2, D=family.dimension)
    twice = leaves({name: value.expand_as(shapes[name]) for name, value in parameters.items()})
    expected = cost_gradients(family.mixture(twice), z.detach(), twice)
    assert expected.pop("logits").abs().max() < 1e-12
    for name, value in actual.items():
        torch.testing.assert_close(expected[name].sum_to_size(value.shape), value, **EXACT)


# what parameters were computed from


def test_a_network_that_gives_parameters():
    """Gradients reach its weights, as the chain rule says."""
    network = torch.nn.Linear(2, 9).double()
    inputs = randn(5, 2)

    def parameters():
        locs, scales, logits = network(inputs).split(3, -1)
        return locs, torch.nn.functional.softplus(scales), logits

    def mixture(locs, scales, logits):
        return MixtureSameFamily(Categorical(logits=logits), Laplace(locs, scales))

    points = mixture(*parameters()).sample((10,))
    z = mixture(*parameters()).reparameterize(points)
    actual = torch.autograd.grad(z.sin().sum(), list(network.parameters()))
    cut = [value.detach().requires_grad_() for value in parameters()]
    z = mixture(*cut).reparameterize(points)
    inner = torch.autograd.grad(z.sin().sum(), cut)
    expected = torch.autograd.grad(parameters(), list(network.parameters()), inner)
    torch.testing.assert_close(actual, expected, **EXACT)
    assert min(float(value.abs().max()) for value in actual) > 1e-3


@pytest.mark.parametrize("event_dims", [0, 1])
def test_parameters_of_a_transform(event_dims):
    """Those of a location-scale family, written as a transform of its standard member."""
    shape = (3, 2)[: 1 + event_dims]
    loc, scale, logits = randn(*shape), 0.5 + randn(*shape).exp(), randn(3)
    parameters = leaves({"loc": loc, "scale": scale, "logits": logits})
    loc, scale, logits = parameters.values()
    base = Laplace(torch.zeros(shape).double(), torch.ones(shape).double())
    plain = Laplace(loc, scale)
    if event_dims:
        base, plain = Independent(base, 1), Independent(plain, 1)
    written = TransformedDistribution(base, AffineTransform(loc, scale, event_dim=event_dims))
    results = []
    for components in (written, plain):
        mixture = MixtureSameFamily(Categorical(logits=logits), components)
        if not results:
            points = mixture.sample((20,))
        results.append(cost_gradients(mixture, points, parameters))
    assert relative_error(*results) < 1e-10
    assert all(value.abs().max() > 1e-3 for value in results[0].values())


def test_parameters_that_share_an_origin():
    """One tensor may give locations, scales and weights at once."""
    x = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)

    def mixture(a, b, c):
        return MixtureSameFamily(Categorical(logits=c), Gamma(a.exp(), 1 + b.square()))

    points = mixture(x, x, x).sample((10,))
    (total,) = torch.autograd.grad(mixture(x, x, x).reparameterize(points).sin().sum(), x)
    cut = [x.detach().clone().requires_grad_() for _ in range(3)]
    parts = torch.autograd.grad(mixture(*cut).reparameterize(points).sin().sum(), cut)
    torch.testing.assert_close(total, sum(parts), **EXACT)
    assert all(part.abs().max() > 1e-3 for part in parts)


def test_exponential_is_gamma():
    """Two families with rules of their own agree where they coincide."""
    rate = torch.tensor([0.5, 1.3, 2.0], dtype=torch.float64, requires_grad=True)
    logits = randn(3).requires_grad_()
    points = torch.linspace(0.01, 9, 50, dtype=torch.float64)
    parameters = {"rate": rate, "logits": logits}
    results = [
        cost_gradients(MixtureSameFamily(Categorical(logits=logits), family), points, parameters)
        for family in (Exponential(rate), Gamma(torch.ones(3).double(), rate))
    ]
    assert relative_error(*results) < 1e-10
