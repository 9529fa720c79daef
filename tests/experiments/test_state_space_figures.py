"""The figures of the state space experiment."""

import matplotlib.pyplot as plt
import numpy
import pytest

from experiments.state_space import figures


@pytest.fixture
def axes(monkeypatch):
    """Of the figures that are saved, whose closing is put off."""
    found = []
    with monkeypatch.context() as patch:
        patch.setattr(figures.plt, "close", lambda figure: found.extend(figure.axes))
        yield found
    plt.close("all")


def samples(seed, count=500):
    return numpy.random.default_rng(seed).standard_normal((count, 10, 2))


def test_marginals_have_a_panel_for_each_row_and_time(tmp_path, axes):
    guides = {"K = 1": samples(1), "K = 2": samples(2) + 1}
    observations = numpy.arange(20.0).reshape(10, 2)
    figures.plot_marginals(tmp_path / "new.png", samples(0), guides, observations, (2, 9))
    assert (tmp_path / "new.png").stat().st_size > 0
    assert len(axes) == 6
    assert [ax.get_title() for ax in axes[:2]] == [
        "$t = 2$, $x_{2} = (2.00, 3.00)$",
        "$t = 9$, $x_{9} = (16.00, 17.00)$",
    ]
    assert [axes[row].get_ylabel().split("\n")[0] for row in (0, 2, 4)] == [
        "smoother",
        "K = 1",
        "K = 2",
    ]


def test_density_is_that_of_the_samples():
    """A Normal's, at the peak and two standard deviations from it."""
    z = samples(0, 50_000)[:, 0] * 0.5
    sides = figures._sides(z, [z])
    density = figures._density(z, sides)
    assert sides[0][0] == -sides[0][-1]
    total = density.sum() * (sides[0][1] - sides[0][0]) * (sides[1][1] - sides[1][0])
    centre, off = (
        density[numpy.abs(sides[0] - place).argmin(), numpy.abs(sides[1]).argmin()] / total
        for place in (0.0, 1.0)
    )
    variance = 0.25 + figures.WIDTH**2  # of the smoothed density
    peak = 1 / (2 * numpy.pi * variance)
    assert centre == pytest.approx(peak, rel=0.1)
    assert off == pytest.approx(peak * numpy.exp(-0.5 / variance), rel=0.15)


def test_elbos_show_means_and_errors(tmp_path, axes):
    epochs = [0, 10, 20]
    elbos = [[-30.0, -25.0, -22.0], [-32.0, -25.0, -23.0]]
    panels = {
        "K = 2": {"pathwise": (epochs, elbos), "clustered": (epochs, elbos[:1])},
        "pathwise": {"K = 1": (epochs, elbos[1])},
    }
    figures.plot_elbos(tmp_path / "new.png", panels, -21.0)
    assert (tmp_path / "new.png").stat().st_size > 0
    assert [ax.get_title() for ax in axes] == ["K = 2", "pathwise"]
    line = axes[0].lines[0]
    assert line.get_label() == "pathwise"
    assert line.get_ydata().tolist() == [-31.0, -25.0, -22.5]
    assert len(axes[0].collections) == 1  # one seed has no band
    low, high = axes[1].get_ylim()
    assert low < -23 < -21 < high
