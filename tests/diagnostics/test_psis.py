"""Importance weights of guides: closed forms of the evidence, draws at once or in turn, errors."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoMultivariateNormal,
    AutoNormal,
    init_to_value,
)
from torch.distributions import Categorical, Gamma

from pyro_mixtures import MixtureOfDiagNormals, MixtureSameFamily
from pyro_mixtures.diagnostics import PSIS, evaluate, log_weights, psis
from pyro_mixtures.estimators import ESTIMATORS
from pyro_mixtures.infer import AutoDiagonalNormalMixture, AutoMultivariateNormalMixture

each_way = pytest.mark.parametrize("vectorize", [False, True, None])


def normal_model():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(2.0))


NORMAL_EVIDENCE = dist.Normal(0.0, math.sqrt(2)).log_prob(torch.tensor(2.0)).item()


def normal_guide(loc=1.0, scale=0.5**0.5):
    pyro.sample("x", dist.Normal(loc, scale))


def number(vectorize: bool) -> int:
    """As many samples as take a second."""
    return 400 if vectorize is False else 4000


def assert_evidence(found: PSIS, exact: float, sigmas: float = 5.0) -> None:
    """Within 5 standard errors: false alarms of 6e-7, for weights of light tails."""
    assert abs(found.log_evidence - exact) < sigmas * found.log_evidence_error + 1e-5


@each_way
def test_the_exact_posterior_has_equal_weights(vectorize):
    found = psis(normal_model, normal_guide, vectorize=vectorize)
    assert found.khat < 0.5
    assert found.effective_sample_size == pytest.approx(1000)
    assert found.log_evidence == pytest.approx(NORMAL_EVIDENCE, abs=1e-5)
    assert found.log_weights.logsumexp(0).item() == pytest.approx(0, abs=1e-12)


@each_way
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_that_differ_by_nothing_have_no_tail(vectorize, dtype):
    """Not infinity, as of a fit that fails."""

    def model():
        pyro.sample("x", dist.Normal(torch.zeros((), dtype=dtype), 1.0))

    found = psis(model, model, vectorize=vectorize, num_samples=100)
    assert found.khat == -math.inf
    assert found.effective_sample_size == pytest.approx(100)
    assert found.log_evidence == pytest.approx(0)


@each_way
def test_a_guide_with_light_tails_is_found_out(vectorize):
    """The weights of a Normal of scale s for one of scale t have shape k = 1 - (s / t)^2."""
    wide = psis(normal_model, lambda: normal_guide(scale=1.0), vectorize=vectorize)
    assert wide.khat < 0.3
    assert_evidence(wide, NORMAL_EVIDENCE)
    narrow = psis(normal_model, lambda: normal_guide(scale=0.25), vectorize=vectorize)
    assert narrow.khat > narrow.threshold  # 0.875 in the limit


def test_the_elbo_is_that_of_the_draws():
    """Less than the log evidence by the divergence of the guide from the posterior."""
    found = psis(normal_model, lambda: normal_guide(scale=0.9), num_samples=4000, vectorize=True)
    posterior, guide = (dist.Normal(1.0, scale) for scale in (0.5**0.5, 0.9))
    gap = torch.distributions.kl_divergence(guide, posterior).item()
    assert abs(found.elbo - (NORMAL_EVIDENCE - gap)) < 5 * found.elbo_error
    assert 0 < found.elbo_error < 0.02
    assert_evidence(found, NORMAL_EVIDENCE)


def test_a_mode_that_no_draw_has_visited_is_spoken_of():
    """The weights cannot know of it, the verdict says so."""

    def model():
        locs, weights = torch.tensor([-20.0, 20.0]), torch.ones(2)
        pyro.sample("x", MixtureOfDiagNormals(locs.unsqueeze(-1), torch.ones(2, 1), weights))

    found = psis(
        model,
        lambda: pyro.sample("x", dist.Normal(torch.tensor([20.0]), 1.01).to_event(1)),
        vectorize=True,
    )
    assert found.khat < found.threshold
    assert found.log_evidence == pytest.approx(math.log(0.5), abs=0.01)
    assert "cannot see modes that no draw has visited" in found.verdict
    assert found.verdict in str(found)


def test_a_bad_guide_is_spoken_of():
    found = psis(normal_model, lambda: normal_guide(scale=0.2), vectorize=True)
    assert found.verdict.endswith("neither the draws nor their weights are to be trusted")
    lines = str(found).splitlines()
    assert lines[0] == "1000 samples"
    assert lines[1].split() == ["ELBO", f"{found.elbo:.3f}", "±", f"{found.elbo_error:.3f}"]
    assert lines[2].split()[:3] == ["log", "evidence", f"{found.log_evidence:.3f}"]
    assert lines[-1] == found.verdict


@pytest.mark.parametrize(("count", "threshold"), [(100, 0.5), (1000, 2 / 3), (10_000, 0.7)])
def test_the_threshold_is_that_of_the_paper(count, threshold):
    found = psis(normal_model, normal_guide, num_samples=count, vectorize=True)
    assert found.threshold == pytest.approx(threshold)


def positive_model():
    """Sites with Jacobians: the evidence of a Poisson number under a Gamma prior, in a plate."""
    with pyro.plate("groups", 2):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.sample("count", dist.Poisson(rate), obs=torch.tensor([1.0, 3.0]))


POSITIVE_EVIDENCE = math.log(2 * 0.5**3) + math.log(4 * 0.5**5)  # negative binomial
AUTOGUIDES = {
    "normal": AutoNormal,
    "diagonal": AutoDiagonalNormal,
    "full": AutoMultivariateNormal,
    "mixture": partial(AutoDiagonalNormalMixture, num_components=3),
    "full_mixture": partial(AutoMultivariateNormalMixture, num_components=3),
}
each_autoguide = pytest.mark.parametrize(
    "autoguide", [pytest.param(guide, id=name) for name, guide in AUTOGUIDES.items()]
)


@each_way
@each_autoguide
def test_autoguides_count_jacobians_and_densities_once(autoguide, vectorize):
    values = {"rate": torch.tensor([1.4, 2.3])}
    guide = autoguide(positive_model, init_loc_fn=init_to_value(values=values), init_scale=0.8)
    count = number(vectorize)
    found = psis(positive_model, guide, num_samples=count, vectorize=vectorize)
    assert_evidence(found, POSITIVE_EVIDENCE)
    assert found.samples.keys() == {"rate"}
    assert found.samples["rate"].shape == (count, 2)
    # the posterior is Gamma(2 + count, 2)
    mean = (found.log_weights.exp() @ found.samples["rate"].double()).tolist()
    assert mean == pytest.approx([1.5, 2.5], abs=5 / math.sqrt(found.effective_sample_size))


SAME_LAW = sorted(ESTIMATORS.keys() - {"gumbel_soft"})


@each_way
@pytest.mark.parametrize("estimator", SAME_LAW)
def test_the_estimator_of_the_gradient_makes_no_difference(estimator, vectorize):
    start = init_to_value(values={"x": torch.tensor(1.0)})
    guide = AutoDiagonalNormalMixture(
        normal_model, 3, init_loc_fn=start, init_scale=0.8, estimator=estimator
    )
    found = psis(normal_model, guide, num_samples=number(vectorize), vectorize=vectorize)
    assert_evidence(found, NORMAL_EVIDENCE)


@pytest.mark.parametrize("weight_gradient", ["pathwise", "clustered", "hybrid"])
@each_way
def test_mixtures_in_guides_by_hand(weight_gradient, vectorize):
    """Two modes, both held by the guide."""

    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        pyro.sample("y", dist.Normal(x.square().sum(-1), 1.0), obs=torch.tensor(4.0))

    def guide():
        angle = torch.arange(12) * math.pi / 6
        locs = 2 * torch.stack([angle.cos(), angle.sin()], -1)
        law = MixtureOfDiagNormals(
            locs, torch.full((12, 2), 0.5), torch.zeros(12), weight_gradient=weight_gradient
        )
        pyro.sample("x", law)

    found = psis(model, guide, num_samples=number(vectorize), vectorize=vectorize)
    radius = torch.linspace(0, 20, 200_001, dtype=torch.float64)
    integrand = radius / 9 * (-radius.square() / 18 - (radius.square() - 4).square() / 2).exp()
    exact = torch.trapezoid(integrand, radius).log().item() - math.log(2 * math.pi) / 2
    assert_evidence(found, exact)


@each_way
def test_other_families_and_discrete_sites(vectorize):
    def model():
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        coin = pyro.sample("coin", dist.Bernoulli(0.5))
        pyro.sample("count", dist.Poisson(rate * (1 + coin)), obs=torch.tensor(3.0))

    def guide():
        components = Gamma(torch.tensor([2.0, 4.0]), torch.tensor([0.8, 1.6]))
        pyro.sample("rate", MixtureSameFamily(Categorical(torch.ones(2)), components))
        pyro.sample("coin", dist.Bernoulli(0.4))

    found = psis(model, guide, num_samples=number(vectorize), vectorize=vectorize)
    exact = math.log((4 * 0.5**5 + 4 * (2 / 3) ** 3 / 9) / 2)
    assert_evidence(found, exact)


def nested_model(data):
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    pair = pyro.sample("pair", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("rows", 3, dim=-2):
        row = pyro.sample("row", dist.Normal(level, 1.0))
        with pyro.plate("columns", 4, dim=-1):
            pyro.sample("data", dist.Normal(row + pair.sum(-1), 1.0), obs=data)


def test_nested_plates_give_samples_of_each_site_in_its_own_shape():
    data = torch.randn(3, 4)
    guide = AutoNormal(nested_model)
    found = [psis(nested_model, guide, data, num_samples=50, vectorize=way) for way in (0, 1)]
    for one in found:
        shapes = {name: tuple(value.shape) for name, value in one.samples.items()}
        assert shapes == {"level": (50,), "pair": (50, 2), "row": (50, 3, 1)}


def nested_guide(data):
    pyro.sample("level", dist.Normal(0.1, 1.1))
    pyro.sample("pair", dist.Normal(torch.zeros(2), 0.9).to_event(1))
    with pyro.plate("rows", 3, dim=-2):
        pyro.sample("row", dist.Normal(0.2, 1.3))


def test_nested_plates_have_the_same_weights_at_once_and_in_turn():
    """Those of the samples one by one, but for the largest, which are smoothed."""
    data = torch.randn(3, 4)
    found = psis(nested_model, nested_guide, data, num_samples=50, vectorize=True)

    def log_joint(function, index):
        values = {name: value[index] for name, value in found.samples.items()}
        return poutine.trace(poutine.condition(function, values)).get_trace(data).log_prob_sum()

    single = torch.stack(
        [log_joint(nested_model, index) - log_joint(nested_guide, index) for index in range(50)]
    )
    ratio = (found.log_weights - single)[single.argsort()[:-10]]
    assert (ratio - ratio.mean()).abs().max() < 1e-4


DATA = torch.tensor([1.0, 2.0, 4.0])


def by_mean():
    """The draws of a batch are centered."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x - x.mean(), 1.0), obs=torch.tensor(2.0))


