"""The one autograd Function, alone."""

import pytest
import torch

from pyro_mixtures.numerics.pathwise_function import pathwise


def shift_and_stretch(z, grad, loc, scale, constant):
    """Of ``z = loc + scale * noise``; the last parameter goes without."""
    return grad.sum(-2), (grad * (z - loc.unsqueeze(-2)) / scale.unsqueeze(-2)).sum(-2)


@pytest.fixture
def parameters():
    loc, scale = torch.randn(2, 3), torch.rand(2, 3) + 0.5
    return loc.requires_grad_(), scale.requires_grad_(), torch.ones(2)


def test_equals_the_reparameterization(parameters):
    loc, scale, constant = parameters
    noise = torch.randn(2, 5, 3)
    direct = loc.unsqueeze(-2) + scale.unsqueeze(-2) * noise
    z = pathwise(direct.detach(), shift_and_stretch, loc, scale, constant)
    assert torch.equal(z, direct)
    expected = torch.autograd.grad(direct.sin().sum(), (loc, scale))
    actual = torch.autograd.grad(z.sin().sum(), (loc, scale))
    torch.testing.assert_close(actual, expected)


def test_samples_are_not_shared(parameters):
    """In-place changes by the user do not reach the tensor that was saved."""
    drawn = torch.randn(2, 5, 3)
    z = pathwise(drawn, shift_and_stretch, *parameters)
    assert z.data_ptr() != drawn.data_ptr()


@pytest.mark.parametrize("create_graph", [False, True])
def test_first_derivative_with_and_without_graph(parameters, create_graph):
    loc, scale, _ = parameters
    z = pathwise(torch.randn(2, 5, 3), shift_and_stretch, *parameters)
    first = torch.autograd.grad(z.square().sum(), (loc, scale), create_graph=create_graph)
    torch.testing.assert_close(first[0], 2 * z.sum(-2))
    assert first[0].requires_grad == create_graph
    if create_graph:
        with pytest.raises(NotImplementedError, match="second derivatives"):
            first[1].sum().backward()
