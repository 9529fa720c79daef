"""What makes the velocity optimal, and how many of its digits a narrow Normal leaves."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import jacrev, vmap

from pyro_mixtures.velocity.optimal_transport import optimal_transport
from tests.elliptical import LAWS
from tests.registry import randn, random_factor


@pytest.mark.parametrize(("D", "scales"), [(2, (0.2, 5.0)), (3, (0.7, 1.4)), (5, (0.2, 5.0))])
def test_velocity_is_a_gradient_field(D, scales):
    """Of all fields that solve the continuity equation that one has the least kinetic energy."""
    law = LAWS["omt_normal"]
    parameters = {k: x.detach() for k, x in law.parameters(D=D, scales=scales, seed=D).items()}
    z = law.build(parameters).sample((4,))
    slope = vmap(jacrev(lambda z: law.velocity(parameters, z)))(z)  # (N, i, a, b, j)
    assert slope.abs().amax() * scales[0] > 0.1
    torch.testing.assert_close(slope, slope.transpose(1, -1), rtol=0, atol=1e-10 / scales[0])


def exact_gradient(white: Tensor, grad: Tensor, scale_tril: Tensor) -> Tensor:
    """From ``S Sigma + Sigma S = E L^T + L E^T`` for each entry of L, in rational numbers."""
    dim = len(scale_tril)
    factor, noise, slope = (
        np.vectorize(Fraction, otypes=[object])(x.double().numpy())
        for x in (scale_tril, white, grad)
    )
    sigma, eye = factor @ factor.T, np.eye(dim, dtype=int)
    result = torch.zeros(dim, dim, dtype=torch.float64)
    for a, b in itertools.combinations_with_replacement(range(dim), 2):
        change = np.outer(eye[b], factor[:, a])  # of L_ba
        symmetric = solve(
            np.kron(sigma, eye) + np.kron(eye, sigma), (change + change.T).reshape(-1)
        ).reshape(dim, dim)
        result[b, a] = float((noise @ factor.T @ symmetric * slope).sum())
    return result


def solve(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """By elimination; pivots are positive, as the matrix is positive definite."""
    rows = np.column_stack([matrix, right])
    for i in range(len(rows)):
        rows[i] = rows[i] / rows[i, i]
        for j in range(len(rows)):
            if j != i:
                rows[j] = rows[j] - rows[j, i] * rows[i]
    return rows[:, -1]


def with_condition(number: float) -> Tensor:
    """A random factor in three dimensions, with the largest singular value one."""
    singular = number ** -torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    left, right = (torch.linalg.qr(randn(3, 3))[0] for _ in range(2))
    upper = torch.linalg.qr((left * singular @ right).mT)[1]
    return (upper * upper.diagonal().sign().unsqueeze(-1)).mT.tril()  # a positive diagonal


@pytest.mark.parametrize("samples", [1, 4])
def test_solution(samples):
    scale_tril = random_factor(0.3 + torch.rand(2, 2, 3).double(), lambda *shape: randn(*shape))
    white, grad = (randn(2, 2, samples, 3) for _ in range(2))
    grad_white, actual = optimal_transport(white, grad, scale_tril)
    torch.testing.assert_close(grad_white, grad @ scale_tril)
    each = (x.flatten(0, 1) for x in (white, grad, scale_tril))
    expected = torch.stack([exact_gradient(*one) for one in zip(*each, strict=True)])
    torch.testing.assert_close(actual.flatten(0, 1), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("condition", [1e3, 1e6])
def test_ill_conditioned(dtype, condition):
    """Nearly all digits, though the covariance, of that condition squared, has few or none."""
    for _ in range(5):
        scale_tril = with_condition(condition).to(dtype)
        white, grad = (randn(2, 3).to(dtype) for _ in range(2))
        actual = optimal_transport(white, grad, scale_tril)[1].double()
        exact = exact_gradient(white, grad, scale_tril)
        error = (actual - exact).abs().max() / exact.abs().max()
        assert error < 50 * torch.finfo(dtype).eps


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_squares_of_tiny_and_huge_scales_do_not_count(size):
    white, grad = (randn(1, 3).float() for _ in range(2))
    scale_tril = torch.tensor([[1.0, 0, 0], [0.5, 1, 0], [-0.3, 0.2, 2]])
    expected = optimal_transport(white, grad, scale_tril)[1]
    actual = optimal_transport(white, grad, size * scale_tril)[1]
    torch.testing.assert_close(actual, expected)


def test_equal_singular_values():
    """Where the singular vectors are not unique: the symmetric part alone moves samples."""
    white, grad = randn(6, 3), randn(6, 3)
    actual = optimal_transport(white, grad, 2 * torch.eye(3).double())[1]
    moment = grad.mT @ white
    torch.testing.assert_close(actual, ((moment + moment.mT) / 2).tril())


def test_one_dimension_is_reparameterization():
    white, grad = randn(6, 1), randn(6, 1)
    actual = optimal_transport(white, grad, torch.tensor([[0.3]]).double())[1]
    torch.testing.assert_close(actual, (white * grad).sum().reshape(1, 1))
