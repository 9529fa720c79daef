"""Mixtures of any components keep to torch's shapes, and to Pyro's uses of them."""

import copy
import pickle

import pytest
import torch
from torch.distributions import Categorical

from pyro_mixtures import MixtureSameFamily
from tests.families.registry import (
    EXACT,
    cost_gradients,
    each_components,
    each_same,
)
from tests.registry import leaves


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
# Pyro


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
