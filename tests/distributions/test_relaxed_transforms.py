"""Derivatives of relaxed laws: straight-through, second ones, torch.func and torch.compile."""

import pytest
import torch
from torch.func import grad, vmap

from tests.pairwise import in_turn
from tests.registry import gradients, leaves, relative_error
from tests.relaxed import LAWS, drawn, each_hard_law, each_law, each_soft_law

BATCH = 4


def cost(z):
    return (z.exp().cos() + z.exp().square()).sum()


@each_hard_law
def test_straight_through(law):
    """Forward exactly one-hot, backward the relaxed sample's gradient."""
    parameters = law.parameters((2,), K=5)
    z, soft = drawn(law.build(parameters), (50,)), drawn(law.soft(**parameters), (50,))
    if law.is_categorical:
        assert torch.equal(z, (soft == soft.amax(-1, keepdim=True)).double())
        assert torch.equal(z.sum(-1), torch.ones(50, 2).double())
    else:
        assert torch.equal(z, soft.round())
    assert ((z == 0) | (z == 1)).all()
    weights = torch.randn_like(z)
    actual, expected = gradients(z, parameters, weights), gradients(soft, parameters, weights)
    assert all(torch.equal(actual[name], expected[name]) for name in parameters)
    q, relaxed = law.build(parameters), law.soft(**parameters)
    actual = gradients(q.log_prob(z), parameters)
    expected = gradients(relaxed.log_prob(soft), parameters)
    assert all(torch.equal(actual[name], expected[name]) for name in parameters)
    first = torch.autograd.grad(z.cos().sum(), parameters["logits"], create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="second derivatives"):
        first.sum().backward()


@each_soft_law
def test_second_derivatives(law):
    """Relaxed samples are smooth functions: against differences."""
    parameters = law.parameters(K=3)

    def slope(parameters):
        q = law.build(parameters, validate_args=False)
        z = drawn(q, (20,))
        output = cost(z) + q.log_prob(z).cos().sum()
        return torch.autograd.grad(output, parameters["temperature"], create_graph=True)[0]

    actual = gradients(slope(parameters), parameters)["temperature"]
    step = 1e-5
    there, back = (
        slope(leaves({**parameters, "temperature": parameters["temperature"] + change})).detach()
        for change in (step, -step)
    )
    torch.testing.assert_close(actual, (there - back) / (2 * step), rtol=1e-5, atol=1e-5)


@each_law
@pytest.mark.parametrize("sample_shape", [(), (5,)])
def test_vmap_of_grad(law, sample_shape):
    batched = law.parameters((BATCH,))

    def loss(parameters):
        q = law.build(parameters, validate_args=False)
        z = q.rsample(sample_shape)
        return cost(z) - q.log_prob(z).sum(), z

    torch.manual_seed(1)
    actual, samples = vmap(grad(loss, has_aux=True), randomness="same")(batched)
    assert samples.shape == (BATCH, *sample_shape, *law.event_shape())
    each = []
    for b in range(BATCH):
        parameters = leaves({name: value[b] for name, value in batched.items()})
        torch.manual_seed(1)
        value, z = loss(parameters)
        assert torch.equal(samples[b], z)
        each.append(gradients(value, parameters))
    expected = {name: torch.stack([g[name] for g in each]) for name in batched}
    assert relative_error(actual, expected) < 1e-10


@each_law
def test_vmap_draws_anew(law):
    batched = law.parameters((BATCH,), K=100, temperature=1.0)
    z = vmap(lambda p: law.build(p, validate_args=False).rsample((20,)), randomness="different")(
        batched
    )
    assert all((z[0] != z[b]).any() for b in range(1, BATCH))


@in_turn
@each_law
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.filterwarnings("default")  # torch warns about its own code
def test_compiled(law, backend):
    """The ELBO and its gradient as one graph, with the same random numbers."""
    torch._dynamo.reset()
    parameters = law.parameters((2,), temperature=0.05)

    def elbo(parameters):
        q = law.build(parameters, validate_args=False)
        z = q.rsample((5,))
        return cost(z) - q.log_prob(z).sum()

    results = []
    for step in (elbo, torch.compile(elbo, fullgraph=True, backend=backend)):
        torch.manual_seed(1)
        value = step(parameters)
        values = torch.autograd.grad(value, list(parameters.values()))
        results.append((value.detach(), dict(zip(parameters, values, strict=True))))
    (expected, expected_gradients), (actual, actual_gradients) = results
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    assert relative_error(actual_gradients, expected_gradients) < 1e-8


@pytest.mark.filterwarnings("default")  # torch warns about its own code
def test_samples_enter_and_leave_graphs():
    """Drawn here and evaluated there, they keep their coordinates."""
    torch._dynamo.reset()
    law = LAWS["hard_categorical"]
    parameters = law.parameters((2,), temperature=0.05)

    def density(parameters, z):
        return law.build(parameters, validate_args=False).log_prob(z)

    def draw(parameters):
        return law.build(parameters, validate_args=False).rsample((5,))

    compiled = torch.compile(density, fullgraph=True, backend="eager")
    inside = torch.compile(draw, fullgraph=True, backend="eager")(parameters)
    outside = draw(parameters)
    for z in (inside, outside):
        torch.testing.assert_close(compiled(parameters, z), density(parameters, z))
    assert density(parameters, inside).isfinite().all()
