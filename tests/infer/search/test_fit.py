"""``fit`` on models as users write them: what it finds, what it says, and what it refuses."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, Predictive, Trace_ELBO

import pyro_mixtures as pm
from experiments.modes.targets import TARGETS
from pyro_mixtures.diagnostics import psis
from pyro_mixtures.distributions import MixtureOfDiagNormals
from tests.infer.search.models import MODELS

WITHOUT_GUIDE = {
    "sequential plate": "sequential pyro.plate",  # by Pyro's guides
}
"""Models of which there is no guide, and what is said then."""


def quick(model, *args, **options):
    settings = {"max_evaluations": 5000, "num_starts": 50, "progress": False}
    return pm.fit(model, *args, **settings | options)


# ------------------------------------------------------------------------------------- any model


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model(name):
    """Plates, event dimensions, discrete sites, arguments, modules: all that a result offers."""
    model, args, kwargs, way = MODELS[name]
    pyro.clear_param_store()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = quick(model, *args, max_evaluations=2000, num_starts=20, **kwargs)
    slow = [each for each in told if "runs once for each point" in str(each.message)]
    assert len(slow) == len(told) == (way == "loop")
    assert result.density.way == way
    assert result.posterior.event_shape == (result.density.dimension,)
    draws = result.draws(5)
    point = result.posterior.locs[0].to(result.density.dtype)
    for site, support in result.density.supports(point).items():
        if name != "scaled and masked":  # whose masked prior has no end
            assert draws[site].isfinite().all()
        if way != "loop" and "dependent" not in name:
            assert bool(support.check(draws[site]).all())
    summary = result.summary(100)
    assert math.isfinite(summary.log_evidence)
    assert sum(mode.weight for mode in summary.modes) == pytest.approx(1.0)
    assert set(summary.modes[0].location) == set(draws)
    assert "cannot be known" in str(summary)
    assert list(pyro.get_param_store()) == []
    if name in WITHOUT_GUIDE:
        with pytest.raises(NotImplementedError, match=WITHOUT_GUIDE[name]):
            _ = result.guide
    else:
        assert set(result.guide.quantiles([0.1, 0.9], *args, **kwargs)) == set(draws)


def ordered():
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    return dist.TransformedDistribution(base, dist.transforms.OrderedTransform())


SUPPORTS = {
    "positive": lambda: dist.Gamma(2.0, 1.0),
    "interval": lambda: dist.Beta(2.0, 3.0),
    "simplex": lambda: dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])),
    "ordered": ordered,
    "correlation": lambda: dist.LKJCholesky(3, 2.0),
    "matrix": lambda: dist.Normal(torch.zeros(2, 2), 3.0).to_event(2),
    "half line": lambda: dist.Pareto(1.0, 3.0),
}
"""Distributions whose evidence is one, whatever the support."""


@pytest.mark.parametrize("name", SUPPORTS)
def test_a_distribution_on_any_support_has_the_evidence_one(name):
    def model(shift, *, site):
        return pyro.sample(site, SUPPORTS[name]()) + shift

    result = quick(model, 1.0, site="value")
    assert result.summary(500).log_evidence == pytest.approx(0.0, abs=0.1)
    assert list(result.draws(3)) == ["value"]


def regression(x, y, *, noise):
    """Conjugate, with its evidence in closed form."""
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2, dtype=x.dtype), 2.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((x * slope.unsqueeze(-2)).sum(-1), noise), obs=y)


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
@pytest.mark.parametrize("data", [torch.float32, torch.float64])
def test_the_evidence_is_right_in_any_dtype(default, data):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(20, 2, generator=generator, dtype=data)
    y = x @ torch.tensor([1.0, -2.0], dtype=data)
    covariance = 4 * x.double() @ x.double().T + 0.25 * torch.eye(20).double()
    exact = dist.MultivariateNormal(torch.zeros(20).double(), covariance).log_prob(y.double())
    torch.set_default_dtype(default)
    try:
        result = quick(regression, x, y, noise=0.5)
        assert result.guide.get_posterior(x, y, noise=0.5).locs.dtype == data
    finally:
        torch.set_default_dtype(torch.float32)
    summary = result.summary()
    assert summary.log_evidence == pytest.approx(float(exact), abs=1e-2)
    assert summary.passed_checks
    assert summary.num_components == len(result.modes) == 1
    assert result.draws(2)["slope"].dtype == data
    assert result.posterior.locs.dtype == torch.float64


def flip(distance):
    x = pyro.sample("x", dist.Normal(0.0, 3.0))
    on = pyro.sample("on", dist.Bernoulli(0.25))
    pyro.sample("y", dist.Normal(torch.where(on == 1, x, -x), 0.5), obs=distance)


def test_a_discrete_site_is_summed_out():
    result = quick(flip, torch.tensor(3.0))
    places = {round(float(mode.location["x"]), 1): mode.weight for mode in result.modes}
    assert places == pytest.approx({-2.9: 0.75, 2.9: 0.25}, abs=0.02)
    evidence = dist.Normal(0.0, 9.25**0.5).log_prob(torch.tensor(3.0))
    assert result.summary().log_evidence == pytest.approx(float(evidence), abs=0.01)


def shell(size):
    """A ring, or a shell; the product is one of single vectors."""
    x = pyro.sample("x", dist.Normal(torch.zeros(size), 3.0).to_event(1))
    pyro.sample("y", dist.Normal(x @ x, 1.0), obs=torch.tensor(9.0))


def test_batches_by_vmap_find_a_ring():
    result = quick(shell, 2)
    assert result.density.way == "vmap"
    radii = result.draws(500)["x"].norm(dim=-1)
    assert float(radii.median()) == pytest.approx(3.0, abs=0.1)
    assert result.summary().log_evidence == pytest.approx(-3.389, abs=0.05)


def test_point_by_point_finds_both_modes():
    def model():  # a branch on a value cannot be batched
        x = pyro.sample("x", dist.Normal(0.0, 3.0))
        pyro.factor("penalty", -8.0 * (x - 4.0) ** 2 if x > 0 else -8.0 * (x + 4.0) ** 2)

    with pytest.warns(UserWarning, match="runs once for each point"):
        result = quick(model, max_evaluations=1500, num_starts=10, num_components=2)
    assert result.density.way == "loop"
    places = sorted(float(mode.location["x"]) for mode in result.modes)
    assert places == pytest.approx([-3.97, 3.97], abs=0.05)


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_family_can_be_chosen(count, covariance):
    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        pyro.sample("y", dist.Normal(x[..., 0].abs(), 0.5), obs=torch.tensor(3.0))

    result = quick(model, num_components=count, covariance=covariance)
    assert result.posterior.num_components == count
    assert isinstance(result.posterior, MixtureOfDiagNormals) == (covariance == "diagonal")
    assert type(result.guide.get_posterior()) is type(result.posterior)
    assert result.search.stopped in ("flat", "budget")
    lost = {1: math.log(2), 2: 0.0, 5: 0.0}[count]
    summary = result.summary()
    evidence = dist.Normal(0.0, 9.25**0.5).log_prob(torch.tensor(3.0)) + math.log(2)
    assert summary.elbo == pytest.approx(float(evidence) - lost, abs=0.03)


@pytest.mark.parametrize("name", ["eight schools", "nested plates", "switch", "mixture of two"])
def test_a_budget_is_kept(name):
    model, args, kwargs, _ = MODELS[name]
    result = quick(model, *args, max_evaluations=2000, num_starts=20, **kwargs)
    assert result.search.evaluations.count <= 2000
    assert result.search.stopped == "budget"
    assert result.search.max_evaluations == 2000


def test_a_budget_too_small_for_one_step_is_named():
    """Starts and the last steps need more."""
    with pytest.raises(ValueError, match="max_evaluations"):
        quick(regression, torch.zeros(1, 2), torch.zeros(1), noise=1.0, max_evaluations=100)


def test_noisy_densities_of_many_data_in_single_precision():
    """Rounding of a thousand terms is larger than the gains of the last steps."""
    y = 2.0 + torch.randn(1000, generator=torch.Generator().manual_seed(0))

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 5.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(x.abs(), 1.0), obs=y)

    result = quick(model, max_evaluations=10_000)
    assert result.density.dtype == torch.float32
    assert [mode.weight for mode in result.modes] == pytest.approx([0.5, 0.5], abs=0.02)
    assert result.search.evaluations.count < 20_000
    assert result.summary().passed_checks


# --------------------------------------------------------------------------------- its verdict


def half_a_line():
    x = torch.as_tensor(pyro.sample("x", dist.Normal(0.0, 1.0)))
    pyro.factor("half", torch.where(x > 0.0, 0.0, -torch.inf))


def undefined_in_a_strip():
    x = torch.as_tensor(pyro.sample("x", dist.Normal(0.0, 1.0)))
    pyro.factor("strip", torch.where((x > 0.5) & (x < 0.6), torch.nan, 0.0))


def never_negative():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Exponential(x), obs=torch.tensor(1.0))


@pytest.mark.parametrize(
    ("model", "evidence", "empty", "failed"),
    [
        (half_a_line, math.log(0.5), True, False),
        (undefined_in_a_strip, math.log(1 - 0.0343), False, True),
        (never_negative, -1.985, False, True),
    ],
)
def test_points_without_a_density_are_counted_and_told(model, evidence, empty, failed):
    result = quick(model)
    summary = result.summary()
    assert (summary.without_mass > 0) == empty
    assert (summary.failed > 0) == failed
    assert summary.log_evidence == pytest.approx(evidence, abs=0.05)
    text = " ".join(str(summary).split())
    assert f"{summary.without_mass} without mass and {summary.failed} failed" in text
    outside = not math.isfinite(summary.elbo)  # a draw without density makes it so
    assert ("lie where the model has no density" in text) == outside
    assert outside or model is not half_a_line
    if failed:
        assert f"{summary.failed} of {summary.evaluations} points failed" in text
        assert "nan" in text


def flat_in_z():
    pyro.sample("x", dist.Normal(0.0, 3.0))
    pyro.sample("z", dist.ImproperUniform(constraints.real, (), ()))


def takes_the_prior_away():
    pyro.sample("x", dist.Normal(0.0, 3.0))
    z = pyro.sample("z", dist.Normal(0.0, 3.0))
    pyro.factor("improper", 0.5 * (z / 3).square() + 1e-9 * z)


@pytest.mark.parametrize("model", [flat_in_z, takes_the_prior_away])
def test_improper_posteriors_are_told(model):
    summary = quick(model).summary()
    assert not summary.passed_checks
    assert "improper, without end along z" in summary.alarms[0]


def grows():
    z = pyro.sample("z", dist.ImproperUniform(constraints.real, (), ()))
    pyro.factor("improper", 0.1 * z)


def test_a_density_that_grows_without_end_is_no_success():
    result = quick(grows)
    summary = result.summary()
    assert not summary.passed_checks
    assert result.posterior.component_logits.isfinite().all()


def test_a_needle_is_no_success():
    summary = quick(TARGETS["needle"]().model, num_starts=100).summary()
    text = " ".join(str(summary).split())
    assert summary.log_evidence == pytest.approx(math.log(0.5), abs=0.02)
    assert "cannot be known: whether there are modes that no start leads to" in text
    assert "it cannot see modes that no draw has visited" in text


# --------------------------------------------------------------------------------- what goes on


def two_modes(distance):
    x = pyro.sample("x", dist.Normal(0.0, 3.0))
    pyro.sample("y", dist.Normal(x.abs(), 0.5), obs=distance)


def test_the_guide_goes_on():
    data = torch.tensor(3.0)
    result = quick(two_modes, data)
    guide, summary = result.guide, result.summary()
    predicted = Predictive(two_modes, guide=guide, num_samples=50)(data)["x"]
    assert float(predicted.abs().mean()) == pytest.approx(2.92, abs=0.3)
    low, high = guide.quantiles([0.25, 0.75], data)["x"]
    assert -3.0 < float(low) < -2.8 < 2.8 < float(high) < 3.0
    torch.manual_seed(0)
    judged = psis(two_modes, guide, data, num_samples=1000)
    errors = judged.elbo_error + summary.elbo_error
    assert float(judged.elbo) == pytest.approx(summary.elbo, abs=4 * float(errors) + 1e-4)
    assert float(judged.log_evidence) == pytest.approx(summary.log_evidence, abs=0.01)
    svi = SVI(two_modes, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(num_particles=10))
    losses = [svi.step(data) for _ in range(50)]
    assert sum(losses) / 50 == pytest.approx(-summary.elbo, abs=0.1)
    assert not torch.equal(guide.get_posterior().locs.double(), result.posterior.locs)


def test_results_of_one_process_share_nothing():
    results = [quick(two_modes, torch.tensor(y), num_components=2) for y in (3.0, 1.5)]
    first, second = (result.guide for result in results)
    expected = first.get_posterior()
    before = expected.locs.clone(), expected.scale_tril.clone()
    svi = SVI(two_modes, second, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    svi.step(torch.tensor(1.5))
    first(torch.tensor(3.0))
    found = first.get_posterior()
    assert torch.equal(found.locs, before[0])
    assert torch.equal(found.scale_tril, before[1])


# ------------------------------------------------------------------------------ what is refused


def without_latents():
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))


def only_discrete():
    pyro.sample("k", dist.Bernoulli(0.5))


def uncountable():
    k = pyro.sample("k", dist.Poisson(3.0))
    pyro.sample("x", dist.Normal(k, 1.0))


def subsampled():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 100, subsample_size=10) as index:
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.zeros(100)[index])


def nowhere():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("nothing", torch.as_tensor(x) * 0 - torch.inf)


@pytest.mark.parametrize(
    ("model", "options", "error", "match"),
    [
        (without_latents, {}, ValueError, "continuous latent sites, but got none"),
        (only_discrete, {}, ValueError, "continuous latent sites, but got only k, discrete"),
        (uncountable, {}, ValueError, "'k', a Poisson: sum or integrate it out"),
        (subsampled, {}, NotImplementedError, "10 of 100.*by pyro.infer.SVI with a mixture guide"),
        (nowhere, {}, ValueError, "finite at some draws of the prior, but got the value -inf"),
        (half_a_line, {"num_components": 0}, ValueError, "num_components .*>= 1, but got 0"),
        (half_a_line, {"num_components": -3}, ValueError, "num_components .*>= 1, but got -3"),
        (half_a_line, {"num_components": 2.5}, ValueError, "num_components .* but got 2.5"),
        (half_a_line, {"max_evaluations": 0}, ValueError, "max_evaluations .* but got 0"),
        (half_a_line, {"max_evaluations": 60}, ValueError, "max_evaluations .* but got 60"),
        (half_a_line, {"num_starts": 1}, ValueError, "num_starts .*>= 2, but got 1"),
        (half_a_line, {"covariance": "round"}, ValueError, "covariance .*full, diagonal"),
        (half_a_line, {"checkpoint": "no/such/folder/f.pt"}, ValueError, "folder that exists"),
    ],
)
def test_bad_input_is_named(model, options, error, match):
    with pytest.raises(error, match=match):
        quick(model, **options)
