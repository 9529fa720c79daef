"""What a fit gives back: draws, a guide, modes and a report, from one mixture."""

import io
import math
import pickle
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import init_to_value

from experiments.modes.targets import TARGETS
from pyro_mixtures.distributions import MixtureOfDiagNormals
from pyro_mixtures.infer import (
    AutoDiagonalNormalMixture,
    AutoMultivariateNormalMixture,
    FitResult,
    ModelLogDensity,
)
from pyro_mixtures.infer.search.evaluations import Evaluations
from pyro_mixtures.infer.search.mixture_draws import mixture_draws
from pyro_mixtures.infer.search.modes import mode_weights
from pyro_mixtures.numerics.weighing import weigh
from tests.infer.search.stand_in import EndedSearch, normals, optima_at, result_of


def two_modes():
    """The posterior is 0.3 N(-3, 1) + 0.7 N(3, 1), and its evidence one."""
    prior = dist.Normal(0.0, 5.0)
    x = pyro.sample("x", prior)
    parts = [dist.Normal(loc, 1.0).log_prob(x) for loc in (-3.0, 3.0)]
    mixed = torch.logaddexp(parts[0] + math.log(0.3), parts[1] + math.log(0.7))
    pyro.factor("y", mixed - prior.log_prob(x))


def exact(**options):
    return result_of(two_modes, normals([[-3.0], [3.0]], [1.0, 1.0], [0.3, 0.7]), **options)


def rough(**options):
    """As it is, but for weights and widths."""
    return result_of(two_modes, normals([[-3.0], [3.0]], [1.1, 1.2], [0.5, 0.5]), **options)


def scaled(dtype=torch.float32):
    pyro.sample("scale", dist.LogNormal(torch.zeros((), dtype=dtype), 1.0))
    with pyro.plate("two", 2):
        pyro.sample("x", dist.Normal(torch.zeros(2, dtype=dtype), 3.0))


def bounded():
    x = pyro.sample("x", dist.Normal(0.0, 5.0))
    pyro.factor("y", torch.where(x < 1, 0.0, -math.inf))


def without_prior():
    x = pyro.sample("x", dist.ImproperUniform(constraints.positive, (), ()))
    pyro.sample("y", dist.Normal(x.log(), 1.0), obs=torch.tensor(0.5))


def mixed():
    with pyro.plate("data", 3):
        which = pyro.sample("which", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(which, 1.0), obs=torch.tensor([0.0, 1.0, 2.0]))
    pyro.sample("x", dist.Normal(torch.zeros(2), 3.0).to_event(1))


@pytest.fixture(autouse=True)
def _clean_store():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def test_figures_are_those_of_a_posterior_that_is_known():
    summary = rough().summary()
    assert abs(summary.log_evidence) < 4 * summary.log_evidence_error < 0.05
    assert summary.elbo + 4 * summary.elbo_error < 0
    assert 2000 < summary.effective_sample_size < 4000
    assert summary.khat < 0.7
    assert summary.passed_checks
    for mode, weight in zip(summary.modes, (0.7, 0.3), strict=True):
        assert abs(mode.weight - weight) < 4 * mode.weight_error < 0.06


def test_errors_of_weights_are_those_of_repetitions():
    result = rough()
    q = result.posterior
    groups = [torch.tensor([0]), torch.tensor([1])]
    generator = torch.Generator().manual_seed(0)
    found, errors = [], []
    for _ in range(200):
        z = mixture_draws(q, 400, generator)
        weights = weigh(result.density(z) - q.log_prob(z)).log_weights
        weight, error = mode_weights(q, groups, z, weights)
        found.append(weight[0])
        errors.append(error[0])
    spread, told = torch.stack(found).std(), torch.stack(errors).mean()
    assert 0.8 < spread / told < 1.25  # four standard errors of 200 are 0.2
    assert abs(torch.stack(found).mean() - 0.3) < 4 * spread / 200**0.5


