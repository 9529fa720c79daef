"""Guides with any estimator by name, and objectives without the density's own gradient."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from pyro_mixtures.distributions import MixtureOfDiagNormals
from pyro_mixtures.estimators import ESTIMATORS, gumbel_soft
from pyro_mixtures.infer import (
    AutoDiagonalNormalMixture,
    AutoMultivariateNormalMixture,
    BaselinedTrace_ELBO,
    MarginalizedMixture_ELBO,
)
from tests.infer.test_objectives import (
    LOCS,
    LOGITS,
    SCALES,
    _double_precision,  # noqa: F401 -- for all tests here, too
    exact_gradients,
    gradients,
    minus_elbo,
    model,
    z_scores,
)

IN_GUIDES = list(ESTIMATORS)
BIASED = ["gumbel_soft", "gumbel_hard"]
MANY = {"num_particles": 2000, "vectorize_particles": True, "max_plate_nesting": 0}


def make_guide(**options):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = AutoDiagonalNormalMixture(model, 3, **options)
    guide()
    with torch.no_grad():
        guide.locs.copy_(LOCS)
        guide.component_logits.copy_(LOGITS)
    guide.coord_scale = SCALES
    return guide


@pytest.mark.parametrize("sticking_the_landing", [False, True])
@pytest.mark.parametrize("estimator", IN_GUIDES)
def test_gradients(estimator, sticking_the_landing):
    guide = make_guide(estimator=estimator)
    exact = exact_gradients(guide, minus_elbo)
    elbo = BaselinedTrace_ELBO(sticking_the_landing=sticking_the_landing, **MANY)
    scores, _ = z_scores(guide, elbo, exact, 40)
    if estimator in BIASED:
        assert scores.abs().max() > 20
    else:
        assert scores.abs().max() < 5.2  # t with 39 degrees of freedom: 9 * 7e-6


@pytest.mark.parametrize("estimator", IN_GUIDES)
def test_without_a_baseline(estimator):
    guide = make_guide(estimator=estimator)
    exact = exact_gradients(guide, minus_elbo)
    scores, _ = z_scores(guide, Trace_ELBO(**MANY), exact, 40)
    assert (scores.abs().max() > 20) == (estimator in BIASED)
    assert estimator in BIASED or scores.abs().max() < 5.2


@pytest.mark.parametrize("guide_class", [AutoDiagonalNormalMixture, AutoMultivariateNormalMixture])
@pytest.mark.parametrize("vectorize", [False, True])
def test_svi_with_a_function_for_an_estimator(guide_class, vectorize):
    def two_sites():
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("rows", 3):
            pyro.sample("y", dist.Gamma(x[..., :1].exp(), 1.0))

    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    full = guide_class is AutoMultivariateNormalMixture
    estimator = ESTIMATORS["stratified"] if full else partial(gumbel_soft, temperature=0.1)
    guide = guide_class(two_sites, 4, estimator=estimator)
    elbo = BaselinedTrace_ELBO(num_particles=4, vectorize_particles=vectorize)
    svi = SVI(two_sites, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    assert all(torch.tensor([svi.step() for _ in range(3)]).isfinite())
    assert guide.median()["y"].shape == (3,)
    assert guide.sample_latent().shape == (5,)


@pytest.mark.parametrize(
    ("estimator", "message"),
    [("marginalized", "gumbel_soft"), ("no such", "gumbel_soft"), (3, "estimator")],
)
def test_other_estimators_are_refused(estimator, message):
    with pytest.raises(ValueError, match=message):
        AutoDiagonalNormalMixture(model, 3, estimator=estimator)


def landed(weight_gradient, sticking_the_landing, **options):
    """All gradients of a guide that is the posterior, and its loss."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    weights = torch.tensor([0.2, 0.5, 0.3])
    locs = torch.tensor([[-1.0, 0.0], [0.5, 1.0], [4.0, -4.0]])
    target = MixtureOfDiagNormals(locs, torch.full((3, 2), 0.7), weights.log())

    def posterior():
        pyro.sample("x", target)

    guide = AutoDiagonalNormalMixture(posterior, 3, weight_gradient=weight_gradient)
    guide()
    with torch.no_grad():
        guide.locs.copy_(locs)
        guide.component_logits.copy_(weights.log())
    guide.coord_scale = torch.full((3, 2), 0.7)
    elbo = BaselinedTrace_ELBO(
        max_plate_nesting=0, sticking_the_landing=sticking_the_landing, **options
    )
    for _ in range(3):
        guide.zero_grad()
        loss = elbo.loss_and_grads(posterior, guide)
    return gradients(guide), loss


