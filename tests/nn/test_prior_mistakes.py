"""What priors refuse."""

import math
import re
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_mixtures import MixtureOfDiagNormals, MixtureOfNormals
from pyro_mixtures.diagnostics import elbo_terms, evaluate, evaluate_data, nonfinite_site
from pyro_mixtures.nn import (
    ConditionalMixture,
    HierarchicalPrior,
    MixturePrior,
    VampPrior,
    prior_kl,
)
from tests.infer.own_objectives import OBJECTIVES


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 1), {}, "event_size to be an integer >= 1, but got 0"),
        ((1, 1.5), {}, "num_components to be an integer >= 1, but got 1.5"),
        ((1, 1), {"init_spread": -1}, "finite init_spread > 0, but got -1"),
        ((1, 1), {"scale_floor": math.nan}, "finite scale_floor > 0, but got nan"),
        ((1, 1), {"transport": "magic"}, "transport to be one of .*'magic'"),
    ],
)
def test_bad_mixture_priors(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        MixturePrior(*arguments, **options)


def test_bad_starts():
    prior = MixturePrior(2, 3)
    with pytest.raises(ValueError, match=r"samples of shape \(N, 2\), but got \(10, 3\)"):
        prior.init_from(torch.zeros(10, 3))
    with pytest.raises(ValueError, match="samples of shape .* but got list"):
        prior.init_from([1.0])
    locs, ones, logits = torch.zeros(3, 2), torch.ones(3, 2), torch.zeros(3)
    with pytest.raises(ValueError, match="a MixtureOfDiagNormals without batch shape"):
        prior.start_at(MixtureOfNormals(locs, ones.diag_embed(), logits))
    with pytest.raises(ValueError, match="without batch shape"):
        prior.start_at(MixtureOfDiagNormals(locs, ones, logits).expand((4,)))
    with pytest.raises(ValueError, match=r"K, D = \(3, 2\), but got \(2, 2\)"):
        prior.start_at(MixtureOfDiagNormals(locs[:2], ones[:2], logits[:2]))
    logits[0] = -math.inf
    with pytest.raises(ValueError, match="mixture with positive weights"):
        prior.start_at(MixtureOfDiagNormals(locs, ones, logits))


ENCODER = ConditionalMixture(4, 2, 3)


@pytest.mark.parametrize(
    ("inputs", "interval", "message"),
    [
        (torch.zeros(5, 3), {}, r"the encoder takes, but of \(5, 3\) it says: Expected context"),
        (torch.zeros(4), {}, r"batch shape \(4,\) for as many pseudo_inputs, but got \(\)"),
        (torch.zeros(6, 5, 4), {}, r"batch shape \(6,\) .* but got \(6, 5\)"),
        (torch.tensor(0.0), {}, r"pseudo_inputs of shape \(M, \*X\), but got \(\)"),
        (torch.zeros(0, 4), {}, r"pseudo_inputs of shape \(M, \*X\), but got \(0, 4\)"),
        ([[0.0]], {}, "pseudo_inputs of shape .*, but got list"),
        (torch.zeros(5, 4, dtype=torch.int64), {}, "finite floating point numbers"),
        (torch.full((5, 4), math.nan), {}, "finite floating point numbers"),
        (
            torch.tensor([[0.0, 0.5, 1.0, 1.5]]),
            {"lo": 0.0, "hi": 1.0},
            r"between lo = 0.0 and hi = 1.0, but they lie between 0.0 and 1.5",
        ),
        (torch.full((5, 4), -0.1), {"lo": 0.0, "hi": 1.0}, "lie between -0.1"),
        (torch.zeros(5, 4), {"lo": 0.0}, "finite lo < hi, or neither, but got 0.0 and None"),
        (torch.zeros(5, 4), {"lo": 1.0, "hi": 1.0}, "finite lo < hi"),
        (torch.zeros(5, 4), {"lo": 0.0, "hi": math.inf}, "finite lo < hi"),
        (torch.zeros(5, 4), {"transport": "magic"}, "transport to be one of .*'magic'"),
    ],
)
def test_bad_pseudo_inputs(inputs, interval, message):
    with pytest.raises(ValueError, match=message):
        VampPrior(ENCODER, inputs, **interval)


def test_a_network_that_takes_another_size():
    """Whose error is torch's."""
    net = torch.nn.Linear(4, 2)
    with pytest.raises(ValueError, match=r"the encoder takes, but of \(5, 3\) it says: mat1 and"):
        VampPrior(lambda x: dist.Normal(net(x), 1.0).to_event(1), torch.zeros(5, 3))


def test_encoders_of_other_distributions():
    with pytest.raises(
        NotImplementedError, match=r"VampPrior is for mixtures of .* not for Gamma"
    ):
        VampPrior(lambda x: dist.Gamma(x + 1, 1.0), torch.zeros(5, 1))
    with pytest.raises(NotImplementedError, match="VampPrior is for mixtures of Normals"):
        VampPrior(lambda x: (x, x), torch.zeros(5, 1))


def test_bad_hierarchies():
    top = MixturePrior(2, 3)
    with pytest.raises(
        ValueError, match="z2 of the size of top, 2, but it says: Expected context"
    ):
        HierarchicalPrior(top, ConditionalMixture(3, 4, 1))
    with pytest.raises(
        ValueError, match=r"shape \(D2,\) without batch shape, but got \(\) and \(2"
    ):
        HierarchicalPrior(lambda: dist.Normal(torch.zeros(2), 1.0), ConditionalMixture(2, 4, 1))
    with pytest.raises(
        ValueError, match=r"event shape \(D1,\) and batch shape \(2,\), but got \(\)"
    ):
        HierarchicalPrior(top, lambda z2: dist.Normal(z2, 1.0))


def test_bad_divergences():
    q = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    prior = MixturePrior(2, 3)
    with pytest.raises(ValueError, match=r"the same event shape, but got \(3,\) and \(2,\)"):
        prior_kl(q, prior())
    with pytest.raises(ValueError, match=r"the same event shape, but got \(3,\) and \(2,\)"):
        prior_kl(q, prior(), way="upper_bound")
    with pytest.raises(ValueError, match="way to be one of auto, sampled.*, but got 'exact'"):
        prior_kl(q, q, way="exact")
    with pytest.raises(ValueError, match="num_samples to be an integer >= 1, but got 0"):
        prior_kl(q, q, num_samples=0)
    two = HierarchicalPrior(prior, ConditionalMixture(2, 1, 1))
    with pytest.raises(NotImplementedError, match="kl_bounds is for mixtures of Normals"):
        prior_kl(q, two(), way="upper_bound")
    with pytest.raises(
        NotImplementedError, match="needs rsample, which is lacking in Hierarchical"
    ):
        prior_kl(two(), q)
    low = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    with pytest.raises(ValueError, match=r"the same event shape, but got \(3,\) and \(1,\)"):
        two.kl_divergence(low, lambda z2: q)
    with pytest.raises(ValueError, match=r"the same event shape, but got \(3,\) and \(2,\)"):
        two.kl_divergence(q, lambda z2: q)


def narrow():
    """One coordinate, which would broadcast with any number of them."""
    return dist.Normal(torch.zeros(1), 1.0).to_event(1)


def scalar():
    return dist.Normal(0.0, 1.0)


each_prior = pytest.mark.parametrize(
    "prior",
    [
        MixturePrior(1, 3),
        MixturePrior(2, 3),
        VampPrior(ENCODER, torch.zeros(5, 4)),
        HierarchicalPrior(MixturePrior(1, 3), ConditionalMixture(1, 1, 2)),
        narrow,
        scalar,
    ],
    ids=lambda prior: getattr(prior, "__name__", type(prior).__name__),
)


def programs(prior, decoder):
    """A model with a prior, and a guide with a mixture encoder of three coordinates."""
    pyro.clear_param_store()
    encoder = ConditionalMixture(4, 3, 2)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", decoder(z), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", encoder(x))

    return model, guide


