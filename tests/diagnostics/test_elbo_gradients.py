"""Gradient variances of objectives: closed forms, draws at once or in turn, no traces left."""

import copy
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal

from pyro_mixtures.diagnostics import elbo_gradient_variance
from pyro_mixtures.infer import (
    AutoAVFMultivariateNormal,
    AutoDiagonalNormalMixture,
    BaselinedTrace_ELBO,
)


def assert_agrees(found, mean, variance, sigmas=5.0):
    """Moments within ``sigmas`` standard errors: false alarms of 6e-7 an entry."""
    assert ((found.mean - mean).abs() <= sigmas * found.mean_error + 1e-6).all()
    assert ((found.variance - variance).abs() <= sigmas * found.variance_error + 1e-6).all()


def one_dimensional():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(2.0))


def by_hand(family=dist.Normal):
    loc = pyro.param("loc", torch.tensor(0.3))
    scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
    pyro.sample("x", family(loc, scale))


def nested(data):
    level = pyro.sample("level", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("rows", 3, dim=-2):
        row = pyro.sample("row", dist.LogNormal(level.sum(-1), 1.0))
        with pyro.plate("columns", 4, dim=-1):
            pyro.sample("data", dist.Normal(row, 1.0), obs=data)


def test_a_guide_by_hand_has_the_variance_of_the_closed_form():
    """G = 2 z - y and, for the logarithm of the scale, scale epsilon (2 z - y) - 1."""
    found = elbo_gradient_variance(Trace_ELBO(), one_dimensional, by_hand, num_draws=2000)
    loc, scale, y = 0.3, 0.5, 2.0
    assert_agrees(found["loc"], 2 * loc - y, 4 * scale**2)
    variance = scale**2 * ((2 * loc - y) ** 2 + 8 * scale**2)
    assert_agrees(found["scale"], 2 * scale**2 - 1, variance)


@pytest.mark.parametrize("elbo", [Trace_ELBO(), BaselinedTrace_ELBO(), RenyiELBO(num_particles=2)])
def test_score_functions_are_measured(elbo):
    """More variance than by reparameterization; the mean is that of the ELBO, if it is one."""
    guide = partial(by_hand, NonreparameterizedNormal)
    found = elbo_gradient_variance(elbo, one_dimensional, guide, num_draws=2000)["loc"]
    if not isinstance(elbo, RenyiELBO):
        assert abs(found.mean + 1.4) < 5 * found.mean_error
        assert found.variance > 2


def test_more_particles_less_variance():
    elbo = Trace_ELBO(num_particles=4)
    found = elbo_gradient_variance(elbo, one_dimensional, by_hand, num_draws=1000)
    assert_agrees(found["loc"], -1.4, 0.25)


@pytest.mark.parametrize(
    ("guide", "elbo"),
    [
        (AutoDiagonalNormal, TraceMeanField_ELBO()),
        (AutoMultivariateNormal, Trace_ELBO(max_plate_nesting=2)),
        (partial(AutoDiagonalNormalMixture, num_components=2), Trace_ELBO()),
        (
            partial(AutoDiagonalNormalMixture, num_components=2, weight_gradient="hybrid"),
            Trace_ELBO(),
        ),
    ],
)
def test_vectorized_draws_have_the_law_of_those_in_turn(guide, elbo):
    data = torch.randn(3, 4)
    guide = guide(nested, init_scale=0.3)
    measure = partial(elbo_gradient_variance, elbo, nested, guide, data)
    one, other = (
        measure(num_draws=400),
        measure(num_draws=5001, vectorize=True, chunk_size=1000),
    )
    assert one.keys() == other.keys()
    for name, entry in one.items():
        for moment in ("mean", "variance"):
            values = [getattr(found, moment) for found in (entry, other[name])]
            errors = [getattr(found, f"{moment}_error") for found in (entry, other[name])]
            error = (errors[0] ** 2 + errors[1] ** 2).sqrt()
            assert values[0].shape == values[1].shape
            assert ((values[0] - values[1]).abs() <= 6 * error + 1e-5).all()


def test_model_parameters_and_names():
    def model():
        prior = pyro.param("prior", torch.tensor(0.0))
        pyro.sample("x", dist.Normal(prior, 1.0))

    found = elbo_gradient_variance(Trace_ELBO(), model, by_hand, num_draws=500, names=["prior"])
    assert list(found) == ["prior"]
    assert_agrees(found["prior"], -0.3, 0.25)


def test_a_guide_with_a_control_variate():
    """Its parameter, which has no gradient of the loss, is left out; also under no_grad."""
    guide = AutoAVFMultivariateNormal(one_dimensional)
    names = [f"AutoAVFMultivariateNormal.{name}" for name in ("loc", "scale")]
    with torch.no_grad():
        found = elbo_gradient_variance(
            Trace_ELBO(), one_dimensional, guide, num_draws=300, names=names
        )
    assert list(found) == names
    assert_agrees(found[names[0]], 2 * guide.loc.item() - 2, 4 * 0.1**2)


@pytest.mark.parametrize("vectorize", [False, True])
def test_nothing_is_left_behind(vectorize):
    pyro.clear_param_store()
    guide = AutoMultivariateNormal(one_dimensional)
    guide()
    guide.loc.grad = torch.tensor([7.0])
    pyro.param("other", torch.tensor(1.0))
    before, keys = copy.deepcopy(guide.state_dict()), set(pyro.get_param_store().keys())
    objects = dict(guide.named_parameters())
    elbo = Trace_ELBO()
    elbo_gradient_variance(elbo, one_dimensional, guide, num_draws=3, vectorize=vectorize)
    assert set(pyro.get_param_store().keys()) == keys
    assert all(torch.equal(value, before[name]) for name, value in guide.state_dict().items())
    assert all(value is objects[name] for name, value in guide.named_parameters())
    assert guide.loc.grad.item() == 7.0
    assert guide.scale_unconstrained.grad is None
    assert elbo.num_particles == 1


def test_running_averages_of_the_objective_are_kept():
    elbo = BaselinedTrace_ELBO()
    guide = partial(by_hand, NonreparameterizedNormal)
    pyro.clear_param_store()
    elbo.loss_and_grads(one_dimensional, guide)
    before = copy.deepcopy(elbo._averages)
    elbo_gradient_variance(elbo, one_dimensional, guide, num_draws=3)
    assert before.keys() == elbo._averages.keys()
    assert all(torch.equal(value, elbo._averages[name]) for name, value in before.items())


def test_a_failure_leaves_the_gradients():
    pyro.clear_param_store()
    loc = torch.tensor(0.0, requires_grad=True)

    def guide():
        pyro.sample("x", dist.Normal(pyro.param("loc", loc), 1.0))

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("bad", (x - x.detach()).sqrt())

    guide()
    unconstrained = pyro.param("loc").unconstrained()
    unconstrained.grad = torch.tensor(7.0)
    with pytest.raises(ValueError, match="gave loc NaN"):
        elbo_gradient_variance(Trace_ELBO(), model, guide, num_draws=3)
    assert unconstrained.grad.item() == 7.0


def test_models_that_would_mix_the_draws_are_refused():
    inputs = torch.randn(5, 3)

    def model(product):
        weights = pyro.sample("weights", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", 5):
            pyro.sample("y", dist.Normal(product(weights), 1.0), obs=torch.ones(5))

    pyro.clear_param_store()
    guide = AutoDiagonalNormal(model)
    measure = partial(elbo_gradient_variance, Trace_ELBO(), model, guide, num_draws=4)
    measure(lambda weights: (weights * inputs).sum(-1), vectorize=True)

    def mixing(weights):
        return (inputs @ weights.unsqueeze(-1)).squeeze(-1)  # a dimension too many in front

    measure(mixing)
    with pytest.raises(ValueError, match="vectorize = False .* at site 'y' 2 draws gave"):
        measure(mixing, vectorize=True)


def test_models_whose_values_mix_the_draws_are_refused():
    """Their shapes do not tell."""

    def model(center):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x - center(x), 1.0), obs=torch.tensor(2.0))

    pyro.clear_param_store()
    guide = AutoDiagonalNormal(model)
    measure = partial(elbo_gradient_variance, Trace_ELBO(), model, guide, num_draws=4)
    with pytest.raises(ValueError, match="Expected vectorize = False, .* they mix the draws"):
        measure(torch.mean, vectorize=True)
    measure(torch.zeros_like, vectorize=True)


