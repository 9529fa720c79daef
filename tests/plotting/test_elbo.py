"""Training curves: what is drawn, in which limits; errors."""

import math

import matplotlib.pyplot as plt
import numpy
import pytest
import torch

from pyro_mixtures.plotting import plot_elbo


def noise(*shape: int) -> numpy.ndarray:
    return numpy.random.default_rng(0).normal(size=shape)


def test_one_run():
    values = noise(1000)
    _, ax = plt.subplots()
    assert plot_elbo(values, ax=ax) is ax
    median, raw = ax.lines
    assert numpy.array_equal(raw.get_ydata(), values)
    assert raw.get_alpha() < 0.5
    assert raw.get_xdata()[[0, -1]].tolist() == median.get_xdata()[[0, -1]].tolist() == [1, 1000]
    assert ax.get_legend() is None
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "ELBO")


@pytest.mark.parametrize("window", [1, 2, 5, 1000])
def test_running_medians(window):
    """Around each step, of as many values as there are."""
    values = noise(40)
    (line, _) = plot_elbo(values, window=window).lines
    before = (window - 1) // 2
    expected = [
        numpy.median(values[max(0, step - before) : step - before + window]) for step in range(40)
    ]
    assert line.get_xdata().tolist() == list(range(1, 41))
    assert line.get_ydata().tolist() == pytest.approx(expected)


def test_seeds_make_a_band():
    values = noise(5, 300)
    ax = plot_elbo({"run": torch.tensor(values, requires_grad=True)}, window=1)
    (line,) = ax.lines
    assert line.get_ydata().tolist() == pytest.approx(numpy.median(values, axis=0).tolist())
    (band,) = ax.collections
    points = band.get_paths()[0].vertices
    assert points[:, 1].min() == pytest.approx(values.min())
    assert points[:, 1].max() == pytest.approx(values.max())


def test_several_runs_have_names_and_colours():
    ax = plot_elbo({"one": noise(50), "other": noise(3, 70), "list": [1, 2, 3]})
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one", "other", "list"]
    assert len({line.get_color() for line in ax.lines}) == 3


def test_the_start_and_single_values_do_not_set_the_limits():
    values = noise(2000)
    values[:100] -= 1e6
    values[1500] = 1e9
    low, high = plot_elbo(values).get_ylim()
    assert -2.5 < low < -1.5 < 1.5 < high < 2.5


def test_values_that_are_not_finite_leave_gaps():
    values = noise(100)
    values[50], values[60] = math.nan, -math.inf
    ax = plot_elbo(values, window=1)
    ax.figure.canvas.draw()
    assert numpy.isnan(ax.lines[0].get_ydata()).sum() == 1
    assert all(math.isfinite(end) for end in ax.get_ylim())
    plot_elbo(numpy.full(10, math.nan)).figure.canvas.draw()


@pytest.mark.parametrize("count", [1, 2, 100_000])
def test_any_length(count):
    ax = plot_elbo(noise(count))
    ax.figure.canvas.draw()
    assert len(ax.lines[0].get_xdata()) <= 500


@pytest.mark.parametrize(
    ("elbos", "options", "message"),
    [
        ({}, {}, "at least one run"),
        ([], {}, r"shape \(steps,\) or \(seeds, steps\), but got \(0,\)"),
        ({"a": numpy.zeros((2, 3, 4))}, {}, r"of 'a' of shape .*, but got \(2, 3, 4\)"),
        ([1.0], {"window": 0}, "window to be an integer >= 1, but got 0"),
    ],
)
def test_mistakes(elbos, options, message):
    with pytest.raises(ValueError, match=message):
        plot_elbo(elbos, **options)
    assert not plt.get_fignums()
