"""A verdict in words: each line where it applies and only there, alarms before notes."""

import math
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_mixtures.infer.search.findings import alarms, notes, optima_outside, unknowable
from pyro_mixtures.numerics.weighing import weigh
from tests.infer.search.stand_in import FoundOptima, normals, result_of

COUNT = 4000


def model():
    prior = dist.Normal(0.0, 5.0)
    x = pyro.sample("x", prior)
    parts = [dist.Normal(loc, 1.0).log_prob(x) for loc in (-3.0, 3.0)]
    mixed = torch.logaddexp(parts[0] + math.log(0.3), parts[1] + math.log(0.7))
    pyro.factor("y", mixed - prior.log_prob(x))


def exact(**options):
    return result_of(model, normals([[-3.0], [3.0]], [1.0, 1.0], [0.3, 0.7]), **options)


def weighing(spread=0.01, count=COUNT):
    generator = torch.Generator().manual_seed(0)
    return weigh(spread * torch.randn(count, generator=generator, dtype=torch.float64))


def told(*, good=True, without_density=0, flat=(), unsampled=(), failures=(0, None), **options):
    """Alarms and notes of a search and a density that have ended as given."""
    search = exact(**options).search
    search.evaluations.failed, search.evaluations.first_failure = failures
    density = SimpleNamespace(
        coordinate_names=["tau", "mu"],
        flat_coordinates=list(flat),
        unsampled_sites=list(unsampled),
    )
    found = weighing(0.01 if good else 5.0)
    given = found, without_density
    return alarms(search, density, search.mixture, *given), notes(search, density, *given)


def test_where_nothing_is_wrong_there_is_no_alarm_and_what_cannot_be_known():
    found, other = told()
    assert found == []
    assert other == [other[0], unknowable(300)]
    assert other[0].startswith("k-hat")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"good": False}, "neither the draws nor their weights are to be trusted"),
        ({"flat": ["b[0]", "b[1]"]}, "improper, without end along b[0], b[1]"),
        ({"improper": [0]}, "improper, without end along tau"),
        ({"without_density": 400}, "400 of 4000 draws of the mixture lie where"),
        ({"stopped": "interrupted"}, "interrupted after 100 steps"),
        ({"converged": 0.5, "max_evaluations": 10_000}, "50 % of the starts were cut off"),
    ],
)
def test_each_alarm_stands_where_it_applies(options, words):
    found, other = told(**options)
    assert len(found) == 1
    assert words in found[0]
    assert not any(words in each for each in other)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"without_density": 3}, "3 of 4000 draws of the mixture lie where"),
        ({"stopped": "budget"}, "stopped by the budget of 100000 evaluations"),
        ({"at_cap": True}, "the largest number of components"),
        ({"optima": (torch.empty(0, 1), [])}, "no start has led to an optimum"),
        ({"converged": 0.97, "max_evaluations": 10_000}, "3 % of the starts were cut off"),
        ({"converged": 0.38}, "62 % of the starts found no optimum"),
        ({"failures": (7, "ValueError: no")}, "the first with ValueError: no"),
        ({"unsampled": ["beta"]}, "beta cannot be drawn from a prior"),
    ],
)
def test_each_note_stands_where_it_applies_and_is_no_alarm(options, words):
    found, other = told(**options)
    assert found == []
    assert len(other) == 3
    assert words in other[1]


def test_weights_come_before_the_budget():
    found, other = told(good=False, stopped="budget", improper=[0])
    assert ["improper" in found[0], "k-hat" in found[1], "budget" in found[2]] == [True] * 3
    assert other == [unknowable(300)]


def test_a_number_of_components_that_was_asked_for_is_no_cap():
    assert told(at_cap=True, num_components=2) == told()


def test_many_names_are_cut_short():
    found, _ = told(flat=[f"b[{index}]" for index in range(40)])
    assert "b[4] and 35 more" in found[0]


def test_an_optimum_outside_is_found_by_its_mass():
    result = result_of(
        model,
        normals([[-3.0]], [1.0], [1.0]),
        optima=([[-3.0], [3.0]], [math.log(0.3), math.log(0.7)]),
    )
    summary = result.summary()
    assert not summary.passed_checks
    assert "1 of 2 optima that the starts found lie outside of the mixture" in summary.alarms[-1]
    share = float(summary.alarms[-1].split("with about ")[1].split(" %")[0])
    assert share == pytest.approx(70, abs=3)


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"stopped": "budget"}, "budget too small"),
        ({"stopped": "flat"}, "by another seed"),
        ({"stopped": "interrupted"}, "ended too early"),
        ({"at_cap": True}, "more components are needed than there may be"),
        ({"num_components": 1, "at_cap": True}, "take more components"),
    ],
)
def test_the_advice_is_that_of_the_cause(options, advice):
    both = [[-3.0], [3.0]], [math.log(0.3), math.log(0.7)]
    summary = result_of(model, normals([[-3.0]], [1.0], [1.0]), optima=both, **options).summary()
    (alarm,) = (each for each in summary.alarms if "outside of the mixture" in each)
    assert advice in alarm


def test_optima_that_are_covered_or_hold_nothing_are_none_outside():
    result = exact(optima=([[-3.0], [3.0]], [math.log(0.3), math.log(0.7)]))
    assert result.summary().passed_checks
    q = normals([[0.0]], [1.0], [1.0])
    far = torch.tensor([[50.0], [60.0]], dtype=torch.float64)
    values = torch.tensor([0.0, -20.0], dtype=torch.float64)
    optima = FoundOptima(far, values, values)
    assert optima_outside(optima, q, 0.0).tolist() == [0.0]
    assert optima_outside(FoundOptima(far[:0], values[:0], values[:0]), q, 0.0).tolist() == []


@pytest.mark.parametrize("count", [10, 300, 2000])
def test_what_starts_miss_is_the_probability_that_none_falls_into_a_basin(count):
    text = unknowable(count)
    share = float(text.split("holds ")[1].split(" %")[0]) / 100
    assert (1 - share) ** count == pytest.approx(0.05, abs=0.01)
    assert f"{count} starts" in text
