"""``BaselinedTrace_ELBO`` learns how to blend transport and score function."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_mixtures.distributions import MixtureOfDiagNormals
from pyro_mixtures.infer import AutoDiagonalNormalMixture, BaselinedTrace_ELBO
from tests.infer.test_objectives import (
    _double_precision,  # noqa: F401 -- for all tests here, too
    exact_gradients,
    gradients,
    make_guide,
    minus_elbo,
    model,
    z_scores,
)

PARTICLES = {
    "one": {"num_particles": 1},
    "loop": {"num_particles": 3},
    "vectorized": {"num_particles": 3, "vectorize_particles": True},
}
each_way = pytest.mark.parametrize("kwargs", PARTICLES.values(), ids=PARTICLES)


@each_way
def test_unbiased_while_it_learns(kwargs):
    guide = make_guide("clustered")
    exact = exact_gradients(guide, minus_elbo)
    elbo = BaselinedTrace_ELBO(max_plate_nesting=0, **kwargs)
    scores, _ = z_scores(guide, elbo, exact, 1500)
    assert scores.abs().max() < 4.7  # 9 entries: false alarm 9 * 3e-6
    ((name, blending),) = elbo._blendings.items()
    assert name == "_AutoDiagonalNormalMixture_latent"
    assert blending.num_draws == 1499 * kwargs["num_particles"]
    shares = blending.shares(torch.eye(3).bool())
    assert 0.02 < shares[:2].min() < 0.98


def two_modes():
    prior = dist.Normal(torch.zeros(5), 3.0).to_event(1)
    x = pyro.sample("x", prior)
    distances = torch.stack([x[..., :1] - 2, x[..., :1] + 2], -1).square().squeeze(-2)
    modes = (-distances / 2).logsumexp(-1) - x[..., 1:].square().sum(-1) / 2
    pyro.factor("target", modes - prior.log_prob(x))


@each_way
def test_lowers_the_variance(kwargs):
    """Of the logits' gradient, to about a half here."""
    variances = []
    for blending in (False, True):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide = AutoDiagonalNormalMixture(two_modes, 5, init_scale=1.0)
        guide()
        with torch.no_grad():
            guide.locs.copy_(2 * torch.nn.functional.normalize(torch.randn(5, 5), dim=-1))
        elbo = BaselinedTrace_ELBO(max_plate_nesting=0, blending=blending, **kwargs)
        draws = []
        for _ in range(600):
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


def test_other_objectives_take_what_was_learned_for_granted():
    """A mixture that was blended stays so, and unbiased, outside of the objective."""
    locs = torch.tensor([[-1.0], [0.5]])
    logits = torch.zeros(2, requires_grad=True)
    q = MixtureOfDiagNormals(locs, torch.ones(2, 1), logits, weight_gradient="clustered")

    def simple():
        x = pyro.sample("x", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.factor("cost", (3 * x).cos().sum(-1), has_rsample=False)

    def guide():
        pyro.sample("x", q)

    def mean_gradient(elbo):
        elbo.differentiable_loss(simple, guide).backward()
        gradient, logits.grad = logits.grad, None
        return gradient

    several = {"num_particles": 100_000, "vectorize_particles": True, "max_plate_nesting": 0}
    pyro.set_rng_seed(0)
    own = mean_gradient(BaselinedTrace_ELBO(**several))
    elbo = BaselinedTrace_ELBO(**several)
    for _ in range(2):
        mean_gradient(elbo)
    elbo._blendings["x"].learn()
    assert q._blending is elbo._blendings["x"]
    assert q._blending.shares(q._same_group).max() < 0.95
    # standard deviations of one draw are below 1: five standard errors
    assert torch.allclose(mean_gradient(Trace_ELBO(**several)), own, atol=0.016)


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
