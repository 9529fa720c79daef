"""Fig. 1a: exact gradients, the fields that are compared, and the quick run."""

import csv
import json
from functools import partial

import numpy
import pytest
import torch

from experiments.gradient_variance_avf import GradientVarianceAVF, estimators, experiment
from experiments.gradient_variance_avf.estimators import (
    ADAPTIVE,
    best_weights,
    families,
    mean_below_diagonal,
    measure,
)
from experiments.gradient_variance_avf.problem import COSTS, DIM, Problem
from experiments.lab.full_batch import Schedule
from experiments.lab.run import Run
from pyro_mixtures.distributions import AVFMultivariateNormal

FILES = {"config.json", "metrics.csv", "summary.json", "table.md", "ratios.png"}


def small_problem(dim=3, seeds=2):
    """Of two r, in double precision."""
    matrices = torch.randn(seeds, dim, dim, dtype=torch.float64)
    lower = torch.rand(2, seeds, dim, dim, dtype=torch.float64).tril(-1)
    return Problem(matrices + matrices.mT, lower + torch.eye(dim, dtype=torch.float64))


def test_problem_is_that_of_the_paper():
    problem = Problem.draw((0.0, 0.5), seeds=3, seed=0)
    assert problem.matrices.shape == (3, DIM, DIM)
    assert torch.equal(problem.matrices, problem.matrices.mT)
    below = problem.matrices.tril(-1)
    assert set(below.unique().tolist()) == {0.0, 1.0}
    assert mean_below_diagonal(below).mean().item() == pytest.approx(0.5, abs=0.04)
    assert torch.equal(problem.scale_tril[0], torch.eye(DIM).expand(3, -1, -1))
    half = problem.scale_tril[1] - torch.eye(DIM)
    assert half.max() < 0.5
    assert torch.equal(half, half.tril(-1))
    assert mean_below_diagonal(half).mean().item() == pytest.approx(0.25, abs=0.01)
    z = torch.randn(DIM)
    for name, expected in {
        "cosine": ((problem.matrices[0] * z[:, None]).sum() / DIM).cos(),
        "quadratic": z @ problem.matrices[0] @ z,
        "quartic": (z @ problem.matrices[0] @ z) ** 2,
    }.items():
        found = problem.cost(name)(z.expand(5, 2, 3, -1))
        assert found.shape == (5, 2, 3)
        assert found[4, 1, 0].item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("cost", COSTS)
def test_exact_gradients_are_those_of_a_quadrature(cost):
    """Gauss and Hermite's rule with 30 points a dimension, differentiated."""
    problem = small_problem()
    points, weights = numpy.polynomial.hermite_e.hermegauss(30)
    points, weights = torch.from_numpy(points), torch.from_numpy(weights / weights.sum())
    white = torch.cartesian_prod(points, points, points)  # (N, D)
    mass = torch.cartesian_prod(weights, weights, weights).prod(-1)
    factor = problem.scale_tril.clone().requires_grad_()
    z = (white @ factor.mT).movedim(-2, 0)  # (N, R, seeds, D)
    (mass @ problem.cost(cost)(z).flatten(1)).sum().backward()
    assert torch.allclose(factor.grad, problem.exact_gradient(cost), rtol=1e-6, atol=1e-8)


def test_equal_seeds_give_all_families_the_same_samples():
    """The diagonal of G is untouched by rotations in the planes of two axes."""
    problem = small_problem(dim=4)
    found = [
        measure(family, problem, "quartic", draws=10, seed=3).mean.diagonal(dim1=-2, dim2=-1)
        for family in (
            estimators.FIXED["RT"],
            partial(AVFMultivariateNormal, control_var=torch.randn(2, 1, 4, dtype=torch.float64)),
        )
    ]
    assert torch.allclose(*found)


@pytest.mark.parametrize("cost", COSTS)
def test_means_are_exact_for_every_estimator(cost):
    """Also with control variates far from the best; 5 sigma of 36 entries each."""
    problem = small_problem(dim=4)
    random = torch.randn(2, 2, 2, 3, 4, dtype=torch.float64)
    candidates = dict(estimators.FIXED)
    for planes in ("axes", "rows"):
        candidates[planes] = partial(AVFMultivariateNormal, control_var=random, planes=planes)
    exact = problem.exact_gradient(cost).tril(-1)
    for family in candidates.values():
        found = measure(family, problem, cost, draws=8_000, seed=0)
        assert ((found.mean - exact).tril(-1).abs() <= 5 * found.mean_error).all()