def by_sum():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x.sum() * torch.ones(x.shape), 1.0), obs=torch.tensor(2.0))


def by_shape():
    """Data without a plate, as many as the draws that are tried."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x, 1.0), obs=DATA)


def by_support():
    """And some draws have no density."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    level = torch.where(x > 1, 0.0, -math.inf) if x.dim() else torch.zeros(())
    pyro.factor("f", level + x)


def by_order():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x.flip(0) if x.dim() else x, 1.0), obs=torch.tensor(2.0))


@pytest.mark.parametrize("model", [by_mean, by_sum, by_shape, by_order, by_support])
@pytest.mark.parametrize("of", [psis, evaluate])
def test_models_that_mix_a_batch_are_found_out(model, of):
    """Their shapes are those of a model that does not; the draws are made one by one."""
    pyro.set_rng_seed(0)
    with pytest.warns(UserWarning, match="one by one.* they mix the draws") as caught:
        found = of(model, normal_guide, num_samples=50)
    assert caught[0].filename == __file__
    pyro.set_rng_seed(0)
    expected = of(model, normal_guide, num_samples=50, vectorize=False)
    assert found.elbo == expected.elbo


def test_guides_that_mix_a_batch_are_found_out():
    def guide():
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("x", dist.Delta(shift - shift.mean() if shift.dim() else shift))

    with pytest.warns(UserWarning, match="they mix the draws"):
        psis(normal_model, guide, num_samples=50)


