"""``torch.compile`` takes a whole step of variational inference as one graph."""

import pytest
import torch

from tests.pairwise import in_turn
from tests.registry import (
    FAMILIES,
    each_family,
    each_transport,
    each_transport_in_turn,
    relative_error,
)

pytestmark = pytest.mark.filterwarnings("default")  # torch warns about its own code


def cost(z):
    return z.sum(-1).cos() + z.pow(3).sum(-1)


def assert_same(family, sample_shape=(5,), backend="aot_eager", **options):
    """The ELBO and its gradient, compiled and not, with the same random numbers."""
    torch._dynamo.reset()
    parameters = family.parameters(K=4, D=2, **family.groups)

    def elbo(parameters):
        mixture = family.build(parameters, validate_args=False, **options)
        z = mixture.rsample(sample_shape)
        return (cost(z) - mixture.log_prob(z)).sum()

    results = []
    for step in (elbo, torch.compile(elbo, fullgraph=True, backend=backend)):
        torch.manual_seed(1)
        value = step(parameters)
        # the graph may be used up: compiled ones reuse its memory
        values = torch.autograd.grad(value, list(parameters.values()))
        results.append((value.detach(), dict(zip(parameters, values, strict=True))))
    (expected, expected_gradients), (actual, actual_gradients) = results
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    assert relative_error(actual_gradients, expected_gradients) < 1e-8


@each_transport_in_turn
def test_several_samples(family, transport):
    assert_same(family, transport=transport)


@pytest.mark.slow
@each_transport
def test_each_transport(family, transport):
    assert_same(family, transport=transport)


@in_turn
@pytest.mark.parametrize("name", ["diag_normals", "normals_shared", "scale_mixture"])
@pytest.mark.parametrize("weight_gradient", ["pathwise", "clustered"])
def test_one_sample(name, weight_gradient):
    """Without the score term, which Pyro's objectives ask for."""
    assert_same(FAMILIES[name], sample_shape=(), weight_gradient=weight_gradient)


@pytest.mark.slow
@each_family
def test_generated_code(family):
    with torch._inductor.config.patch(fallback_random=True):  # eager mode's random numbers
        assert_same(family, backend="inductor")