def test_equal_importance_weights_leave_no_error_of_the_modes():
    for mode, weight in zip(exact().modes, (0.7, 0.3), strict=True):
        assert mode.weight == pytest.approx(weight, abs=1e-4)
        assert mode.weight_error < 1e-4


def test_weights_that_are_not_to_be_trusted_leave_modes_those_of_their_components():
    narrow = result_of(two_modes, normals([[-3.0], [3.0]], [0.2, 0.2], [0.6, 0.4]))
    summary = narrow.summary()
    assert [mode.weight for mode in summary.modes] == pytest.approx([0.6, 0.4])
    assert all(math.isnan(mode.weight_error) for mode in summary.modes)
    assert not summary.passed_checks
    assert "neither the draws nor their weights" in summary.alarms[0]
    with pytest.warns(UserWarning, match="do not mend draws"):
        narrow.draws(10, resample=True)


def test_draws_without_density_are_told():
    some = result_of(bounded, normals([[0.0]], [1.0], [1.0])).summary()
    assert some.elbo == -math.inf
    assert math.isfinite(some.log_evidence)
    assert any("draws of the mixture lie where" in alarm for alarm in some.alarms)
    assert some.without_mass > 400
    none = result_of(bounded, normals([[40.0]], [1.0], [1.0])).summary()
    assert none.elbo == none.log_evidence == -math.inf
    assert "4000 of 4000 draws of the mixture lie where" in str(none)


@pytest.mark.parametrize("way", ["vmap", "loop"])
def test_random_numbers_stay_however_batches_are_evaluated(way):
    q = normals([[0.0, -4.0, 0.0], [1.0, 4.0, 2.0]], [0.5, 0.5], [0.25, 0.75])
    density = ModelLogDensity(scaled, way=way)
    search = EndedSearch(q, Evaluations(density), optima_at(q.locs, density, [-math.inf] * 2))
    result = FitResult(search, density, scaled, (), {}, 1.0)
    state = torch.get_rng_state()
    assert result.draws(5)["x"].shape == (5, 2)
    assert len(result.summary(25).modes) == 2
    assert torch.equal(torch.get_rng_state(), state)


def test_modes_have_locations_in_terms_of_the_model_and_distances():
    q = normals([[0.0, -4.0, 0.0], [0.0, 4.0, 0.0], [1.0, 4.0, 0.5]], [0.5] * 3, [0.6, 0.2, 0.2])
    modes = result_of(scaled, q).modes
    assert {mode.components for mode in modes} == {(0,), (1, 2)}
    one = next(mode for mode in modes if mode.components == (0,))
    assert one.location["x"].shape == one.spread["x"].shape == (2,)
    torch.testing.assert_close(one.location["x"], torch.tensor([-4.0, 0.0]), atol=0.1, rtol=0)
    torch.testing.assert_close(one.spread["x"], torch.tensor([0.5, 0.5]), atol=0.1, rtol=0)
    assert one.location["scale"] == pytest.approx(1.0, abs=0.1)
    assert one.nearest.index == 1 - modes.index(one)
    assert one.nearest.log_overlap == pytest.approx(-(8**2) / (8 * 0.5**2))
    assert one.nearest.distance == pytest.approx(8.02 / 0.5, rel=0.02)


def test_draws_are_those_of_the_mixture_in_terms_of_the_model():
    q = normals([[0.0, -4.0, 0.0], [1.0, 4.0, 2.0]], [0.1, 0.1], [0.25, 0.75])
    result = result_of(scaled, q)
    draws = result.draws(4000)
    assert {name: tuple(x.shape) for name, x in draws.items()} == {
        "scale": (4000,),
        "x": (4000, 2),
    }
    assert bool((draws["scale"] > 0).all())
    right = draws["x"][:, 0] > 0
    assert abs(right.double().mean() - 0.75) < 4 * (0.75 * 0.25 / 4000) ** 0.5
    assert draws["scale"][right].log().mean() == pytest.approx(1.0, abs=0.01)
    with pytest.raises(ValueError, match="num_samples"):
        result.draws(0)