@each_autoguide
def test_batches_are_the_default_where_they_are_right(autoguide):
    """The same numbers, by few runs of the model: random numbers of the check are given back."""
    runs = []

    def model():
        runs.append(None)
        nested_model(torch.ones(3, 4))

    guide = autoguide(model)
    guide()
    runs.clear()
    pyro.set_rng_seed(1)
    found = psis(model, guide, num_samples=400)
    assert len(runs) < 10
    pyro.set_rng_seed(1)
    expected = psis(model, guide, num_samples=400, vectorize=True)
    assert torch.equal(found.log_weights, expected.log_weights)
    assert torch.equal(found.samples["row"], expected.samples["row"])


def test_large_batches_are_made_in_parts(monkeypatch):
    monkeypatch.setattr(log_weights, "MEMORY_BUDGET", 1000)
    data = torch.randn(3, 4)
    found = psis(nested_model, nested_guide, data, num_samples=50)
    assert found.samples["row"].shape == (50, 3, 1)
    assert len(found.samples["level"].unique()) == 50


@each_way
def test_a_scale_is_a_part_of_the_target(vectorize):
    """The square root of model and guide has that of the weights, which are equal here."""
    tempered = poutine.scale(normal_model, 0.5)
    found = psis(tempered, poutine.scale(normal_guide, 0.5), vectorize=vectorize)
    assert found.log_evidence == pytest.approx(NORMAL_EVIDENCE / 2, abs=1e-5)


