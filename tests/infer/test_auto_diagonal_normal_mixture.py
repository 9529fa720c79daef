"""The guide as users of Pyro's own guides would drive it."""

import io

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Importance, Predictive, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    init_to_generated,
    init_to_median,
    init_to_sample,
    init_to_value,
)
from pyro.optim import Adam, ClippedAdam

from pyro_mixtures.distributions import MixtureOfDiagNormals
from pyro_mixtures.infer import AutoDiagonalNormalMixture, BaselinedTrace_ELBO


@pytest.fixture(autouse=True)
def _clean_store():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def several_sites():
    """Constrained sites of several shapes, in and out of plates."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("groups", 4):
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        vector = pyro.sample("vector", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("y", dist.Normal(level + vector.sum(-1), rate), obs=torch.ones(4))
    return weights


SHAPES = {"rate": (), "weights": (3,), "level": (4,), "vector": (4, 2)}


@pytest.mark.parametrize("weight_gradient", ["pathwise", "clustered", "hybrid"])
@pytest.mark.parametrize("vectorize", [False, True])
def test_svi_over_several_sites(weight_gradient, vectorize):
    guide = AutoDiagonalNormalMixture(several_sites, 3, weight_gradient=weight_gradient)
    elbo = Trace_ELBO(num_particles=3, vectorize_particles=vectorize, max_plate_nesting=1)
    svi = SVI(several_sites, guide, Adam({"lr": 0.01}), elbo)
    losses = [svi.step() for _ in range(3)]
    assert all(torch.tensor(losses).isfinite())
    assert {name: tuple(p.shape) for name, p in guide.named_parameters()} == {
        "component_logits": (3,),
        "locs": (3, 15),
        "coord_scale_unconstrained": (3, 15),
    }
    values = guide()
    assert {name: tuple(value.shape) for name, value in values.items()} == SHAPES
    assert values["weights"].sum().item() == pytest.approx(1)
    assert values["rate"] > 0


def test_median_quantiles_and_predictive_have_the_sites_shapes():
    guide = AutoDiagonalNormalMixture(several_sites, 2)
    guide()
    assert {name: tuple(value.shape) for name, value in guide.median().items()} == SHAPES
    quantiles = guide.quantiles([0.1, 0.5, 0.9])
    assert {name: tuple(q.shape) for name, q in quantiles.items()} == {
        name: (3, *shape) for name, shape in SHAPES.items()
    }
    assert (quantiles["level"].diff(dim=0) > 0).all()
    assert guide.sample_latent().shape == (15,)
    samples = Predictive(several_sites, guide=guide, num_samples=7)()
    mean_field = Predictive(several_sites, guide=AutoDiagonalNormal(several_sites), num_samples=7)
    assert {name: value.shape for name, value in samples.items()} == {
        name: value.shape for name, value in mean_field().items()
    }


def test_quantiles_are_those_of_the_mixture():
    def model():
        pyro.sample("x", dist.LogNormal(0.0, 1.0))

    guide = AutoDiagonalNormalMixture(model, 2)
    guide()
    with torch.no_grad():
        guide.locs.copy_(torch.tensor([[-3.0], [4.0]]))
        guide.component_logits.copy_(torch.tensor([0.25, 0.75]).log())
    guide.coord_scale = torch.tensor([[0.5], [1.0]])
    probabilities = [0.1, 0.5, 0.9]
    sample = guide.get_posterior().sample((400_000,)).exp()
    expected = sample[:, 0].quantile(torch.tensor(probabilities))
    assert torch.allclose(guide.quantiles(probabilities)["x"], expected, rtol=0.03)
    assert torch.allclose(guide.median()["x"], expected[1], rtol=0.03)


@pytest.mark.parametrize(
    ("objective", "num_components"), [(Trace_ELBO, 2), (BaselinedTrace_ELBO, 4)]
)
def test_recovers_two_modes_and_their_weights(objective, num_components):
    weights, locs = torch.tensor([0.3, 0.7]), torch.tensor([[-3.0, 1.0], [3.0, -1.0]])
    target = MixtureOfDiagNormals(locs, torch.full((2, 2), 0.6), weights.log())

    def model():
        pyro.sample("x", target)

    # in the basins of both modes, whatever the seed
    starts = iter(torch.tensor([[-2.0, 0.0], [2.0, 0.0], [-1.0, 1.0], [1.0, -1.0]]))
    init = init_to_generated(generate=lambda: init_to_value(values={"x": next(starts)}))
    guide = AutoDiagonalNormalMixture(model, num_components, init_loc_fn=init)
    elbo = objective(num_particles=16, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(model, guide, ClippedAdam({"lr": 0.04, "lrd": 0.05 ** (1 / 500)}), elbo)
    for _ in range(500):
        svi.step()
    posterior = guide.get_posterior()
    mode = (posterior.locs[:, 0] > 0).long()  # of each component
    found = torch.zeros(2).index_add(0, mode, posterior.log_weights.exp())
    assert torch.allclose(found, weights, atol=0.02)
    x = target.sample((4000,))
    assert (target.log_prob(x) - posterior.log_prob(x)).mean() < 0.02  # KL(target, guide)


@pytest.mark.parametrize("init_loc_fn", [init_to_sample, init_to_median])
def test_components_start_apart(init_loc_fn):
    guide = AutoDiagonalNormalMixture(several_sites, 4, init_loc_fn=init_loc_fn, init_scale=0.05)
    guide()
    distances = torch.cdist(guide.locs, guide.locs) + torch.eye(4)
    assert distances.min() > 0.05
    assert torch.allclose(guide.coord_scale, torch.tensor(0.05))


def test_state_dict_and_pickle_round_trips():
    guide = AutoDiagonalNormalMixture(several_sites, 2)
    guide()
    other = AutoDiagonalNormalMixture(several_sites, 2)
    other()
    other.load_state_dict(guide.state_dict())
    latent = torch.zeros(15)
    expected = guide.get_posterior().log_prob(latent)
    assert torch.equal(other.get_posterior().log_prob(latent), expected)
    buffer = io.BytesIO()
    torch.save(guide, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert torch.equal(loaded.get_posterior().log_prob(latent), expected)


def test_importance_sampling_with_the_guide_is_consistent():
    """The guide's trace holds the whole density: evidence of a conjugate model comes out right."""

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(0.5))

    guide = AutoDiagonalNormalMixture(model, 3, init_scale=1.0)
    guide()
    evidence = Importance(model, guide, num_samples=1000).run().get_log_normalizer()
    exact = dist.Normal(0.0, 2.0**0.5).log_prob(torch.tensor(0.5))
    assert evidence.item() == pytest.approx(exact.item(), abs=0.1)