def test_resampled_draws_are_those_of_the_posterior():
    result = rough()
    share = (result.draws(4000, resample=True)["x"] > 0).double().mean()
    assert abs(share - 0.7) < 0.05
    assert abs((result.draws(4000)["x"] > 0).double().mean() - 0.5) < 0.05


def test_a_seed_gives_the_same_and_random_numbers_of_torch_stay():
    state = torch.get_rng_state()
    first, second = rough(), rough()
    for resample in (False, True):
        one = first.draws(50, resample=resample, seed=3)["x"]
        assert torch.equal(one, second.draws(50, resample=resample, seed=3)["x"])
        assert not torch.equal(one, second.draws(50, resample=resample, seed=4)["x"])
    assert str(first.summary()) == str(second.summary())
    assert first.guide is first.guide
    assert torch.equal(torch.get_rng_state(), state)


def test_a_summary_is_made_once_and_its_evaluations_count():
    result = exact()
    before = result.search.evaluations.count
    summary = result.summary()
    assert summary.evaluations == result.search.evaluations.count >= before + 4000
    assert result.summary() is summary
    assert result.modes is summary.modes
    result.draws(100, resample=True)
    assert result.search.evaluations.count == summary.evaluations
    assert result.summary(100).num_samples == 100
    with pytest.raises(ValueError, match="num_samples"):
        result.summary(10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_guide_is_the_posterior_in_the_dtype_of_the_model(dtype):
    q = normals([[0.0, -4.0, 0.0], [1.0, 4.0, 2.0]], [0.5, 1.0], [0.25, 0.75])
    result = result_of(scaled, q, dtype)
    guide = result.guide
    assert isinstance(guide, AutoMultivariateNormalMixture)
    found = guide.get_posterior()
    assert found.locs.dtype == dtype
    torch.testing.assert_close(found.locs.double(), q.locs)
    torch.testing.assert_close(found.scale_tril.double(), q.scale_tril)
    torch.testing.assert_close(found.log_weights.double(), q.log_weights)
    assert guide.quantiles([0.1, 0.9], dtype)["x"].shape == (2, 2)
    draws = Predictive(scaled, guide=guide, num_samples=20)(dtype)
    assert draws["x"].shape == (20, 2)
    svi = SVI(scaled, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    assert math.isfinite(svi.step(dtype))


def test_diagonal_posteriors_have_a_diagonal_guide():
    locs = torch.tensor([[0.0, -4.0, 0.0], [1.0, 4.0, 2.0]], dtype=torch.float64)
    q = MixtureOfDiagNormals(locs, torch.full_like(locs, 0.5), torch.zeros(2).double())
    result = result_of(scaled, q)
    assert isinstance(result.guide, AutoDiagonalNormalMixture)
    assert len(result.modes) == 2
    assert result.modes[0].nearest.distance == pytest.approx((1 + 64 + 4) ** 0.5 / 0.5)
    assert result.draws(5)["x"].shape == (5, 2)


def test_the_guide_can_be_pickled():
    guide = exact().guide
    buffer = io.BytesIO()
    pickle.dump(guide, buffer)
    buffer.seek(0)
    again = pickle.load(buffer)
    torch.testing.assert_close(again.get_posterior().locs, guide.get_posterior().locs)


def test_guides_of_two_results_share_no_parameters():
    """Nor does one of the user's own of their class, whatever is called or trained."""
    near, far = normals([[0.5]], [1.0], [1.0]), normals([[0.5]], [3.0], [1.0])
    results = [result_of(without_prior, each) for each in (near, far)]
    guides = [result.guide for result in results]
    other = AutoMultivariateNormalMixture(
        without_prior, 1, init_to_value(values={"x": torch.ones(())})
    )
    other()
    svi = SVI(without_prior, guides[1], pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    svi.step()
    guides[0]()
    assert guides[0].get_posterior().scale_tril.item() == pytest.approx(1.0)
    pyro.clear_param_store()
    guides[0]()
    assert guides[0].get_posterior().scale_tril.item() == pytest.approx(1.0)
    assert guides[1].get_posterior().scale_tril.item() != pytest.approx(3.0)


def test_sites_that_are_summed_out_are_none_of_the_guide():
    q = normals([[0.0, 0.0]], [3.0], [1.0])
    result = result_of(mixed, q)
    assert set(result.draws(3)) == {"x"}
    assert set(result.guide.median()) == {"x"}
    assert result.summary().passed_checks


def test_sites_that_cannot_be_drawn_have_a_guide():
    guide = result_of(without_prior, normals([[0.5]], [1.0], [1.0])).guide
    assert guide.median()["x"] == pytest.approx(math.exp(0.5))


def exchangeable():
    locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 5.0).to_event(1))
    each = dist.Categorical(torch.ones_like(locs)), dist.Normal(locs, 1.0)
    for k, y in enumerate((-4.0, 4.0) * 6):
        pyro.sample(f"y{k}", dist.MixtureSameFamily(*each), obs=torch.tensor(y))


def test_expanded_labels_are_judged_as_they_are():
    locs, stddev = [[-3.97, 3.97], [3.97, -3.97]], 6**-0.5
    one = normals(locs[:1], [stddev], [1.0])
    result = result_of(exchangeable, one, optima=(locs, [-25.0, -25.0]))
    before = result.summary()
    assert "1 of 2 optima that the starts found lie outside" in before.alarms[0]
    assert before.symmetries[0].endswith("1 found; expand_labels() adds the rest")
    expanded = result.expand_labels()
    after = expanded.summary()
    assert after.alarms == []
    assert [mode.weight for mode in after.modes] == pytest.approx([0.5, 0.5], abs=1e-3)
    assert after.log_evidence == pytest.approx(before.log_evidence + math.log(2), abs=0.01)
    assert expanded.expand_labels() is expanded


def test_the_report_shows_figures_modes_and_words():
    text = str(exact(seconds=2.0).summary())
    for told in ("ELBO", "log evidence", "k-hat", "4000 of 4000", "2 modes", "2.0", "0.700 ± "):
        assert told in text
    assert "x 3.0" in text or "x 2.9" in text
    assert "nearly constant" in text
    assert "cannot be known" in text
    assert max(map(len, text.splitlines())) <= 99


def test_long_reports_are_cut_short():
    locs = 10.0 * torch.eye(12)
    weights = torch.arange(1.0, 13.0) / 78
    q = normals(locs, [0.5] * 12, weights)
    text = str(result_of(lambda: pyro.sample("z", q), q).summary(1000))
    assert "12 modes" in text
    assert "and 2 more" in text
    assert text.count("...]") == 10


def test_a_needle_is_no_success():
    target = TARGETS["needle"]()
    q = normals([[0.0] * 10], [1.0], [1.0])
    optima = ([[0.0] * 10], [math.log(0.5)])
    summary = result_of(target.model, q, optima=optima).summary()
    assert summary.khat < 0.5
    assert "all modes found" not in str(summary)
    assert "cannot be known: whether there are modes that no start leads to" in " ".join(
        str(summary).split()
    )
    assert "it cannot see modes that no draw has visited" in " ".join(str(summary).split())


def test_without_arviz_it_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz_base", None)
    with pytest.raises(ImportError, match=r"pyro-mixtures\[arviz\]"):
        exact().to_arviz()


def test_arviz_gets_resampled_draws():
    result = rough()
    tree = result.to_arviz(500)
    values = tree["posterior"]["x"]
    assert values.dims == ("chain", "draw")
    assert values.shape == (1, 500)
    drawn = result.draws(500, resample=True)["x"]
    assert (torch.as_tensor(values.values[0]) == drawn).all()
    assert tree["posterior"].attrs["resampled"] == 1