def test_latent_sites_that_the_guide_leaves_out_may_be_drawn_at_once():
    def model():
        one_dimensional()
        pyro.sample("rest", dist.Normal(0.0, 1.0))

    guide = AutoDiagonalNormal(poutine.block(model, hide=["rest"]))
    with pytest.warns(UserWarning, match="in model but not guide: {'rest'}"):
        found = elbo_gradient_variance(Trace_ELBO(), model, guide, num_draws=10, vectorize=True)
    assert found.keys() == {"AutoDiagonalNormal.loc", "AutoDiagonalNormal.scale"}


def test_draws_do_not_share_a_subsample():
    data = torch.randn(6)

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 6, subsample_size=3) as index:
            pyro.sample("y", dist.Normal(x, 1.0), obs=data[index])

    guide = AutoDiagonalNormal(model)
    with pytest.raises(ValueError, match="that subsamples, but got the plate 'rows'"):
        elbo_gradient_variance(Trace_ELBO(), model, guide, num_draws=4, vectorize=True)


def test_mistakes_with_guides_are_told():
    guide = AutoDiagonalNormal(one_dimensional)
    measure = partial(elbo_gradient_variance, Trace_ELBO(), one_dimensional)
    with pytest.raises(ValueError, match="num_draws to be an integer >= 2"):
        measure(guide, num_draws=0)
    with pytest.raises(ValueError, match="among AutoDiagonalNormal.loc, .*, but got location"):
        measure(guide, names=["location"])
    with pytest.raises(ValueError, match="the guide AutoNormal: it is no AutoContinuous"):
        measure(AutoNormal(one_dimensional), vectorize=True)
    with pytest.raises(ValueError, match="the objective BaselinedTrace_ELBO"):
        elbo_gradient_variance(BaselinedTrace_ELBO(), one_dimensional, guide, vectorize=True)
    with pytest.raises(ValueError, match="num_particles = 2"):
        elbo_gradient_variance(Trace_ELBO(2), one_dimensional, guide, vectorize=True)

    def model():
        pyro.sample("x", dist.Normal(pyro.param("prior", torch.tensor(0.0)), 1.0))

    guide = AutoDiagonalNormal(model)
    with pytest.raises(ValueError, match="outside the guide, but got prior"):
        elbo_gradient_variance(Trace_ELBO(), model, guide, vectorize=True)

    def constant():
        pyro.sample("x", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="with parameters, but got none"):
        elbo_gradient_variance(Trace_ELBO(), one_dimensional, constant)

    def idle():
        pyro.param("idle", torch.tensor(0.0))
        by_hand()

    with pytest.raises(ValueError, match="loss to depend on idle"):
        measure(idle, num_draws=2)
