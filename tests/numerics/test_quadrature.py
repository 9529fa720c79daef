"""What the tails by quadrature have in common."""

import pytest
import torch

from pyro_mixtures.numerics import quadrature
from pyro_mixtures.numerics.incomplete import gamma_tails
from pyro_mixtures.numerics.symmetric import student_t_tails, von_mises_tails
from tests.numerics.test_incomplete import beta_tails_at, tensor

CASES = [
    (gamma_tails, ([0.02, 0.7, 3.0, 400.0], [0.01, 2.0, 3.0, 500.0])),
    (beta_tails_at, ([0.02, 0.7, 3.0, 400.0], [5.0, 0.7, 1.5, 90.0], [-3.0, 0.1, 4.0, 1.6])),
    (student_t_tails, ([0.1, 0.9, 4.0, 900.0], [0.5, -3.0, 1.5, -0.2])),
    (von_mises_tails, ([0.01, 0.9, 4.0, 900.0], [0.5, -3.0, 1.5, -0.2])),
]
each_function = pytest.mark.parametrize(
    ("function", "arguments"), [pytest.param(*case, id=case[0].__name__) for case in CASES]
)


@each_function
def test_slopes(function, arguments):
    """Of both log tails in all arguments."""
    assert torch.autograd.gradcheck(
        lambda *arguments: function(*arguments)[:2],
        [tensor(argument) for argument in arguments],
        eps=1e-5,
        rtol=1e-6,
    )


@each_function
def test_velocities(function, arguments):
    """They keep the distribution function, to first order, and have no gradient themselves."""
    arguments = [tensor(argument) for argument in arguments]
    tails = function(*arguments)
    slope, *slopes = (
        torch.autograd.grad(tails.log_cdf.sum(), argument, retain_graph=True)[0]
        for argument in (arguments[-1], *arguments[:-1])
    )
    for parameter_slope, velocity in zip(slopes, tails.velocities, strict=True):
        assert not velocity.requires_grad
        torch.testing.assert_close(parameter_slope + velocity * slope, torch.zeros(4).double())


@each_function
def test_without_gradient(function, arguments):
    """The log tails are the same, and there are no velocities."""
    arguments = [tensor(argument) for argument in arguments]
    moving = function(*arguments)
    with torch.no_grad():
        unwanted = function(*arguments)
    for tails in (unwanted, function(*(argument.detach() for argument in arguments))):
        assert tails.velocities == ()
        torch.testing.assert_close(tails[:2], moving[:2], rtol=0, atol=0)


@each_function
def test_shapes(monkeypatch, function, arguments):
    """Broadcasting, slices and vmap change nothing."""
    *parameters, points = (tensor(argument) for argument in arguments)
    points = torch.stack([points * scale for scale in (0.5, 0.9, 1.0)])
    whole = function(*parameters, points)
    assert whole.log_cdf.shape == (3, 4)
    rows = torch.func.vmap(lambda row: function(*parameters, row))(points)
    monkeypatch.setattr(quadrature, "SLICE", 5)
    sliced = function(*parameters, points)
    for other in (rows, sliced):
        torch.testing.assert_close(other, whole, rtol=1e-13, atol=0)
