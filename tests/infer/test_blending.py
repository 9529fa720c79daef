"""``BaselinedTrace_ELBO`` learns how to blend transport and score function."""

import copy
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Categorical, Gamma, LogNormal

from pyro_mixtures.distributions import Mixture, MixtureOfDiagNormals, MixtureSameFamily
from pyro_mixtures.estimators import blended
from pyro_mixtures.infer import AutoDiagonalNormalMixture, BaselinedTrace_ELBO
from pyro_mixtures.samples.blending import Blending
from tests.infer.test_objectives import (
    _double_precision,  # noqa: F401 -- for all tests here, too
    exact_gradients,
    gradients,
    make_guide,
    minus_elbo,
    model,
    z_scores,
)
from tests.registry import leaves

PARTICLES = {
    "one": {"num_particles": 1},
    "loop": {"num_particles": 3},
    "vectorized": {"num_particles": 3, "vectorize_particles": True},
}
each_way = pytest.mark.parametrize("kwargs", PARTICLES.values(), ids=PARTICLES)


@pytest.mark.parametrize(
    ("kwargs", "draws"),
    list(zip(PARTICLES.values(), (300, 150, 1000), strict=True)),
    ids=PARTICLES,
)
def test_unbiased_while_it_learns(kwargs, draws):
    guide = make_guide("clustered")
    exact = exact_gradients(guide, minus_elbo)
    elbo = BaselinedTrace_ELBO(max_plate_nesting=0, **kwargs)
    scores, _ = z_scores(guide, elbo, exact, draws)
    assert scores.abs().max() < 4.7  # 9 entries: false alarm 9 * 3e-6
    ((name, blending),) = elbo._blendings.items()
    assert name == "_AutoDiagonalNormalMixture_latent"
    assert blending.num_draws == (draws - 1) * kwargs["num_particles"]
    shares = blending.shares(torch.arange(3))
    assert 0.02 < shares[:2].min() < 0.98


def two_modes():
    prior = dist.Normal(torch.zeros(5), 3.0).to_event(1)
    x = pyro.sample("x", prior)
    distances = torch.stack([x[..., :1] - 2, x[..., :1] + 2], -1).square().squeeze(-2)
    modes = (-distances / 2).logsumexp(-1) - x[..., 1:].square().sum(-1) / 2
    pyro.factor("target", modes - prior.log_prob(x))


@pytest.mark.parametrize("kwargs", [PARTICLES["one"], PARTICLES["vectorized"]])
def test_lowers_the_variance(kwargs):
    """Of the logits' gradient, to about a half here."""
    variances = []
    for blending in (False, True):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide = AutoDiagonalNormalMixture(two_modes, 5, init_scale=1.0)
        guide()
        pyro.set_rng_seed(6)
        with torch.no_grad():
            guide.locs.copy_(2 * torch.nn.functional.normalize(torch.randn(5, 5), dim=-1))
        elbo = BaselinedTrace_ELBO(max_plate_nesting=0, blending=blending, **kwargs)
        draws = []
        for _ in range(400):
            guide.zero_grad()
            elbo.loss_and_grads(two_modes, guide)
            draws.append(guide.component_logits.grad)
        variances.append(torch.stack(draws[100:]).var(0).sum())
    assert variances[1] < 0.8 * variances[0]


def test_a_resumed_run_goes_on_with_the_same_numbers():
    guide = make_guide("clustered")
    elbo = BaselinedTrace_ELBO(max_plate_nesting=0)
    for _ in range(20):
        elbo.loss_and_grads(model, guide)
    checkpoint = copy.deepcopy(elbo.state_dict())
    results = []
    for _ in range(2):
        pyro.set_rng_seed(1)
        for _ in range(5):
            guide.zero_grad()
            elbo.loss_and_grads(model, guide)
        results.append(gradients(guide).clone())
        elbo = BaselinedTrace_ELBO(max_plate_nesting=0)
        elbo.load_state_dict(checkpoint)
    assert torch.equal(*results)


def test_evaluations_teach_nothing():
    guide = make_guide("clustered")
    elbo = BaselinedTrace_ELBO(num_particles=2, max_plate_nesting=0)
    for _ in range(3):
        elbo.loss(model, guide)
    (blending,) = elbo._blendings.values()
    assert blending.state_dict()["num_draws"] == 0


LOCS = torch.tensor([[-0.5], [0.5]])