@pytest.mark.parametrize(
    "options",
    [{}, {"num_particles": 3}, {"num_particles": 3, "vectorize_particles": True}],
    ids=["one", "loop", "vectorized"],
)
@pytest.mark.parametrize("weight_gradient", ["pathwise", "clustered", "hybrid"])
def test_at_the_optimum_the_whole_gradient_vanishes(weight_gradient, options):
    """Those of the weights included, in each single draw, if the density is detached."""
    stuck, loss = landed(weight_gradient, True, **options)
    assert loss == pytest.approx(0, abs=1e-12)
    assert stuck.abs().max() < 1e-12
    noisy, _ = landed(weight_gradient, False, **options)
    assert noisy[:3].abs().max() > 0.01  # of the logits
    assert noisy[3:].abs().max() > 0.01


def test_sticking_the_landing_in_a_guide_written_by_hand():
    """With subsampling, masks and a site without a mixture."""
    data = torch.linspace(-1, 1, 6)
    loc = torch.tensor(0.3, requires_grad=True)
    logits = torch.tensor([0.5, -0.5], requires_grad=True)

    def plated():
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("rows", 6, subsample_size=3) as index, pyro.poutine.mask(mask=index > 1):
            x = pyro.sample("x", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(x.squeeze(-1) * rate, 1.0), obs=data[index])

    def guide():
        pyro.sample("rate", dist.LogNormal(loc, 0.3))
        with pyro.plate("rows", 6, subsample_size=3) as index, pyro.poutine.mask(mask=index > 1):
            q = MixtureOfDiagNormals(
                torch.tensor([[-0.5], [0.5]]),
                torch.ones(2, 1),
                logits,
                weight_gradient="clustered",
            )
            pyro.sample("x", q)

    means = []
    for sticking_the_landing in (False, True):
        pyro.set_rng_seed(0)
        elbo = BaselinedTrace_ELBO(
            num_particles=40_000,
            vectorize_particles=True,
            sticking_the_landing=sticking_the_landing,
        )
        elbo.differentiable_loss(plated, guide).backward()
        means.append(torch.cat([loc.grad.reshape(1), logits.grad]))
        loc.grad = logits.grad = None
    # the same draws up to score functions, of standard deviation below 10
    torch.testing.assert_close(*means, atol=0.2, rtol=0)


@pytest.mark.parametrize("estimator", ["score", "implicit", "stratified", "hybrid"])
def test_marginalized_objective_with_any_estimator_of_the_same_law(estimator):
    """The mixture's components are what it draws from."""
    guide = make_guide(estimator=estimator)
    exact = exact_gradients(guide, minus_elbo)
    elbo = MarginalizedMixture_ELBO(
        num_particles=500, vectorize_particles=True, max_plate_nesting=0
    )
    scores, _ = z_scores(guide, elbo, exact, 40)
    assert scores.abs().max() < 5.2


def test_in_a_guide_the_particles_are_stratified():
    guide = make_guide(estimator="stratified")
    with torch.no_grad():
        guide.locs.copy_(torch.tensor([[-90.0], [0.0], [90.0]]))
        guide.component_logits.zero_()
    with pyro.plate("num_particles_vectorized", 30, dim=-1):
        x = guide()["x"]
    assert [int((x < -45).sum()), int((x > 45).sum())] == [10, 10]


@pytest.mark.parametrize("estimator", [None, "stratified"])
@pytest.mark.parametrize("weight_gradient", ["pathwise", "clustered", "hybrid"])
def test_subsamples_scale_the_model_alone(weight_gradient, estimator):
    """The packed mixture is one, whatever plate the site is in that carries its density."""

    def subsampled():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 10, subsample_size=2):
            pyro.sample("y", dist.Normal(x, 1.0), obs=torch.zeros(2))
        with pyro.plate("columns", 5):
            pyro.sample("w", dist.Normal(0.0, 1.0))

    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = AutoDiagonalNormalMixture(
        subsampled, 3, weight_gradient=weight_gradient, estimator=estimator, init_scale=1.0
    )
    guide()
    with torch.no_grad():
        guide.locs.zero_()
    # the guide is the prior: 10 times the mean log density of a datum is left
    expected = -10 * (torch.log(torch.tensor(2 * torch.pi)) + 1) / 2
    elbo = BaselinedTrace_ELBO(num_particles=20_000, vectorize_particles=True)
    # standard deviation of one value: 7.1
    assert -elbo.loss(subsampled, guide) == pytest.approx(expected.item(), abs=0.25)
