"""Maximum entropy under constraints: its truths, its gradients, its table."""

import math

import pytest
import torch

from experiments.flows import entropy, gradients
from experiments.flows.moments import PROBLEMS, mmd_p_value
from experiments.flows.part import table
from experiments.lab.sweep import Diverged


def latents_of(name, points):
    """Latents of points on the support."""
    if name == "two modes":
        return points
    last = (1 - points.sum(-1, keepdim=True)).clamp(min=1e-12)
    return points.clamp(min=1e-12).log() - last.log()


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_truth_has_the_moments_and_the_covariance(name):
    moments = PROBLEMS[name]()
    points = moments.draw(100_000, torch.Generator().manual_seed(0))
    latents = latents_of(name, points)
    torch.testing.assert_close(moments.points(latents), points, atol=1e-4, rtol=1e-4)
    violations = (moments.features(latents) - moments.expected) @ moments.white.T
    size = violations.shape[-1]
    assert violations.mean(0).abs().max() < 4.5 / 100_000**0.5
    torch.testing.assert_close(violations.T.cov(), torch.eye(size), atol=0.06, rtol=0)


def test_the_truth_has_the_entropy():
    assert PROBLEMS["Dirichlet"]().entropy == pytest.approx(-1.2443, abs=5e-5)
    moments = PROBLEMS["two modes"]()
    x, y = moments.draw(100_000, torch.Generator().manual_seed(0)).unbind(-1)
    line = torch.linspace(-4, 4, 4001)
    log_z = torch.trapezoid((-0.5 * (line**2 - 4) ** 2 + 0.1 * line).exp(), line).log()
    log_p = -0.5 * (x**2 - 4) ** 2 + 0.1 * x - log_z - 0.5 * (y**2 + math.log(2 * math.pi))
    error = log_p.std() / 100_000**0.5
    assert abs(-log_p.mean() - moments.entropy) < 4.5 * error
    assert 0.55 < (x > 0).float().mean() < 0.65


def test_the_volume_is_that_of_the_map_to_the_simplex():
    moments = PROBLEMS["Dirichlet"]()
    latents = torch.randn(5, 2)
    for each in latents:
        jacobian = torch.autograd.functional.jacobian(moments.points, each)
        torch.testing.assert_close(jacobian.det().log(), moments.log_volume(each))


def test_the_discrepancy_tells_other_distributions_and_no_equal_ones():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(21, 300, 2, generator=generator)
    equal = [mmd_p_value(draws[0], each, generator) for each in draws[1:]]
    assert 0.2 < sum(equal) / 20 < 0.8
    assert mmd_p_value(draws[0], 1.5 * draws[1], generator) < 0.01


@pytest.mark.parametrize("name", PROBLEMS)
def test_pathwise_gradients_are_unbiased_and_relaxed_ones_are_not(name):
    """z-scores of 20 coordinates by 80 gradients: more than 4.5 once in 5,000 tests."""
    found = {row["contender"]: row for row in gradients.fit(name, 80, 300, 1)}
    assert found["mixture, pathwise"]["z_score"] < 4.5
    assert found["mixture, pathwise"]["bias"] < 0.1
    for relaxed in ("Gumbel, 8 nested", "Gumbel, 64 nested"):
        assert found[relaxed]["z_score"] > 10
        assert found[relaxed]["bias"] > 0.15


def test_a_short_fit_meets_its_constraints_better_and_goes_on_in_other_units():
    result = entropy.fit("Dirichlet", "mixture, pathwise", 2, 200, 20, (2000, 10_000), 10, 50)
    course = [float(row["violation"].mean()) for row in result["rows"]]
    assert course[-1] < 0.4 * course[0]
    assert result["entropy"].shape == result["p_value"].shape == (2,)
    truth = PROBLEMS["Dirichlet"]().entropy
    assert (result["entropy"] - truth).abs().max() < 0.15


def test_the_table_has_the_gap_and_fits_that_diverged():
    jobs = {
        name: {"problem": "Dirichlet", "contender": name, "seeds": 2, "steps": 100}
        for name in ("a", "b")
    }
    truth = PROBLEMS["Dirichlet"]().entropy
    result = {
        "entropy": torch.tensor([truth + 0.1, truth + 0.3]),
        "trained_entropy": torch.tensor([truth + 0.2, truth + 0.4]),
        "violation": torch.tensor([[0.01, -0.03], [0.05, 0.0]]),
        "violation_error": torch.full((2, 2), 0.01),
        "p_value": torch.tensor([0.4, 0.6]),
        "in_steps": 4.0,
    }
    rows = entropy.rows(jobs, {"a": result, "b": Diverged("NaN")})
    assert rows[0]["violation"] == pytest.approx(0.04)
    assert rows[0]["z_score"] == pytest.approx(5.0)
    lines = table(entropy.COLUMNS, rows).splitlines()
    assert lines[2] == (
        "| Dirichlet | a | 0.2000 ± 0.1000 | 0.1000 ± 0.0000 | 0.0400 ± 0.0100 | 0.50 ± 0.10"
        " | 40.0 | 2.0 |"
    )
    assert lines[3] == "| Dirichlet | b | - | - | - | - | - | - |"
