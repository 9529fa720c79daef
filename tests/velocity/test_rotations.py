"""What the control variate's parameters get: the gradient of half the variance of L's gradient."""

import itertools

import pytest
import torch
from torch.autograd.functional import jacobian

from pyro_mixtures.velocity.rotations import rotations
from pyro_mixtures.velocity.row_rotations import row_rotations
from tests.pairwise import in_pairs
from tests.registry import randn, random_factor

SAME = {"rtol": 1e-10, "atol": 1e-12}

each_rank = pytest.mark.parametrize("M", [1, 3])
each_dim = pytest.mark.parametrize("D", [1, 2, 4])


def draw(S, D, M, batch_shape=()):
    """``(white, grad, scale_tril, control_var)``."""
    scale_tril = random_factor(randn(*batch_shape, D).exp(), lambda *shape: randn(*shape))
    white, grad = (randn(*batch_shape, S, D) for _ in range(2))
    return white, grad, scale_tril, randn(*batch_shape, 2, M, D)


def plane_of_axes(weights, a, b):
    """The generator of the turn that goes with ``L_ab``."""
    turn = torch.zeros_like(weights)
    turn[a, b] = weights[a, b]
    return turn - turn.mT


def plane_of_row_and_axis(weights, a, b):
    turn = torch.zeros_like(weights)
    turn[:, b] = weights[a]
    return turn - turn.mT


each_field = pytest.mark.parametrize("field", [rotations, row_rotations])
PLANES = {rotations: plane_of_axes, row_rotations: plane_of_row_and_axis}


def one_gradient(plane, white, grad, scale_tril, control_var):
    """Of L for one sample, by the velocity of each entry written out."""
    dim = len(white)
    weights = control_var[0].mT @ control_var[1]
    gradient = []
    for a, b in itertools.product(range(dim), repeat=2):
        velocity = scale_tril @ plane(weights, a, b) @ white
        velocity = velocity + torch.eye(dim, dtype=white.dtype)[a] * white[b]
        gradient.append(velocity @ grad)
    return torch.stack(gradient).reshape(dim, dim).tril()


def by_loops(plane, white, grad, scale_tril, control_var):
    """The sum over samples, and the derivative of half the sum of all squares."""
    samples = list(zip(white, grad, strict=True))
    total = sum(one_gradient(plane, *sample, scale_tril, control_var) for sample in samples)

    def half_squares(control_var):
        each = (one_gradient(plane, *sample, scale_tril, control_var) for sample in samples)
        return sum(gradient.square().sum() for gradient in each) / 2

    return total, jacobian(half_squares, control_var)


@in_pairs
@each_field
@each_dim
@each_rank
@pytest.mark.parametrize("S", [1, 2, 5])
def test_gradients(field, D, M, S):
    arguments = draw(S, D, M)
    white, grad, scale_tril, _ = arguments
    grad_white, *actual = field(*arguments)
    torch.testing.assert_close(grad_white, grad @ scale_tril)
    torch.testing.assert_close(tuple(actual), by_loops(PLANES[field], *arguments), **SAME)


@in_pairs
@each_field
@each_rank
@pytest.mark.parametrize("S", [1, 5])
@pytest.mark.parametrize("batch_shape", [(3,), (2, 3), (0,)])
def test_batch(field, M, S, batch_shape):
    arguments = draw(S, 4, M, batch_shape)
    actual = field(*arguments)
    assert actual[0].shape == (*batch_shape, S, 4)
    assert actual[2].shape == (*batch_shape, 2, M, 4)
    for index in itertools.product(*map(range, batch_shape)):
        alone = field(*(x[index] for x in arguments))
        torch.testing.assert_close(tuple(x[index] for x in actual), alone, **SAME)


@each_field
@each_dim
@each_rank
def test_samples_together_and_alone(field, D, M):
    """Products over samples, and factors of low rank for one: both give the same sums."""
    white, grad, scale_tril, control_var = draw(6, D, M)
    together = field(white, grad, scale_tril, control_var)
    alone = field(
        white.unsqueeze(-2),
        grad.unsqueeze(-2),
        scale_tril.expand(6, D, D),
        control_var.expand(6, 2, M, D),
    )
    torch.testing.assert_close(together[0], alone[0].squeeze(-2), **SAME)
    for sums, each in zip(together[1:], alone[1:], strict=True):
        torch.testing.assert_close(sums, each.sum(0), **SAME)


@each_field
@pytest.mark.parametrize("S", [1, 5])
def test_nothing_above_the_diagonal(field, S):
    _, gradient, _ = field(*draw(S, 4, 2))
    assert torch.equal(gradient, gradient.tril())


@each_field
@pytest.mark.parametrize("S", [1, 5])
def test_without_turning(field, S):
    """B = 0 is reparameterization; its C has no slope there, but B has."""
    white, grad, scale_tril, control_var = draw(S, 4, 2)
    control_var[0] = 0
    _, gradient, slope = field(white, grad, scale_tril, control_var)
    torch.testing.assert_close(gradient, (grad.mT @ white).tril(), **SAME)
    assert (slope[1] == 0).all()
    assert (slope[0] != 0).any()


@each_field
@pytest.mark.parametrize("S", [1, 5])
def test_of_no_use_in_one_dimension(field, S):
    assert field(*draw(S, 1, 2))[2].abs().max() < 1e-12
