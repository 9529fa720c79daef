"""Shapes of samples and densities, and that repeated parameters give the same as ``expand``."""

from __future__ import annotations

import torch
from pyro.distributions import TorchDistribution

from pyro_mixtures.testing.distribution_case import (
    DistributionCase,
    Parameters,
    assert_near,
    gradients,
    is_discrete,
)

BATCHES: tuple[tuple[int, ...], ...] = ((), (2,), (3, 1))
EXPANSIONS: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((), (4,)),
    ((2,), (3, 2)),
    ((3, 1), (2, 3, 4)),
    ((2,), (2,)),
)
TOLERANCE = 1e-9


def shapes(case: DistributionCase) -> None:
    """Of samples and densities, for several batch and sample shapes."""
    for batch_shape in BATCHES:
        _, q = case.example(batch_shape)
        assert q.batch_shape == batch_shape
        assert q.event_shape == case.constant().event_shape
        assert q.event_dim == len(q.event_shape)
        for sample_shape in ((), (5,), (5, 2)):
            z = q.rsample(torch.Size(sample_shape))
            assert z.shape == (*sample_shape, *batch_shape, *q.event_shape)
            assert q.log_prob(z).shape == (*sample_shape, *batch_shape)


def expand(case: DistributionCase) -> None:
    """Is the same as parameters repeated in memory: densities and gradients."""
    for batch_shape, expanded in EXPANSIONS:
        parameters, small = case.example(batch_shape)
        full = case.repeated(parameters, expanded)
        q = small.expand(torch.Size(expanded))
        assert type(q) is type(small)
        assert q.rsample(torch.Size((5,))).shape == (5, *expanded, *q.event_shape)
        _assert_same(case, q, parameters, full)


def expanded_twice(case: DistributionCase) -> None:
    """Each place has a sample of its own."""
    _, q = case.example((2,))
    twice = q.expand(torch.Size((3, 2))).expand(torch.Size((4, 3, 2)))
    z = twice.sample(torch.Size((5,)))
    assert z.shape == (5, 4, 3, 2, *q.event_shape)
    if not is_discrete(q):
        assert len(z.reshape(5 * 4 * 3 * 2, -1).unique(dim=0)) == 5 * 4 * 3 * 2


def broadcasting(case: DistributionCase) -> None:
    """One parameter of several values with one value of the others, as repeated in memory."""
    if not case.of_tensors:
        return
    one, many = case.draw(), case.draw((3, 2))
    column = {name: x.detach()[:, :1] for name, x in many.items()}
    for name in many:
        for given in ({**one, name: many[name]}, {**many, name: column[name]}):
            parameters = {key: x.detach().clone().requires_grad_() for key, x in given.items()}
            q = case.build(parameters)
            assert q.batch_shape == (3, 2)
            _assert_same(case, q, parameters, case.repeated(parameters, (3, 2)))


def infer_shapes(case: DistributionCase) -> None:
    """Of arguments that broadcast, as those of the instance."""
    if not case.of_tensors:
        return
    for batch_shape in ((4,), (2, 1)):
        one, many = case.draw(), case.draw(batch_shape)
        for name in many:
            for parameters in (many, {**one, name: many[name]}):
                q = case.build(parameters)
                given = {key: tuple(x.shape) for key, x in parameters.items()}
                assert type(q).infer_shapes(**given) == (q.batch_shape, q.event_shape)


def none_at_all(case: DistributionCase) -> None:
    """No samples, or an empty batch by ``expand``: empty results, and gradients of zero."""
    parameters, q = case.example((2,))
    z = q.rsample(torch.Size((0,)))
    assert z.shape == (0, 2, *q.event_shape)
    for values in gradients(z, parameters).values():
        assert not values.any()
    empty = case.constant((2,)).expand(torch.Size((0, 2)))
    assert empty.rsample(torch.Size((5,))).shape == (5, 0, 2, *q.event_shape)


def _assert_same(
    case: DistributionCase, q: TorchDistribution, parameters: Parameters, full: Parameters
) -> None:
    explicit = case.build(full)
    assert q.batch_shape == explicit.batch_shape
    points = explicit.sample(torch.Size((5,)))
    outputs = [(q.log_prob(points), explicit.log_prob(points))]
    if case.at is not None:
        outputs.append((case.at(q, points), case.at(explicit, points)))
    for actual, expected in outputs:
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
        pull = expected.detach().cos()
        sums = {
            name: value.sum_to_size(parameters[name].shape)
            for name, value in gradients(expected, full, pull).items()
        }
        assert_near(gradients(actual, parameters, pull), sums, TOLERANCE)
