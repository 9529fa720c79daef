"""Results of searches as they end: of a model with two modes, of a needle, of no posterior."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from experiments.modes.targets import TARGETS
from pyro_mixtures.infer import FitResult, ModelLogDensity
from pyro_mixtures.infer.search.mode_search import ModeSearch


def two_modes(distance):
    x = pyro.sample("x", dist.Normal(0.0, 3.0))
    pyro.sample("y", dist.Normal(x.abs(), 0.5), obs=distance)


def without_end():
    x = pyro.sample("x", dist.Normal(0.0, 3.0))
    z = pyro.sample("z", dist.Normal(0.0, 3.0))
    pyro.factor("improper", 0.5 * (z / 3).square() + 1e-9 * x)  # takes the prior of z away


def searched(model, *args, max_evaluations=10_000):
    density = ModelLogDensity(model, args)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(100, density.dimension, generator=generator, dtype=torch.float64)
    search = ModeSearch(density, 3 * noise, max_evaluations=max_evaluations)
    search.run()
    return FitResult(search, density, model, args, {}, 1.0)


def test_both_modes_are_there_with_their_weights():
    result = searched(two_modes, torch.tensor(3.0))
    summary = result.summary()
    assert summary.passed_checks
    assert [mode.weight for mode in result.modes] == pytest.approx([0.5, 0.5], abs=0.01)
    places = sorted(float(mode.location["x"]) for mode in result.modes)
    assert places == pytest.approx([-2.92, 2.92], abs=0.05)
    variance = 3.0**2 + 0.5**2  # of y = |x| + noise without a bound, of both signs
    evidence = math.log(2) - 0.5 * math.log(2 * math.pi * variance) - 9 / (2 * variance)
    assert summary.log_evidence == pytest.approx(evidence, abs=0.01)
    assert result.log[-1].endswith("done")


def test_a_needle_is_not_found_and_not_denied():
    result = searched(TARGETS["needle"]().model)
    text = " ".join(str(result.summary()).split())
    assert result.summary().log_evidence == pytest.approx(math.log(0.5), abs=0.01)
    assert "cannot be known: whether there are modes that no start leads to" in text
    assert "it cannot see modes that no draw has visited" in text
    assert "all modes found" not in text


def test_a_coordinate_without_end_is_an_alarm():
    summary = searched(without_end).summary()
    assert not summary.passed_checks
    assert "improper, without end along z" in summary.alarms[0]
