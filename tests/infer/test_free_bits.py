"""Free bits: the gradient of the loss by hand, rates, a collapse that they prevent, refusals."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    SVI,
    JitTrace_ELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal

from pyro_mixtures import (
    SIWAE_ELBO,
    Annealing,
    AutoDiagonalNormalMixture,
    BaselinedTrace_ELBO,
    FreeBits,
    ImportanceWeighted_ELBO,
    MarginalizedMixture_ELBO,
    estimators,
)
from pyro_mixtures.estimators.strata import component_samples
from pyro_mixtures.nn import ConditionalMixture, MixturePrior


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
    pyro.clear_param_store()


class Autoencoder(torch.nn.Module):
    """An amortized guide in a plate, and a prior with parameters."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.prior = encoder, MixturePrior(2, 3)
        self.decoder = torch.nn.Linear(2, 4)

    def model(self, x):
        pyro.module("autoencoder", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x):
        pyro.module("autoencoder", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encoder(x))

    def likelihood(self, z):
        return dist.Normal(self.decoder(z), 0.5).to_event(1)

    def gradient(self):
        pairs = ((p, p.grad) for p in self.parameters())
        found = [(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs]
        self.zero_grad()
        return torch.cat(found)


class NormalEncoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(4, 4)

    def forward(self, x):
        loc, raw = self.net(x).chunk(2, -1)
        return dist.Normal(loc, raw.exp()).to_event(1)


def normal():
    return Autoencoder(NormalEncoder())


def mixture(estimator="clustered"):
    """Whose estimator is that of the weights' gradient; the score function is one by itself."""
    if estimator != "score":
        return Autoencoder(ConditionalMixture(4, 2, 3, weight_gradient=estimator))
    autoencoder = mixture()
    encoder = autoencoder.encoder.forward
    autoencoder.encoder.forward = lambda x: estimators.score(encoder(x))
    return autoencoder


X = torch.tensor([[0.5, -1.0, 2.0, 0.3], [1.5, 0.2, -0.7, 1.0], [-2.0, 1.0, 0.1, 0.4]]).double()


def step(elbo, autoencoder, context, x=X, seed=1):
    pyro.set_rng_seed(seed)
    with context:
        loss = elbo.loss_and_grads(autoencoder.model, autoencoder.guide, x)
    return loss, autoencoder.gradient()


def terms_by_hand(autoencoder, objective, particles):
    """Distortion and rate, sums over the data, of the draws of a step."""
    pyro.set_rng_seed(1)
    q = autoencoder.encoder(X)
    if objective is MarginalizedMixture_ELBO:
        z = component_samples(q, (particles,))  # (T, K, N, 2)
        weights = q.log_weights.T.exp() / particles
    else:
        z = q.expand((particles, len(X)) if particles > 1 else q.batch_shape).rsample()
        weights = 1 / particles
    distortion = -(weights * autoencoder.likelihood(z).log_prob(X)).sum()
    rate = (weights * (q.log_prob(z) - autoencoder.prior().log_prob(z))).sum()
    return distortion, rate


@pytest.mark.parametrize("share", [0.5, 2.0], ids=["below", "above"])
@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize(
    ("objective", "make"),
    [
        (Trace_ELBO, normal),
        (TraceGraph_ELBO, normal),
        (TraceMeanField_ELBO, normal),
        (BaselinedTrace_ELBO, normal),
        (MarginalizedMixture_ELBO, mixture),
    ],
)
def test_gradients_are_those_of_the_loss_by_hand(objective, make, particles, share):
    """Of distortion + max(nats, rate), each site's, a mean over the data, of the same draws."""
    autoencoder = make()
    elbo = objective(particles, vectorize_particles=True, max_plate_nesting=1)
    first = FreeBits(1.0)
    step(elbo, autoencoder, first)  # its rate is that of the same draws
    nats = share * first.rates["z"]
    free_bits = FreeBits(nats, decay=0.0)
    free_bits.load_state_dict(first.state_dict())
    found, gradient = step(elbo, autoencoder, free_bits)
    distortion, rate = terms_by_hand(autoencoder, objective, particles)
    count = len(X)
    assert free_bits.rates["z"] == pytest.approx(rate.item() / count)
    (distortion + rate.clamp_min(nats * count)).backward()
    torch.testing.assert_close(gradient, autoencoder.gradient(), rtol=1e-8, atol=1e-10)
    assert found == pytest.approx((distortion + (rate if share < 1 else 0.0)).item())


@pytest.mark.parametrize("estimator", ["clustered", "pathwise", "score"])
@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("particles", [1, 2])
def test_what_measures_the_rate_changes_no_gradient(estimator, vectorize, particles):
    """A mixture's samples know their densities again: those with a graph, as without free bits."""
    autoencoder = mixture(estimator)

    def run(context):
        elbo = BaselinedTrace_ELBO(particles, vectorize_particles=vectorize, max_plate_nesting=1)
        return [step(elbo, autoencoder, context, seed=seed) for seed in (1, 2)]

    for nats, weight in ((1e-6, 1.0), (1e6, 0.0)):
        free_bits = FreeBits(nats)
        free_bits.rates["z"] = 1.0
        for (loss, gradient), (same, plain) in zip(
            run(free_bits), run(Annealing(weight)), strict=True
        ):
            assert loss == pytest.approx(same)
            torch.testing.assert_close(gradient, plain)


def test_rates_are_divergences():
    """Of one sample of each site, in whatever plates; particles one by one, as well."""
    q = torch.tensor([0.5, 2.0])

    def model():
        pyro.sample("one", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 500, dim=-2), pyro.plate("views", 40, dim=-1):
            pyro.sample("many", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def guide():
        pyro.sample("one", dist.Normal(0.0, 0.5))
        with pyro.plate("data", 500, dim=-2), pyro.plate("views", 40, dim=-1):
            pyro.sample("many", dist.Normal(q, 0.5).to_event(1))

    each = torch.distributions.kl_divergence(
        torch.distributions.Normal(q, 0.5), torch.distributions.Normal(0.0, 1.0)
    ).sum()
    for vectorize in (True, False):
        free_bits = FreeBits(1.0)
        with free_bits:
            Trace_ELBO(3, vectorize_particles=vectorize, max_plate_nesting=2).loss(model, guide)
        # standard deviation of log q - log p below 2.5: 6 standard errors
        assert free_bits.rates["many"] == pytest.approx(each.item(), abs=0.07)
        assert free_bits.rates["one"] == pytest.approx(0.32, abs=2.0)
        assert (free_bits.weight("one"), free_bits.weight("many")) == (0.0, 1.0)


def test_rates_of_a_subsample():
    """Of a datum, whatever the share of the data that is seen, which multiplies the loss."""

    def model(count):
        with pyro.plate("data", 8000, subsample_size=count):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide(count):
        with pyro.plate("data", 8000, subsample_size=count):
            pyro.sample("z", dist.Normal(1.0, 1.0))

    free_bits, elbo = FreeBits(0.1, decay=0.0), Trace_ELBO()
    for count in (8000, 4000):
        free_bits.rates.clear()
        with free_bits:
            assert elbo.loss(model, guide, count) == 0
        # standard deviation of log q - log p of 1: 6 standard errors
        assert free_bits.rates["z"] == pytest.approx(0.5, abs=6 / math.sqrt(count))
        with free_bits:
            loss = elbo.loss(model, guide, count)
        assert loss == pytest.approx(8000 * free_bits.rates["z"], rel=1e-4)


@pytest.mark.parametrize("objective", [TraceGraph_ELBO, BaselinedTrace_ELBO])
def test_values_that_an_objective_wraps_have_rates(objective):
    """Of sites without rsample, whose values tell where they come from."""

    def model():
        pyro.sample("z", dist.Poisson(2.0))

    def guide():
        pyro.sample("z", dist.Poisson(pyro.param("rate", torch.tensor(2.0)).exp()))

    free_bits = FreeBits(0.5, decay=0.0)
    with free_bits:
        objective(num_particles=200).loss_and_grads(model, guide)
    rate = math.exp(2.0)
    exact = rate * (2.0 - math.log(2.0)) - rate + 2.0
    # standard deviation 1.31 sqrt(7.39) of one particle: 6 standard errors
    assert free_bits.rates["z"] == pytest.approx(exact, abs=1.5)


def test_what_a_mask_hides_has_no_rate():
    mask = torch.tensor([True, False, True])
    loc = torch.tensor([1.0, 1e10, 2.0])

    def model():
        with pyro.plate("data", 3), poutine.mask(mask=mask):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide():
        with pyro.plate("data", 3), poutine.mask(mask=mask):
            pyro.sample("z", dist.Normal(loc, 1.0))

    free_bits = FreeBits(1.0)
    with free_bits:
        pyro.set_rng_seed(0)
        loss = Trace_ELBO().loss(model, guide)
    assert loss == 0  # free
    pyro.set_rng_seed(0)
    assert free_bits.rates["z"] == pytest.approx(Trace_ELBO().loss(model, guide) / 2)


def test_averages_decay_and_weights_hold_for_a_step():
    """Particles one by one have one weight, though each has a rate of its own."""
    locs = iter([3.0, 3.0, 0.0, 0.0])
    weights = []

    def guide():
        pyro.sample("z", dist.Normal(next(locs), 1e-3))

    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    free_bits = FreeBits(8.0, decay=0.75)
    elbo = Trace_ELBO(2, max_plate_nesting=0)
    seen = []
    for _ in range(2):
        weights.append(free_bits.weight("z"))
        with free_bits:
            elbo.loss(model, guide)
        seen.append(free_bits.rates["z"])
    entropy = math.log(1e3) + 0.0
    assert weights == [0.0, 1.0]
    assert seen[0] == pytest.approx(entropy + 4.5, abs=1.5)
    assert seen[1] == pytest.approx(0.75 * seen[0] + 0.25 * entropy, abs=1.0)
    again = FreeBits(8.0)
    again.load_state_dict(free_bits.state_dict())
    assert again.rates == free_bits.rates
    assert again.rates is not free_bits.rates


def test_annealing_multiplies():
    autoencoder = normal()
    free_bits = FreeBits(1e-6)
    free_bits.rates["z"] = 1.0
    elbo = Trace_ELBO(max_plate_nesting=1)

    class Both:
        def __enter__(self):
            free_bits.__enter__()
            self.annealing = Annealing(0.25)
            self.annealing.__enter__()

        def __exit__(self, *error):
            self.annealing.__exit__(*error)
            free_bits.__exit__(*error)

    loss, gradient = step(elbo, autoencoder, Both())
    same, expected = step(elbo, autoencoder, Annealing(0.25))
    assert loss == pytest.approx(same)
    torch.testing.assert_close(gradient, expected)


def test_a_collapse_that_free_bits_prevent():
    """A decoder that can do without its latent, or with it for the same evidence."""
    x = math.sqrt(2) * torch.randn(500)

    def model():
        weight = pyro.param("weight", lambda: torch.tensor(0.0))
        log_noise = pyro.param("log_noise", lambda: torch.tensor(0.0))
        with pyro.plate("data", 500), poutine.scale(scale=1 / 500):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(weight * z, log_noise.exp()), obs=x)

    def guide():
        slope = pyro.param("slope", lambda: torch.tensor(0.05))
        log_scale = pyro.param("log_scale", lambda: torch.tensor(0.0))
        with pyro.plate("data", 500), poutine.scale(scale=1 / 500):
            pyro.sample("z", dist.Normal(slope * x, log_scale.exp()))

    def trained(context):
        pyro.clear_param_store()
        svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.1}), Trace_ELBO())
        for _ in range(200):
            with context:
                svi.step()
        watching = FreeBits(1.0, decay=0.0)
        with watching:
            Trace_ELBO(20).loss(model, guide)
        return watching.rates["z"], Trace_ELBO(20).loss(model, guide)

    rate, loss = trained(Annealing(1.0))
    free_rate, free_loss = trained(FreeBits(0.5))
    assert rate < 0.02
    assert 0.4 < free_rate < 0.6
    assert free_loss == pytest.approx(loss, abs=0.03)