def subsampled(data):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(data), subsample_size=2) as index:
        pyro.sample("y", dist.Normal(x, 1.0), obs=data[index])


@each_way
def test_all_draws_see_one_subsample(vectorize):
    """By a guide that is the posterior of any, all weights are equal."""
    data = torch.tensor([1.0, 2.0, 4.0, 8.0])

    def guide(data):
        with pyro.plate("data", len(data), subsample_size=2) as index:
            total = 2 * data[index].sum()
        pyro.sample("x", dist.Normal(total / 5, math.sqrt(1 / 5)))

    found = psis(subsampled, guide, data, num_samples=100, vectorize=vectorize)
    assert found.effective_sample_size == pytest.approx(100, rel=1e-4)


@each_way
def test_a_subsample_of_the_model_alone_is_one_too(vectorize):
    data = torch.tensor([1.0, 2.0, 4.0, 8.0])

    def guide(data):
        pyro.sample("x", dist.Normal(3.0, 1.5))

    found = psis(subsampled, guide, data, num_samples=400, vectorize=vectorize)
    index = found.log_weights.argmax()
    mean = float(found.samples["x"][index])
    sums = [float(data[i] + data[j]) * 2 / 5 for i in range(4) for j in range(i)]
    assert min(abs(mean - each) for each in sums) < 1.0
    posterior = (found.log_weights.exp() @ found.samples["x"].double()).item()
    assert min(abs(posterior - each) for each in sums) < 0.1


def test_masked_sites_do_not_count():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with poutine.mask(mask=False):
            pyro.sample("z", dist.Normal(x, 1.0), obs=torch.tensor(9.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(2.0))

    found = psis(model, normal_guide, vectorize=True)
    assert found.log_evidence == pytest.approx(NORMAL_EVIDENCE, abs=1e-5)


def test_resampling_follows_the_posterior():
    """The mean of the draws, that of the posterior, within 5 of its standard errors."""
    found = psis(normal_model, lambda: normal_guide(0.0, 1.0), num_samples=20_000, vectorize=True)
    draws = found.resample(20_000)["x"].double()
    error = math.sqrt(0.5 * (1 / 20_000 + 1 / found.effective_sample_size))
    assert abs(draws.mean().item() - 1) < 5 * error
    assert draws.std().item() == pytest.approx(math.sqrt(0.5), abs=0.05)
    assert found.resample(3)["x"].shape == (3,)


def test_resampling_keeps_sites_together():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("copy", dist.Normal(x, 1.0))

    found = psis(model, model, num_samples=50, vectorize=True)
    pairs = set(zip(*(found.samples[name].tolist() for name in ("x", "copy")), strict=True))
    drawn = found.resample(200)
    assert set(zip(*(drawn[name].tolist() for name in ("x", "copy")), strict=True)) <= pairs


def test_draws_without_density_have_no_weight():
    def model():
        x = pyro.sample("x", dist.Uniform(0.0, 1.0, validate_args=False))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(0.0))

    found = psis(model, lambda: normal_guide(0.5, 0.5), num_samples=4000, vectorize=True)
    outside = (found.samples["x"] < 0) | (found.samples["x"] >= 1)
    assert outside.any()
    assert (found.log_weights[outside].exp() < 1e-300).all()
    assert_evidence(found, math.log(0.5 * math.erf(math.sqrt(0.5))))


def test_parameters_get_no_gradient_and_repr_is_short():
    guide = AutoDiagonalNormal(normal_model)
    found = psis(normal_model, guide, num_samples=30)
    assert not found.samples["x"].requires_grad
    assert len(repr(found)) < 200
    assert "khat" in repr(found)