def normal(z):
    return dist.Normal(z.sum(-1, keepdim=True).expand(*z.shape[:-1], 4), 1.0).to_event(1)


@each_prior
@pytest.mark.parametrize("validates", [True, False])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_encoder_of_another_size(objective, prior, validates):
    """Without validation, too: nothing broadcasts in silence."""
    model, guide = programs(prior, normal)
    elbo = objective(2, vectorize_particles=True, max_plate_nesting=1)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({}), elbo)
    event_shape = re.escape(str(tuple(prior().event_shape)))
    told = rf"event shape {event_shape} of the model at site 'z', but got \(3,\) in the guide"
    with pyro.validation_enabled(validates), pytest.raises(ValueError, match=told):
        svi.step(torch.rand(5, 4))


@each_prior
@pytest.mark.parametrize("validates", [True, False])
def test_diagnostics_of_an_encoder_of_another_size(prior, validates):
    model, guide = programs(prior, normal)
    event_shape = re.escape(str(tuple(prior().event_shape)))
    told = rf"guide to sample z of event shape {event_shape}, but got \(3,\)"
    for diagnose in (
        elbo_terms,
        partial(evaluate, num_samples=25),
        partial(evaluate_data, num_samples=25, progress=False),
    ):
        with pyro.validation_enabled(validates), pytest.raises(ValueError, match=told):
            diagnose(model, guide, torch.rand(5, 4), plate="data")


def bernoulli(z):
    return dist.Bernoulli(logits=normal(z).base_dist.loc).to_event(1)


def continuous_bernoulli(z):
    return dist.ContinuousBernoulli(logits=normal(z).base_dist.loc).to_event(1)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("decoder", [bernoulli, continuous_bernoulli])
@pytest.mark.parametrize("pixel", [-0.1, 1.5])
def test_images_outside_of_the_unit_interval(objective, decoder, pixel):
    model, guide = programs(MixturePrior(3, 2), decoder)
    elbo = objective(2, vectorize_particles=True, max_plate_nesting=1)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({}), elbo)
    x = torch.ones(5, 4)
    x[2, 1] = pixel
    with pytest.raises(ValueError, match="(?s)at site 'x'.* support"):
        svi.step(x)
    with pytest.raises(ValueError, match="(?s)at site 'x' of the model.* support"):
        evaluate(model, guide, x, plate="data", num_samples=25)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("where", ["prior", "encoder", "data"])
def test_nan_in_training(objective, where):
    """The error names the parameter and the distribution, and without validation the site is."""
    prior = MixturePrior(3, 2)
    model, guide = programs(prior, normal)
    x = torch.rand(5, 4)
    guide(x)
    weights = next(iter(pyro.get_param_store().values()))
    broken = {"prior": prior.locs, "data": x, "encoder": weights}[where]
    with torch.no_grad():
        broken.view(-1)[0] = math.nan
    elbo = objective(2, vectorize_particles=True, max_plate_nesting=1)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({}), elbo)
    with pytest.raises(ValueError, match="parameter locs .* of distribution MixtureOfDiagNormals"):
        svi.step(x)
    site = "site z of the " + ("model" if where == "prior" else "guide")
    assert nonfinite_site(elbo, model, guide, x).startswith(f"{site} has a loc")
