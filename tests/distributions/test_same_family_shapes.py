"""Mixtures of any components keep to torch's shapes, and to Pyro's uses of them."""

import copy
import pickle

import pyro
import pytest
import torch
from pyro import poutine
from torch.distributions import Categorical

from pyro_mixtures import MixtureSameFamily
from tests.families.registry import (
    EXACT,
    cost_gradients,
    each_components,
    each_same,
    some_components,
)
from tests.registry import gradients, leaves, relative_error


@each_same
def test_broadcasting(family):
    """Of weights for several mixtures with one set of components, and the reverse."""
    one, many = (family.parameters(shape, D=family.dimension) for shape in ((), (2,)))
    for components, weights in ((many, one), (one, many)):
        parameters = leaves({**components, "logits": weights["logits"]})
        built = family.build({**parameters, "logits": components["logits"]})
        mixture = MixtureSameFamily(Categorical(logits=parameters["logits"]), built)
        full = leaves({name: x.expand_as(many[name]) for name, x in parameters.items()})
        explicit = family.mixture(full)
        assert mixture.batch_shape == (2,)
        assert mixture.rsample((4,)).shape == (4, 2, *mixture.event_shape)
        points = explicit.sample((5,))
        torch.testing.assert_close(mixture.log_prob(points), explicit.log_prob(points), **EXACT)
        actual = cost_gradients(mixture, points, parameters)
        expected = cost_gradients(explicit, points, full)
        for name, value in parameters.items():
            torch.testing.assert_close(
                actual[name], expected[name].sum_to_size(value.shape), **EXACT
            )


def assert_expands(family, batch_shape, expanded):
    """To the same as parameters repeated in memory."""
    parameters, small = family.example(batch_shape)
    full = leaves(
        {
            name: value.expand(*expanded, *value.shape[len(batch_shape) :])
            for name, value in parameters.items()
        }
    )
    mixture, explicit = small.expand(expanded), family.mixture(full)
    assert type(mixture) is type(small)
    assert mixture.batch_shape == expanded
    assert mixture.event_shape == small.event_shape
    assert mixture.rsample((5,)).shape == (5, *expanded, *mixture.event_shape)
    points = explicit.sample((5,))
    torch.testing.assert_close(mixture.log_prob(points), explicit.log_prob(points), **EXACT)
    actual = cost_gradients(mixture, points, parameters)
    expected = cost_gradients(explicit, points, full)
    sums = {name: value.sum_to_size(parameters[name].shape) for name, value in expected.items()}
    assert relative_error(actual, sums) < 1e-10


@each_components
def test_expand(family):
    assert_expands(family, (2,), (3, 2))


@some_components("normal", "gamma_scalar", "dirichlet", "shared_affine_laplace", "mixed_real")
@pytest.mark.parametrize(("batch_shape", "expanded"), [((), (4,)), ((1,), (2,))])
def test_expand_other_shapes(family, batch_shape, expanded):
    assert_expands(family, batch_shape, expanded)


@each_components
@pytest.mark.parametrize("weight_gradient", ["clustered", "hybrid"])
def test_expand_keeps_the_options(family, weight_gradient):
    parameters = family.parameters((2,), D=family.dimension, spread=4.0)
    try:
        mixture = family.mixture(parameters, weight_gradient=weight_gradient)
    except NotImplementedError as error:
        assert "moments" in str(error) or "standard deviations" in str(error)  # noqa: PT017
        return
    expanded = mixture.expand((3, 2))
    assert (expanded.weight_gradient, expanded.transport) == (weight_gradient, mixture.transport)
    value = mixture.sample((5,)).unsqueeze(1)
    parts, expected = expanded.score_parts(value), mixture.score_parts(value)
    torch.testing.assert_close(
        torch.as_tensor(parts.score_function).expand(5, 3, 2),
        torch.as_tensor(expected.score_function).expand(5, 1, 2).expand(5, 3, 2),
    )


# torch's Independent has no density of no points
@some_components("normal", "gamma_scalar", "dirichlet")
@pytest.mark.parametrize("batch_shape", [(), (2,)])
def test_no_samples(family, batch_shape):
    parameters, mixture = family.example(batch_shape)
    z = mixture.rsample((0,))
    assert z.shape == (0, *batch_shape, *mixture.event_shape)
    assert mixture.log_prob(z).shape == (0, *batch_shape)
    assert not any(value.any() for value in gradients(z, parameters).values())


# Pyro


@each_components
def test_to_event_and_mask(family):
    _, mixture = family.example((2, 3))
    value = mixture.sample((4,))
    log_prob = mixture.log_prob(value)
    event = mixture.to_event(1)
    assert event.batch_shape == (2,)
    assert event.event_shape == (3, *mixture.event_shape)
    torch.testing.assert_close(event.log_prob(value), log_prob.sum(-1), **EXACT)
    assert event.rsample().requires_grad
    mask = torch.tensor([True, False, True])
    torch.testing.assert_close(mixture.mask(mask).log_prob(value), log_prob * mask, **EXACT)


@each_components
def test_in_a_plate(family):
    parameters = family.parameters(D=family.dimension)

    def model():
        with pyro.plate("outer", 4, dim=-2), pyro.plate("inner", 5, dim=-1):
            return pyro.sample("z", family.mixture(parameters))

    trace = poutine.trace(model).get_trace()
    trace.compute_log_prob()
    site = trace.nodes["z"]
    assert site["value"].shape == (4, 5, *family.event(family.dimension))
    expected = family.reference(parameters).log_prob(site["value"])
    torch.testing.assert_close(site["log_prob"], expected, **EXACT)
    assert len(site["value"].detach().flatten(0, 1).unique(dim=0)) == 20
    assert all(g.isfinite().all() for g in gradients(site["value"], parameters).values())


@each_components
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda q: pickle.loads(pickle.dumps(q))])
def test_copies(family, duplicate):
    parameters = family.parameters((2,), D=family.dimension)
    mixture = family.mixture(
        {name: value.detach() for name, value in parameters.items()}, weight_gradient="hybrid"
    )
    for original in (mixture, mixture.expand((3, 2))):
        value = original.sample((4,))
        original.rsample((2,))
        twin = duplicate(original)
        assert (twin.transport, twin.weight_gradient) == (original.transport, "hybrid")
        assert torch.equal(twin.log_prob(value), original.log_prob(value))
        assert twin.sample((4,)).shape == value.shape
