"""Maps from outputs of networks to scales."""

import pickle

import pytest
import torch

from pyro_mixtures.nn.floors import AboveFloor, CholeskyAboveFloor
from tests.registry import randn


def test_values_and_slopes():
    """A floor plus softplus, whose slope nowhere vanishes where it has digits."""
    x = torch.tensor([-100.0, -20.0, 0.0, 3.0, 1e4], requires_grad=True)
    y = AboveFloor(0.1)(x)
    expected = torch.tensor([0.1, 0.1, 0.1 + 0.693147, 0.1 + 3.048587, 1e4 + 0.1])
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    torch.testing.assert_close(x.grad, x.detach().sigmoid())
    assert (x.grad > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse(dtype):
    floor = AboveFloor(1e-3)
    y = torch.tensor([2e-3, 0.5, 1.0, 30.0, 1e5], dtype=dtype)
    torch.testing.assert_close(floor(floor.inv(y)), y)
    below = torch.tensor([-1.0, 0.0, 1e-3, 1.5e-3], dtype=dtype)
    torch.testing.assert_close(floor(floor.inv(below)), torch.full_like(below, 2e-3))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_cholesky_factors(size):
    factors, shape = CholeskyAboveFloor(0.1), torch.Size([3, size * (size + 1) // 2])
    assert factors.forward_shape(shape) == (3, size, size)
    assert factors.inverse_shape(torch.Size([3, size, size])) == shape
    x = randn(*shape).abs()  # not on the floor, whose inverse is another
    y = factors(x)
    assert torch.equal(y, y.tril())
    torch.testing.assert_close(y.diagonal(dim1=-2, dim2=-1), AboveFloor(0.1)(x[:, :size]))
    row, column = torch.tril_indices(size, size, -1)
    assert torch.equal(y[:, row, column], x[:, size:])
    torch.testing.assert_close(factors.inv(y), x)
    assert torch.autograd.gradcheck(factors, x.requires_grad_())


def test_maps_are_equal_by_their_floor():
    for kind in (AboveFloor, CholeskyAboveFloor):
        assert kind(0.1) == pickle.loads(pickle.dumps(kind(0.1)))
        assert kind(0.1) != kind(0.2)
    assert AboveFloor(0.1) != CholeskyAboveFloor(0.1)
