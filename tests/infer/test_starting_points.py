"""Where the components of a guide start, and in how many runs of the model."""

import io
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoMultivariateNormal,
    init_to_feasible,
    init_to_generated,
    init_to_mean,
    init_to_median,
    init_to_sample,
    init_to_uniform,
    init_to_value,
)

from pyro_mixtures.infer import AutoDiagonalNormalMixture, AutoMultivariateNormalMixture

PAIRS = [
    (AutoDiagonalNormalMixture, AutoDiagonalNormal),
    (AutoMultivariateNormalMixture, AutoMultivariateNormal),
]


@pytest.fixture(autouse=True)
def _clean_store():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


class Counted:
    """A model, and how often it ran."""

    def __init__(self, model):
        self.model, self.runs = model, 0

    def __call__(self, *args):
        self.runs += 1
        return self.model(*args)


def several_sites():
    """Constrained sites of several shapes, in and out of plates, with laws of their parents."""
    rate = pyro.sample("rate", dist.LogNormal(0.0, 0.5))
    pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("groups", 4, dim=-2):
        level = pyro.sample("level", dist.Normal(3 * rate, 0.1))
        with pyro.plate("rows", 3, dim=-1):
            pyro.sample("low", dist.Uniform(level, level + 1.0))
    pyro.sample("pair", dist.Normal(torch.zeros(2), rate.unsqueeze(-1)).to_event(1))
    with pyro.plate("data", 5, subsample_size=2):
        pyro.sample("y", dist.Normal(rate, 1.0), obs=torch.ones(2))


def starts(model, num_components, init_loc_fn=None, init_scale=1e-6):
    """Means of the components, and how many runs of the model they took."""
    pyro.clear_param_store()
    counted = Counted(model)
    guide = AutoDiagonalNormalMixture(counted, num_components, init_loc_fn, init_scale)
    guide._setup_prototype()
    return guide, guide.locs.detach(), counted.runs


@pytest.mark.parametrize(("guide_class", "of_pyro"), PAIRS)
@pytest.mark.parametrize("num_components", [1, 2, 9])
def test_the_first_component_starts_as_a_guide_of_pyro(guide_class, of_pyro, num_components):
    guide, other = guide_class(several_sites, num_components), of_pyro(several_sites)
    for each in (other, guide):
        pyro.set_rng_seed(3)
        each()
    assert torch.equal(guide.locs[0], other.loc)
    assert all((loc - other.loc).abs().max() > 0.1 for loc in guide.locs[1:])


@pytest.mark.parametrize("num_components", [1, 3, 9])
def test_a_function_of_the_user_is_for_all_and_one_component_is_not_moved(num_components):
    point = init_to_value(values={"x": torch.tensor([0.5, -1.0])})

    def model():
        pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    _, locs, runs = starts(model, num_components, point, init_scale=0.3)
    distances = (locs - torch.tensor([0.5, -1.0])).abs()
    assert runs == num_components
    if num_components == 1:
        assert distances.max() == 0
    else:
        assert distances.min() > 0
        assert distances.max() < 1.5  # 5 standard deviations of the jitter


def test_others_spread_as_uniform_and_independent():
    """Means, scales and correlations of 2999 draws, each within 5 standard errors."""
    _, locs, runs = starts(several_sites, 3000)
    assert runs < 10
    rate, low = locs[1:, :1], locs[1:, 7:19]  # not weights, whose support turns its coordinates
    others = torch.cat([rate, low], 1)
    assert others.abs().max() < 2 + 1e-4
    assert others.mean(0).abs().max() < 5 * 2 / 3**0.5 / 3000**0.5
    assert (others.var(0) - 4 / 3).abs().max() < 5 * (16 / 5 - 16 / 9) ** 0.5 / 3000**0.5
    alike = others.T.corrcoef() - torch.eye(13)
    assert alike.abs().max() < 5 / 3000**0.5
    assert torch.cat([others[:-1, :1], others[1:, :1]], 1).T.corrcoef()[0, 1].abs() < 0.1


def test_draws_follow_their_parents():
    """Each component's local sites start about its own global one."""
    _, locs, runs = starts(several_sites, 3000, init_to_sample)
    assert runs < 10
    rate, level = locs[:, 0].exp(), locs[:, 3:7]
    assert abs(rate.log().std() - 0.5) < 0.04
    residual = level - 3 * rate.unsqueeze(-1)
    assert abs(residual.std() - 0.1) < 0.01
    assert residual.T.corrcoef().sub(torch.eye(4)).abs().max() < 0.1


