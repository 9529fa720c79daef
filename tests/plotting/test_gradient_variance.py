"""Figures of gradient variances: where the points are; errors."""

import matplotlib.pyplot as plt
import pytest
import torch

from pyro_mixtures.diagnostics import GradientVariance
from pyro_mixtures.plotting import plot_gradient_variance


def result(variance, error=0.1) -> GradientVariance:
    variance = torch.as_tensor(variance)
    zeros = torch.zeros_like(variance)
    return GradientVariance(zeros, zeros, variance, torch.full_like(variance, error))


RESULTS = {
    "pathwise": {"locs": result([[1.0], [3.0]]), "logits": result([0.5, 0.1])},
    "score": {"locs": result([[30.0], [50.0]], 25.0), "scale": result(7.0)},
}


def test_points_are_means_in_the_rows_of_their_parameters():
    _, ax = plt.subplots()
    assert plot_gradient_variance(RESULTS, ax=ax) is ax
    ax.figure.canvas.draw()
    rows = [label.get_text() for label in ax.get_yticklabels()]
    assert rows == ["locs", "logits", "scale"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["pathwise", "score"]
    assert ax.get_xscale() == "log"
    assert ax.get_xlabel() == "variance of the gradient"
    expected = [{"locs": 2.0, "logits": 0.3}, {"locs": 40.0, "scale": 7.0}]
    for container, means in zip(ax.containers, expected, strict=True):
        points = zip(*container.lines[0].get_data(), strict=True)
        found = {rows[round(float(y))]: float(x) for x, y in points}
        assert found == pytest.approx(means)
    low, high = ax.containers[1].lines[2][0].get_segments()[0][:, 0]
    assert (low, high) == pytest.approx((15.0, 65.0))


def test_estimators_stand_apart_and_the_first_is_on_top():
    ax = plot_gradient_variance({name: {"x": result(1.0)} for name in "abc"})
    places = [float(container.lines[0].get_ydata()[0]) for container in ax.containers]
    assert places == sorted(set(places))
    assert all(abs(place) < 0.5 for place in places)
    bottom, top = ax.get_ylim()
    assert top < bottom


def test_errors_larger_than_variances_and_variances_of_zero():
    results = {
        "large": {"x": result(1.0, 5.0), "y": result(2.0)},
        "none": {"x": result(0.0), "y": result(1e-8)},
    }
    ax = plot_gradient_variance(results)
    ax.figure.canvas.draw()
    assert len(ax.containers[1].lines[0].get_xdata()) == 1
    low, high = ax.get_xlim()
    assert 1e-10 < low < 1e-8
    assert 6 < high < 100


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({}, "but got {}"),
        ([result(1.0)], "names of estimators"),
        (RESULTS["score"], r"results\['locs'\] to map .* of one estimator, give it a name"),
        ({"a": {"x": torch.ones(3)}}, r"results\['a'\]\['x'\] .* but got Tensor"),
        ({"a": {}}, "at least one parameter"),
    ],
)
def test_mistakes(results, message):
    with pytest.raises(ValueError, match=message):
        plot_gradient_variance(results)
    assert not plt.get_fignums()