def test_quantiles_of_a_decreasing_transform_increase():
    def model():
        pyro.sample("x", dist.TransformedDistribution(dist.LogNormal(0.0, 1.0), MIRROR))

    guide = AutoDiagonalNormalMixture(model, 2)
    guide()
    sample = torch.stack([guide()["x"] for _ in range(3000)]).detach()
    quantiles = guide.quantiles([0.1, 0.9])["x"]
    assert torch.allclose(quantiles, sample.quantile(torch.tensor([0.1, 0.9])), rtol=0.1)


MIRROR = dist.transforms.AffineTransform(3.0, -1.0)


@pytest.mark.parametrize("quantiles", [[1.5], 0.5, [-0.1, 0.5], [float("nan")]])
def test_quantiles_are_checked(quantiles):
    guide = AutoDiagonalNormalMixture(several_sites, 2)
    guide()
    with pytest.raises(ValueError, match="quantiles"):
        guide.quantiles(quantiles)


@pytest.mark.parametrize("num_components", [0, -1, 2.5, True, None])
def test_num_components_is_checked(num_components):
    with pytest.raises(ValueError, match="num_components"):
        AutoDiagonalNormalMixture(several_sites, num_components)


@pytest.mark.parametrize("init_scale", [0, -0.1, float("nan"), float("inf"), "wide"])
def test_init_scale_is_checked(init_scale):
    with pytest.raises(ValueError, match="init_scale"):
        AutoDiagonalNormalMixture(several_sites, 2, init_scale=init_scale)


@pytest.mark.parametrize("argument", ["transport", "weight_gradient"])
def test_choices_are_checked(argument):
    with pytest.raises(ValueError, match=f"{argument}.*sideways"):
        AutoDiagonalNormalMixture(several_sites, 2, **{argument: "sideways"})


def test_a_discrete_latent_site_is_named():
    def model():
        pyro.sample("switch", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="switch"):
        AutoDiagonalNormalMixture(model, 2)()