@pytest.mark.parametrize("wrap", [lambda q: q, lambda q: q.to_event(0), lambda q: q.mask(True)])
def test_one_mixture_at_several_sites(wrap):
    """Each site learns shares of its own, and the user's object stays as it is."""

    def costly():
        for i, frequency in enumerate((1.0, 3.0)):
            x = pyro.sample(f"x{i}", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.factor(f"cost{i}", (1 + i) * (frequency * x).sin().sum(-1), has_rsample=False)

    logits = torch.zeros(2, requires_grad=True)
    q = MixtureOfDiagNormals(LOCS, torch.ones(2, 1), logits, weight_gradient="clustered")

    def guide():
        for i in range(2):
            pyro.sample(f"x{i}", wrap(q))

    pyro.set_rng_seed(0)
    several = {"num_particles": 50_000, "vectorize_particles": True, "max_plate_nesting": 0}
    means = []
    for blending in (False, True):
        elbo = BaselinedTrace_ELBO(blending=blending, **several)
        for _ in range(2):  # the second by what the first has found
            logits.grad = None
            elbo.differentiable_loss(costly, guide).backward()
        means.append(logits.grad)
    # standard deviations of one draw are below 2: some five standard errors
    torch.testing.assert_close(*means, atol=0.045, rtol=0)
    groups = torch.zeros(2, dtype=torch.long)
    shares = [elbo._blendings[f"x{i}"].shares(groups)[0] for i in range(2)]
    assert shares[0] - shares[1] > 0.1
    assert q.blending is None
    assert q.score_parts(q.rsample()).score_function == 0  # one group, as before


def test_two_guides_on_one_objective():
    """Neither forgets its baseline for the other's."""
    count = 0

    def counting():
        nonlocal count
        count += 1
        pyro.sample("x", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    guides = []
    for name in "ab":
        guide = AutoDiagonalNormalMixture(counting, 2)
        guide._pyro_name = name
        guide()
        guides.append(guide)
    elbo = BaselinedTrace_ELBO(max_plate_nesting=0)
    count = 0
    for _ in range(3):
        for guide in guides:
            elbo.loss_and_grads(counting, guide)
    assert count == 6 + 2
    assert elbo.state_dict()["blendings"].keys() == {"_a_latent", "_b_latent"}


@pytest.mark.parametrize("sticking_the_landing", [False, True])
@each_way
def test_scaled_models_have_scaled_gradients(kwargs, sticking_the_landing):
    """As for annealing: nothing is left out of the scale."""
    results = []
    for scale in (1.0, 0.01):
        guide = make_guide("clustered")
        elbo = BaselinedTrace_ELBO(
            max_plate_nesting=0, sticking_the_landing=sticking_the_landing, **kwargs
        )
        scaled = [pyro.poutine.scale(each, scale) for each in (model, guide)]
        for _ in range(3):
            guide.zero_grad()
            elbo.loss_and_grads(*scaled)
        results.append(gradients(guide) / scale)
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-9)


def gammas(parameters):
    weights = Categorical(logits=parameters["logits"])
    return MixtureSameFamily(weights, Gamma(parameters["shape"].exp(), parameters["rate"].exp()))


def half_lines(parameters):
    """Of different families."""
    shape, rate = parameters["shape"].exp(), parameters["rate"].exp()
    parts = [
        Gamma(shape[0], rate[0]),
        LogNormal(shape[1].log(), rate[1]),
        Gamma(shape[2], rate[2]),
    ]
    return Mixture(Categorical(logits=parameters["logits"]), parts)


@pytest.mark.parametrize("build", [gammas, half_lines])
def test_mixtures_of_any_family_learn(build):
    """Unbiased, against quadrature, while they do."""
    torch.manual_seed(0)
    parameters = leaves(
        {
            "shape": torch.tensor([0.7, 0.9, 1.4]),
            "rate": torch.tensor([0.1, -0.3, -0.2]),
            "logits": torch.tensor([0.3, -0.2, 0.1]),
        }
    )

    def log_ratio(x):
        return -2.0 * (2.0 * x).sin() - 0.1 * x

    def target():
        x = pyro.sample("x", dist.Gamma(2.0, 1.0))
        pyro.factor("ratio", log_ratio(x))

    x = torch.linspace(-12, 4.5, 20_001).exp()
    log_q, prior = build(parameters).log_prob(x), dist.Gamma(2.0, 1.0).log_prob(x)
    exact = torch.autograd.grad(
        torch.trapezoid(log_q.exp() * (log_q - prior - log_ratio(x)), x), list(parameters.values())
    )
    elbo = BaselinedTrace_ELBO(num_particles=150, vectorize_particles=True, max_plate_nesting=0)
    draws = []
    for _ in range(60):
        loss = elbo.differentiable_loss(target, lambda: pyro.sample("x", build(parameters)))
        draws.append(torch.cat(torch.autograd.grad(loss, list(parameters.values()))))
    draws = torch.stack(draws)
    scores = (draws.mean(0) - torch.cat(exact)) / (draws.std(0) / len(draws) ** 0.5)
    # 9 entries: false alarm about 9 * 2e-5 (t with 59 degrees of freedom beyond 4.6)
    assert scores.abs().max() < 4.6
    blending = elbo._blendings["x"]
    assert blending.num_draws == 59 * 150
    assert 0.02 < blending.shares(torch.zeros(3, dtype=torch.long))[0] < 0.98


def test_mixtures_of_a_plate_learn_together():
    """An amortized guide, with minibatches of changing size."""

    def many(data):
        with pyro.plate("data", len(data)):
            x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(x.sum(-1), 0.5), obs=data)

    weights = torch.tensor([0.5, -0.5, 0.2], requires_grad=True)

    def guide(data):
        locs = torch.stack([data, data - 1.0, data / 2], -1).unsqueeze(-1).expand(-1, 3, 2)
        q = MixtureOfDiagNormals(
            locs,
            torch.ones(3, 2),
            data.unsqueeze(-1) * weights,
            weight_gradient="clustered",
        )
        with pyro.plate("data", len(data)):
            pyro.sample("x", q)

    elbo = BaselinedTrace_ELBO(num_particles=2, vectorize_particles=True)
    for size in (5, 8, 5):
        elbo.loss_and_grads(many, guide, torch.linspace(-1, 2, size))
    (blending,) = elbo._blendings.values()
    assert blending.state_dict()["num_draws"] == 2 * (5 + 8 + 5)
    assert weights.grad.isfinite().all()


def test_decays_are_checked():
    with pytest.raises(ValueError, match="blending_decay"):
        BaselinedTrace_ELBO(blending_decay=1.0)


def test_a_blending_of_the_users_own_goes_on():
    blending = Blending()
    guide = make_guide("clustered")
    guide.estimator = partial(blended, blending=blending)
    elbo = BaselinedTrace_ELBO(max_plate_nesting=0)
    for _ in range(3):
        elbo.loss_and_grads(model, guide)
        blending.learn()
    assert blending.num_draws == 3
    assert elbo.state_dict()["blendings"] == {}
