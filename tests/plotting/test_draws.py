"""Figures of draws in the model's own terms: of a guide of several modes, with weights; errors."""

import math

import matplotlib.pyplot as plt
import numpy
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_mixtures import AutoMultivariateNormalMixture
from pyro_mixtures.diagnostics import psis
from pyro_mixtures.plotting import plot_draws, plot_mixture, plot_pairs


def model():
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    pyro.sample("y", dist.Normal(x.abs().sum(-1), scale), obs=torch.tensor(4.0))


@pytest.fixture
def guide():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = AutoMultivariateNormalMixture(model, num_components=4, init_scale=0.5)
    guide()
    guide.locs.data[:, 1:] = torch.tensor([[4.0, 0.0], [-4.0, 0.0], [0.0, 4.0], [0.0, -4.0]])
    yield guide
    pyro.clear_param_store()


NAMES = ["scale", "x[0]", "x[1]"]


def test_the_posterior_of_a_guide_of_several_modes(guide):
    """In unconstrained coordinates, with their names: its parameters have gradients."""
    posterior = guide.get_posterior()
    assert posterior.locs.requires_grad
    axes = plot_pairs(posterior, (0, 1, 2), reference=posterior.sample((500,)), names=NAMES)
    assert [ax.get_xlabel() for ax in axes[2]] == NAMES
    assert [axes[row, 0].get_ylabel() for row in (1, 2)] == NAMES[1:]
    for ends in (axes[2, 1].get_xlim(), axes[2, 1].get_ylim()):
        assert ends[0] < -4
        assert ends[1] > 4
    _, ax = plt.subplots()
    plot_mixture(posterior, (2, 0), names=NAMES, ax=ax)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x[1]", "scale")


def test_draws_of_the_guide_with_weights(guide):
    found = psis(model, guide, num_samples=2000)
    axes = plot_draws(found.samples, weights=found.log_weights.exp())
    axes[0, 0].figure.canvas.draw()
    assert [ax.get_xlabel() for ax in axes[2]] == NAMES
    assert [axes[row, 0].get_ylabel() for row in (1, 2)] == NAMES[1:]
    assert [axes[place] is None for place in ((0, 1), (0, 2), (1, 2))] == [True] * 3
    assert axes[0, 0].get_xlim()[0] > -1  # a scale
    only = plot_draws(found.samples, ["x"])
    assert only.shape == (2, 2)
    assert plot_draws({"scale": found.samples["scale"]}).shape == (1, 1)


def test_panels_show_what_they_say():
    torch.manual_seed(0)
    draws = {"a": torch.randn(20_000), "b": 5 + torch.rand(20_000, 1)}
    axes = plot_draws(draws, weights=torch.where(draws["a"] > 0, 3.0, 1.0))
    (line,) = axes[1, 0].lines
    x, y = line.get_data()
    assert (x > 0).mean() == pytest.approx(0.75, abs=0.02)
    assert y.min() > 5
    area, left = 0.0, 0.0
    for patch in axes[0, 0].patches:
        size = patch.get_width() * patch.get_height()
        area += size
        left += size * (patch.get_x() + patch.get_width() / 2 < 0)
    assert area == pytest.approx(1, abs=1e-6)
    assert left == pytest.approx(0.25, abs=0.03)
    low, high = axes[0, 0].get_xlim()
    assert axes[1, 0].get_xlim() == (low, high)
    assert -4 < low < -2
    assert 2 < high < 4


def test_draws_that_are_all_the_same():
    axes = plot_draws({"a": torch.ones(50), "b": numpy.arange(50)})
    assert axes[0, 0].get_xlim() == (0.5, 1.5)


@pytest.mark.parametrize(
    ("draws", "options", "message"),
    [
        ({"a": torch.zeros(9)}, {"sites": ["b"]}, "sites among a, but got 'b'"),
        ({"a": torch.zeros(9)}, {"sites": []}, "1 to 12 numbers, but got 0"),
        ({"a": torch.zeros(9, 13)}, {}, "1 to 12 numbers, but got 13"),
        ({"a": torch.zeros(9), "b": torch.zeros(8)}, {}, r"each site, but got \[8, 9\]"),
        ({"a": torch.zeros(0)}, {}, r"each site, but got \[0\]"),
        ({"a": torch.tensor(1.0)}, {}, "but got a number"),
        ({"a": torch.full((9,), math.nan)}, {}, "finite"),
        ({"a": torch.zeros(9)}, {"weights": torch.ones(8)}, r"shape \(9,\), .* got \(8,\)"),
        ({"a": torch.zeros(9)}, {"weights": torch.zeros(9)}, "a sum above zero"),
        ({"a": torch.zeros(9)}, {"weights": -torch.ones(9)}, "not negative"),
        ({"a": torch.zeros(9)}, {"weights": torch.full((9,), math.nan)}, "finite"),
    ],
)
def test_mistakes(draws, options, message):
    with pytest.raises(ValueError, match=message):
        plot_draws(draws, **options)
    assert not plt.get_fignums()