def test_no_adaptive_field_is_below_its_floor(tmp_path):
    """With equal samples; training comes near it, and the rows' planes go below."""
    problem = small_problem(dim=5)
    schedule = Schedule(400, 0.03, 0.02, 400)
    found = families(Run(tmp_path, "run", {}), problem, "quadratic", schedule, 32, 20_000, 0)
    variances = {
        name: mean_below_diagonal(measure(family, problem, "quadratic", 4000, 1).variance)
        for name, family in found.items()
    }
    floor = variances[estimators.FLOOR]
    for name in ("AVF axes, M = 1", "AVF axes, M = 5"):
        assert (variances[name] >= 0.99 * floor).all()
    assert (variances["AVF axes, M = 5"] <= 1.03 * floor).all()
    assert (floor < variances["RT"]).all()
    assert variances["AVF rows, M = 5"].mean() < floor.mean()


def test_best_weights_are_minus_one_half_for_a_symmetric_problem():
    """For L = 1 and a quadratic cost, h = 2 Q epsilon: G and its transpose are averaged."""
    eye = torch.eye(4, dtype=torch.float64)
    matrices = torch.ones_like(eye) - eye
    problem = Problem(matrices[None], eye[None, None])
    weights = best_weights(problem, "quadratic", 100_000, 0)[0, 0]
    below = torch.ones(4, 4, dtype=torch.bool).tril(-1)
    assert torch.allclose(weights[below], torch.tensor(-0.5, dtype=torch.float64), atol=0.02)
    assert (weights[~below] == 0).all()


def test_quick_run_writes_everything_and_resumes(tmp_path, monkeypatch, capsys):
    """A run broken in training or while measuring ends with the numbers of an unbroken one."""
    GradientVarianceAVF(quick=True, out=tmp_path / "whole").run()
    assert "| quartic | AVF rows, M = 5 |" in capsys.readouterr().out
    folder = tmp_path / "whole" / "gradient_variance_avf-quick"
    assert FILES <= {path.name for path in folder.iterdir()}
    expected = json.loads((folder / "summary.json").read_text())
    with open(folder / "metrics.csv") as file:
        stages = {row["stage"] for row in csv.DictReader(file)}
    assert stages == {f"{cost}, {name}" for cost in COSTS for name in ADAPTIVE}
    assert all(0.7 < row["rms_z"] < 1.6 for row in expected["means"])

    for module, function, calls in ((estimators, "train", 5), (experiment, "judge", 10)):
        with monkeypatch.context() as patch:
            patch.setattr(module, function, _stop_after(calls, getattr(module, function)))
            with pytest.raises(KeyboardInterrupt):
                GradientVarianceAVF(quick=True, out=tmp_path / function).run()
        GradientVarianceAVF(quick=True, out=tmp_path / function, resume=True).run()
        found = tmp_path / function / "gradient_variance_avf-quick"
        metrics = [(path / "metrics.csv").read_text() for path in (folder, found)]
        assert metrics[0] == metrics[1]
        summary = json.loads((found / "summary.json").read_text())
        assert summary["table"] == expected["table"]
        assert summary["means"] == expected["means"]


def _stop_after(calls, function):
    def counted(*args, **kwargs):
        nonlocal calls
        calls -= 1
        if calls < 0:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    return counted


def test_bad_settings_are_told():
    with pytest.raises(ValueError, match="steps >= 1, but got 0"):
        GradientVarianceAVF(steps=0)
    with pytest.raises(ValueError, match="seeds >= 2, but got 1"):
        GradientVarianceAVF(seeds=1)
    with pytest.raises(ValueError, match="radii >= 0"):
        GradientVarianceAVF(radii=(-1.0,))
    with pytest.raises(ValueError, match="no draws of your own"):
        GradientVarianceAVF(quick=True, draws=7)
