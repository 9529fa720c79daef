"""Second derivatives and torch.func."""

import pytest
import torch
from torch.func import grad, vmap

from tests.registry import (
    each_family,
    each_transport,
    gradients,
    leaves,
    relative_error,
    sample_at,
)

BATCH = 4


def cost(z):
    return z.sum(-1).cos() + z.pow(3).sum(-1)


@each_transport
def test_second_derivative_is_refused(family, transport):
    parameters = family.parameters()
    z = family.build(parameters, transport=transport).rsample((3,))
    some = next(iter(parameters.values()))
    first = torch.autograd.grad(cost(z).sum(), some, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="second derivatives .* log_prob"):
        first.sum().backward()


@each_family
def test_second_derivative_of_log_prob(family):
    parameters = family.parameters()
    value = torch.randn(3, 2, dtype=torch.float64)

    def second(distribution):
        some = next(iter(parameters.values()))
        first = torch.autograd.grad(distribution.log_prob(value).sum(), some, create_graph=True)[0]
        return gradients(first.cos().sum(), parameters)

    assert (
        relative_error(second(family.build(parameters)), second(family.reference(parameters)))
        < 1e-10
    )


def loop(family, transport, batched, samples):
    """Gradients of each mixture of the batch at given samples."""
    each = []
    for b, points in enumerate(samples):
        parameters = leaves({name: value[b] for name, value in batched.items()})
        z = sample_at(family.build(parameters, transport=transport), points)
        each.append(gradients(cost(z), parameters))
    return {name: torch.stack([g[name] for g in each]) for name in batched}


@each_transport
def test_vmap_of_grad(family, transport):
    batched = family.parameters((BATCH,))

    def loss(parameters):
        z = family.build(parameters, transport=transport, validate_args=False).rsample((5,))
        return cost(z).sum(), z

    actual, samples = vmap(grad(loss, has_aux=True), randomness="different")(batched)
    assert samples.shape == (BATCH, 5, 2)
    assert len(samples.detach().unique()) == samples.numel()
    expected = loop(family, transport, batched, samples.detach())
    assert relative_error(actual, expected) < 1e-10


@each_transport
def test_grad_through_vmap(family, transport):
    """The transform inside, the backward pass outside; one parameter is shared."""
    batched = family.parameters((BATCH,))
    name = next(iter(batched))
    shared = leaves({name: batched[name][0]})[name]

    def draw(rest):
        parameters = {name: shared, **rest}
        mixture = family.build(parameters, transport=transport, validate_args=False)
        return mixture.rsample((5,))

    rest = {key: value for key, value in batched.items() if key != name}
    z = vmap(draw, randomness="different")(rest)
    parameters = {name: shared, **rest}
    actual = gradients(cost(z), parameters)
    everywhere = {name: shared.detach().expand(BATCH, *shared.shape), **rest}
    expected = loop(family, transport, everywhere, z.detach())
    expected[name] = expected[name].sum(0)
    assert relative_error(actual, expected) < 1e-10


@each_family
def test_vmap_of_log_prob(family):
    batched = family.parameters((BATCH,))
    value = torch.randn(BATCH, 5, 2, dtype=torch.float64)

    def total(parameters, value):
        return family.build(parameters, validate_args=False).log_prob(value).sum()

    actual = vmap(grad(total))(batched, value)
    expected = gradients(family.build(batched).log_prob(value.movedim(0, 1)), batched)
    assert relative_error(actual, expected) < 1e-10