@pytest.mark.parametrize(
    "init",
    [
        init_to_feasible,
        init_to_mean,
        init_to_median,
        init_to_median(num_samples=3),
        init_to_uniform(radius=0.1),
    ],
)
def test_the_law_of_a_run_for_each_is_kept(init):
    """Means and scales of 500 components, in one run and in 500, to 6 standard errors."""

    def chain():
        x = pyro.sample("x", dist.Normal(1.0, 1.0))
        with pyro.plate("rows", 2):
            pyro.sample("y", dist.LogNormal(x, 1.0))

    _, once, few = starts(chain, 500, init)
    _, each, many = starts(chain, 500, lambda site: init(site))
    assert few < 10
    assert many == 500
    error = 6 * (2 / 500) ** 0.5 * each.std(0) + 1e-4
    assert ((once.mean(0) - each.mean(0)).abs() < error).all()
    assert ((once.std(0) - each.std(0)).abs() < error).all()


def test_long_sites_in_batches(monkeypatch):
    monkeypatch.setattr("pyro_mixtures.infer.guides.starting_points.ELEMENTS", 200)
    _, locs, runs = starts(several_sites, 50)  # of 26 elements
    assert 50 / (200 // 26) <= runs < 14
    assert torch.cdist(locs, locs).add(torch.eye(50)).min() > 0.1


def test_functions_that_count_their_calls():
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(0.0, 1.0))

    points = iter(torch.arange(12.0))
    _, locs, _ = starts(model, 6, lambda site: next(points))
    torch.testing.assert_close(locs, torch.arange(12.0).reshape(6, 2), atol=1e-4, rtol=0)
    points = iter(torch.arange(12.0))
    own = init_to_generated(generate=lambda: partial(init_to_value, values=pair(points)))
    _, locs, _ = starts(model, 6, own)
    torch.testing.assert_close(locs, torch.arange(12.0).reshape(6, 2), atol=1e-4, rtol=0)
    points = iter(torch.arange(12.0))
    fallback = init_to_mean(fallback=lambda site: next(points))
    cauchy = lambda: pyro.sample("x", dist.Cauchy(0.0, 1.0))  # noqa: E731
    _, locs, _ = starts(cauchy, 6, fallback)
    torch.testing.assert_close(locs[:, 0], torch.arange(6.0), atol=1e-4, rtol=0)


def pair(points):
    return {"x": next(points), "y": next(points)}


def total():
    """A sum over all that is there."""
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(x.sum(), 0.01))


def leftmost():
    """An index from the left."""
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(x[0] + x[1], 0.01))


def branches():
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    y = x[..., 0] + x[..., 1]
    pyro.sample("y", dist.Normal(y if y > 0 else 1.0 * y, 0.01))


def hidden():
    """What the guide does not see has one value in one run."""
    x = pyro.sample("hidden", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(x, 1e-4).to_event(1))
    pyro.sample("y", dist.Normal(x[..., 0] + x[..., 1], 0.01))


@pytest.mark.parametrize(
    "model", [total, leftmost, branches, poutine.block(hidden, hide=["hidden"])]
)
def test_models_for_one_point_only(model):
    """They run for each component, with the law that this has: y is x_0 + x_1."""
    _, locs, runs = starts(model, 400, init_to_sample)
    assert runs >= 400
    assert (locs[:, 2] - locs[:, :2].sum(-1)).std() < 0.02
    assert abs(locs[:, :2].std() - 1) < 0.2
    assert abs(locs[:, :2].T.corrcoef()[0, 1]) < 0.25


def test_within_a_dimension_for_particles():
    """The guide's first call may come from within an objective's plate."""
    counted = Counted(several_sites)
    guide = AutoDiagonalNormalMixture(counted, 50)
    with pyro.plate("num_particles_vectorized", 7, dim=-3):
        assert guide()["level"].shape == (7, 4, 1)
    assert counted.runs < 10
    assert guide.locs.shape == (50, 21)


def test_a_model_of_changing_shapes():
    sizes = iter([2, 3])

    def model():
        pyro.sample("x", dist.Normal(torch.zeros(next(sizes)), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"'x' to have the shape \(2,\) .* but got \(3,\)"):
        AutoDiagonalNormalMixture(model, 2)()


def test_a_guide_whose_function_cannot_be_pickled():
    guide = AutoDiagonalNormalMixture(several_sites, 2, lambda site: init_to_sample(site))
    guide()
    for _ in range(2):
        buffer = io.BytesIO()
        torch.save(guide, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert torch.equal(loaded.get_posterior().locs, guide.get_posterior().locs)