# -------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("objective", [SIWAE_ELBO, ImportanceWeighted_ELBO])
@pytest.mark.parametrize("particles", [1, 2])
@pytest.mark.parametrize("rate", [0.0, 3.0])
def test_a_logarithm_over_samples_refuses_free_bits(objective, particles, rate):
    """In whatever state, not only where the scales differ."""
    autoencoder, free_bits = mixture(), FreeBits(1.0)
    free_bits.rates["z"] = rate
    elbo = objective(particles, vectorize_particles=True, max_plate_nesting=1)
    with pytest.raises(NotImplementedError, match="no FreeBits .* got it for z: use Baselined"):
        step(elbo, autoencoder, free_bits)
    assert free_bits.rates == {"z": rate}
    assert math.isfinite(elbo.loss(autoencoder.model, autoencoder.guide, X))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (AutoDiagonalNormal, "_AutoDiagonalNormal_latent"),
        (AutoNormal, "z_unconstrained"),
        (lambda model: AutoDiagonalNormalMixture(model, 2), "_AutoDiagonalNormalMixture_latent"),
    ],
)
def test_automatic_guides_have_no_rates(make, named):
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    guide = make(model)
    with pytest.raises(ValueError, match=f"samples the latent sites .* one with {named}"):
        with FreeBits(1.0):
            Trace_ELBO().loss(model, guide)


def test_enumerated_sites_are_refused():
    def model():
        pyro.sample("z", dist.Categorical(torch.ones(3)))

    def guide():
        pyro.sample("z", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})

    with FreeBits(1.0), pytest.raises(NotImplementedError, match="site 'z' is enumerated"):
        TraceEnum_ELBO(max_plate_nesting=0).loss(model, guide)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_compiled_objectives_would_keep_a_weight():
    autoencoder = normal()
    elbo = JitTrace_ELBO(max_plate_nesting=1, ignore_jit_warnings=True)
    with FreeBits(1.0), pytest.raises(NotImplementedError, match="without Jit, whose trace keeps"):
        elbo.loss_and_grads(autoencoder.model, autoencoder.guide, X)


@pytest.mark.parametrize("nats", [0.0, -1.0, math.inf, math.nan])
def test_bad_nats(nats):
    with pytest.raises(ValueError, match=f"finite nats > 0, but got {nats}"):
        FreeBits(nats)


@pytest.mark.parametrize("decay", [-0.1, 1.0, math.nan])
def test_bad_decays(decay):
    with pytest.raises(ValueError, match=f"0 <= decay < 1, but got {decay}"):
        FreeBits(1.0, decay=decay)
