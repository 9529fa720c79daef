"""Ascents of many points at once."""

import math

import pytest
import torch

from pyro_mixtures.infer.search.climbing import climb
from pyro_mixtures.infer.search.evaluations import Evaluations


def rosenbrock(z):
    return -(100 * (z[:, 1:] - z[:, :-1] ** 2) ** 2 + (1 - z[:, :-1]) ** 2).sum(-1)


def test_ascents_end_at_the_optimum_of_a_curved_valley():
    torch.manual_seed(0)
    starts = torch.randn(20, 3, dtype=torch.float64)
    evaluations = Evaluations(rosenbrock)
    found = climb(
        evaluations, starts, torch.ones(3, dtype=torch.float64), max_steps=150, max_count=10**6
    )
    best = found.values > -1e-3  # there is a second optimum
    assert int(best.sum()) >= 15
    torch.testing.assert_close(
        found.points[best], torch.ones_like(found.points[best]), atol=0.05, rtol=0
    )
    assert bool(found.converged.all())
    assert bool((found.values >= rosenbrock(starts)).all())


def test_an_ascent_does_not_depend_on_the_others():
    torch.manual_seed(1)
    starts = torch.randn(6, 2, dtype=torch.float64)
    scale = torch.tensor([1.0, 3.0], dtype=torch.float64)
    evaluations = Evaluations(rosenbrock)
    every = climb(evaluations, starts, scale, max_steps=40, max_count=10**6)
    alone = [
        climb(evaluations, start[None], scale, max_steps=40, max_count=10**6) for start in starts
    ]
    torch.testing.assert_close(every.points, torch.cat([each.points for each in alone]))


def test_the_scale_of_a_coordinate_does_not_matter():
    torch.manual_seed(2)
    starts = torch.randn(5, 2, dtype=torch.float64)
    ones, factor = torch.ones(2, dtype=torch.float64), torch.tensor([1e3, 1e-3]).double()
    plain = climb(Evaluations(rosenbrock), starts, ones, max_steps=60, max_count=10**6)
    scaled = climb(
        Evaluations(lambda z: rosenbrock(z / factor)),
        starts * factor,
        factor,
        max_steps=60,
        max_count=10**6,
    )
    torch.testing.assert_close(scaled.points / factor, plain.points, rtol=1e-4, atol=1e-4)


def test_points_without_mass_stay_and_the_edge_of_the_support_is_no_end():
    def log_density(z):  # zero for x < 0, largest at x = 0.01
        x = z[:, 0]
        return torch.where(x > 0, -((x - 0.01) ** 2) * 50, -math.inf)

    starts = torch.tensor([[-1.0], [2.0]], dtype=torch.float64)
    scale = torch.ones(1, dtype=torch.float64)
    found = climb(Evaluations(log_density), starts, scale, max_steps=100, max_count=10**6)
    assert found.values[0] == -math.inf
    assert found.points[0] == -1
    assert found.points[1] == pytest.approx(0.01, abs=0.01)
    assert found.converged.tolist() == [False, True]


def test_a_density_without_a_top_is_climbed_as_long_as_there_are_evaluations():
    evaluations = Evaluations(lambda z: z.sum(-1))
    starts = torch.zeros(10, 2, dtype=torch.float64)
    scale = torch.ones(2, dtype=torch.float64)
    found = climb(evaluations, starts, scale, max_steps=10**4, max_count=500)
    assert not bool(found.converged.any())
    assert 500 <= evaluations.count < 600
    steps = evaluations.count // 10
    assert float(found.points.abs().amax()) <= steps * math.sqrt(2)  # no step is longer
