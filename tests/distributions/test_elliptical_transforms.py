"""Second derivatives, torch.func and torch.compile."""

import pytest
import torch
from torch.func import grad, vmap

from tests.elliptical import each_law, sample_at, sampled
from tests.pairwise import in_turn
from tests.registry import gradients, leaves, randn, relative_error

BATCH = 4

# torch's Gamma clamps in place, for which vmap has no rule of its own
gamma_under_vmap = pytest.mark.filterwarnings("ignore:There is a performance drop")


def cost(z):
    return z.sum(-1).cos() + z.pow(3).sum(-1)


@each_law
@pytest.mark.parametrize("sample_shape", [(), (3,)])
def test_second_derivative_is_refused(law, sample_shape):
    parameters = law.parameters()
    z = law.build(parameters).rsample(sample_shape)
    factor = parameters["scale_tril"]
    first = torch.autograd.grad(cost(z).sum(), factor, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match=r"second derivatives .* log_prob"):
        first.sum().backward()


@each_law
def test_second_derivative_of_log_prob(law):
    parameters = law.parameters()
    value = randn(3, 3)

    def second(distribution):
        log_prob = distribution.log_prob(value)
        first = torch.autograd.grad(log_prob.sum(), parameters["loc"], create_graph=True)[0]
        return gradients(first.cos().sum(), parameters)

    assert relative_error(second(law.build(parameters)), second(law.reference(parameters))) < 1e-9


@each_law
@gamma_under_vmap
@pytest.mark.parametrize("sample_shape", [(), (5,)])
def test_vmap_of_grad(law, sample_shape):
    batched = law.parameters((BATCH,))

    def loss(parameters):
        z = law.build(parameters, validate_args=False).rsample(sample_shape)
        return cost(z).sum(), z

    actual, samples = vmap(grad(loss, has_aux=True), randomness="different")(batched)
    assert samples.shape == (BATCH, *sample_shape, 3)
    assert len(samples.detach().unique()) == samples.numel()
    points = samples.detach().movedim(0, -2)
    expected = gradients(cost(sample_at(law.build(batched), points)), sampled(batched))
    assert relative_error(actual, expected) < 1e-10


@each_law
@gamma_under_vmap
@pytest.mark.parametrize("shared", ["loc", "scale_tril"])
def test_grad_through_vmap(law, shared):
    """The transform inside, the backward pass outside; one parameter is shared."""
    rest = law.parameters((BATCH,))
    common = leaves({shared: rest.pop(shared)[0]})

    def draw(rest):
        return law.build({**common, **rest}, validate_args=False).rsample((5,))

    z = vmap(draw, randomness="different")(rest)
    actual = gradients(cost(z), {**common, **rest})
    points = z.detach().movedim(0, -2)
    expected = cost(sample_at(law.build({**common, **rest}), points))
    expected = gradients(expected, sampled({**common, **rest}))
    assert relative_error(actual, expected) < 1e-10


@each_law
def test_vmap_of_log_prob(law):
    batched = law.parameters((BATCH,))
    value = randn(BATCH, 5, 3)

    def total(parameters, value):
        return law.build(parameters, validate_args=False).log_prob(value).sum()

    actual = vmap(grad(total))(batched, value)
    expected = gradients(law.reference(batched).log_prob(value.movedim(0, 1)), batched)
    assert relative_error(actual, expected) < 1e-10


@in_turn
@each_law
@pytest.mark.parametrize("sample_shape", [(), (5,)])
@pytest.mark.filterwarnings("default")  # torch warns about its own code
def test_compiled(law, sample_shape):
    """The ELBO and its gradient as one graph, with the same random numbers."""
    torch._dynamo.reset()
    parameters = law.parameters()

    def elbo(parameters):
        q = law.build(parameters, validate_args=False)
        z = q.rsample(sample_shape)
        return (cost(z) - q.log_prob(z)).sum()

    results = []
    for step in (elbo, torch.compile(elbo, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(1)
        value = step(parameters)
        # the graph may be used up: compiled ones reuse its memory
        values = torch.autograd.grad(value, list(parameters.values()))
        results.append((value.detach(), dict(zip(parameters, values, strict=True))))
    (expected, expected_gradients), (actual, actual_gradients) = results
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    assert relative_error(actual_gradients, expected_gradients) < 1e-8
