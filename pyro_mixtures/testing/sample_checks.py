"""Samples and their gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_mixtures.testing.distribution_case import (
    DistributionCase,
    assert_mean,
    assert_near,
    gradients,
)

COUNT = 2000


def sample_is_rsample(case: DistributionCase) -> None:
    """With the same random numbers, and without a gradient."""
    for batch_shape in ((), (2,)):
        _, q = case.example(batch_shape)
        torch.manual_seed(1)
        z = q.rsample(torch.Size((4,)))
        torch.manual_seed(1)
        sample = q.sample(torch.Size((4,)))
        assert torch.equal(z, sample)
        assert q.has_rsample
        assert z.requires_grad
        assert not sample.requires_grad
        with torch.no_grad():
            assert not q.rsample().requires_grad
        with torch.inference_mode():
            assert q.rsample().shape == sample.shape[1:]


def unbiased_gradients(case: DistributionCase) -> None:
    """Their mean is that of the score function's, with the score term where there is one.

    Of samples drawn alike, to five standard errors of the difference: a false alarm in some 10^4
    runs.
    """
    if not (case.fixed_support and case.unbiased):
        return
    parameters = case.repeated(case.draw(), (COUNT,))
    q = case.build(parameters)
    z = q.rsample()
    cost = case.cost(z)
    own = q.score_parts(z).score_function
    loss = cost + cost.detach() * own
    moved = gradients(loss, parameters)
    weight = (cost - cost.mean()).detach()
    score = gradients(q.log_prob(z.detach()), parameters, weight)
    for name, gradient in moved.items():
        if name not in case.beside:
            assert_mean(gradient - score[name], 0.0, f"gradient of {name}")


def points_are_kept(case: DistributionCase) -> None:
    """With the gradients of points whose own history is cut."""
    if case.at is None:
        return
    parameters, q = case.example((2,))
    points = q.rsample(torch.Size((5,)))
    z = case.at(q, points)
    torch.testing.assert_close(z, points, rtol=1e-10, atol=1e-10)
    pull = points.detach().cos()
    again = case.at(case.build(parameters), points.detach().clone())
    assert_near(gradients(z, parameters, pull), gradients(again, parameters, pull), 1e-10)


def entries_stay_apart(case: DistributionCase) -> None:
    """Those of a batch have the gradients that each has alone."""
    if case.at is None:
        return
    parameters, q = case.example((3,))
    points = q.sample(torch.Size((5,)))
    together = gradients(case.at(q, points), parameters, points.cos())
    for entry in range(3):
        one = {name: x[entry].detach().requires_grad_() for name, x in parameters.items()}
        at = points[:, entry]
        alone = gradients(case.at(case.build(one), at), one, at.cos())
        assert_near({name: x[entry] for name, x in together.items()}, alone, 1e-8)


def single_precision(case: DistributionCase) -> None:
    """Samples, densities and gradients are of the parameters' type, and near to the exact ones."""
    low, q = case.example((2,), torch.float32)
    z = q.rsample(torch.Size((5,)))
    log_prob = q.log_prob(z)
    assert z.dtype == log_prob.dtype == torch.float32
    if case.at is None:
        return
    points = z.detach()
    high = {name: x.detach().double().requires_grad_() for name, x in low.items()}
    exact = case.build(high)
    at = case.at(exact, points.double())
    expected = gradients(at, high, at.detach().cos())
    actual = gradients(case.at(q, points), low, at.detach().cos().float())
    assert all(x.dtype == torch.float32 for x in actual.values())
    assert_near({name: x.double() for name, x in actual.items()}, expected, 1e-3)


def no_second_derivatives(case: DistributionCase) -> None:
    """Of samples whose gradient is made by hand: an error in place of a wrong number."""
    if case.at is None:
        return
    parameters, q = case.example()
    first = torch.autograd.grad(
        case.cost(q.rsample(torch.Size((3,)))).sum(), list(parameters.values()), create_graph=True
    )
    total: Tensor = sum((x.square().sum() for x in first), torch.zeros(()))
    try:
        total.backward()
    except NotImplementedError:
        return
    raise AssertionError("a second derivative of samples was computed")
