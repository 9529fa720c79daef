"""Densities, moments and supports, against a reference and against samples."""

from __future__ import annotations

import torch
from torch.distributions import Distribution

from pyro_mixtures.testing.distribution_case import (
    DistributionCase,
    assert_mean,
    assert_near,
    gradients,
    is_discrete,
)

COUNT = 2000
MOMENTS = ("mean", "variance", "stddev")


def density(case: DistributionCase) -> None:
    """That of the reference, with gradients by parameters and value, of any that broadcasts."""
    if case.reference is None:
        return
    for batch_shape, sample_shape in (((), (3,)), ((2,), ()), ((2,), (4, 1)), ((3, 1), (2,))):
        parameters, q = case.example(batch_shape)
        source = case.constant() if case.fixed_support else q
        value = source.sample(torch.Size(sample_shape))
        value = value.requires_grad_(not is_discrete(q))
        given = {**parameters, "value": value} if value.requires_grad else parameters
        actual, expected = q.log_prob(value), case.reference(parameters).log_prob(value)
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
        assert_near(gradients(actual, given), gradients(expected, given), 1e-8)


def moments(case: DistributionCase) -> None:
    """Mean, variance and standard deviation of the reference; or none, as there."""
    if case.reference is None:
        return
    for batch_shape in ((), (2, 3)):
        parameters, q = case.example(batch_shape)
        expected = case.reference(parameters)
        for name in MOMENTS:
            exact = _moment(expected, name)
            if exact is not None:
                actual = getattr(q, name)
                assert actual.shape == (*batch_shape, *q.event_shape), name
                torch.testing.assert_close(actual, exact, rtol=1e-9, atol=1e-9, equal_nan=True)


def samples_have_the_moments(case: DistributionCase) -> None:
    """To five standard errors of the samples' means: a false alarm in some 10^5 runs."""
    q = case.constant((2,))
    mean, variance = _moment(q, "mean"), _moment(q, "variance")
    if not case.moments or mean is None or variance is None:
        return
    z = q.sample(torch.Size((COUNT,)))
    assert_mean(z, mean, "samples")
    assert_mean((z - mean).square(), variance, "squared deviations")


def samples_have_the_density(case: DistributionCase) -> None:
    """The mean of the score is zero where the density integrates to one.

    To five standard errors: a false alarm in some 10^4 runs.
    """
    if not (case.fixed_support and case.unbiased):
        return
    one = case.draw()
    parameters = case.repeated(one, (COUNT,))
    z = case.build(one).sample(torch.Size((COUNT,)))
    for name, score in gradients(case.build(parameters).log_prob(z), parameters).items():
        assert_mean(score, 0.0, f"score of {name}")


def support(case: DistributionCase) -> None:
    """Samples are in it, and parameters satisfy their constraints."""
    _, q = case.example((2,))
    assert q.support is not None
    assert q.support.event_dim == q.event_dim
    assert q.support.check(q.sample(torch.Size((20,)))).all()
    for name, constraint in q.arg_constraints.items():
        assert constraint.check(getattr(q, name)).all(), name


def bad_values(case: DistributionCase) -> None:
    """No numbers, and vectors of twice the size, are errors where arguments are checked."""
    q = case.constant((2,))
    value = q.sample()
    wrong = [torch.full_like(value, float("nan"))]
    if q.event_shape:
        wrong.append(torch.cat([value, value], -1))
    for each in wrong:
        try:
            q.log_prob(each)
        except ValueError:
            continue
        raise AssertionError(f"log_prob took a value of shape {tuple(each.shape)} without error")


def _moment(distribution: Distribution, name: str) -> torch.Tensor | None:
    try:
        return getattr(distribution, name)
    except NotImplementedError:
        return None
