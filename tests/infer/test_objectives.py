"""The guide's gradients under each objective, against exact gradients by quadrature."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch.distributions import Categorical, MixtureSameFamily, Normal

from pyro_mixtures.infer import AutoDiagonalNormalMixture, BaselinedTrace_ELBO

# two overlapping components and one apart: "clustered" makes two groups of them
LOCS = torch.tensor([[-2.0], [-1.2], [2.5]], dtype=torch.float64)
SCALES = torch.tensor([[0.7], [1.0], [0.6]], dtype=torch.float64)
LOGITS = torch.tensor([0.4, -0.3, 0.1], dtype=torch.float64)
NAMES = ("locs", "coord_scale_unconstrained", "component_logits")


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def log_density(x):
    """An unnormalized two-moded target."""
    modes = MixtureSameFamily(
        Categorical(probs=torch.tensor([0.3, 0.7])),
        Normal(torch.tensor([-1.5, 2.0]), torch.tensor([0.8, 0.7])),
    )
    return modes.log_prob(x) + 3.0


def model():
    x = pyro.sample("x", dist.Normal(0.0, 3.0))
    pyro.factor("target", log_density(x) - dist.Normal(0.0, 3.0).log_prob(x))


def make_guide(weight_gradient):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = AutoDiagonalNormalMixture(model, 3, weight_gradient=weight_gradient)
    guide()
    with torch.no_grad():
        guide.locs.copy_(LOCS)
        guide.component_logits.copy_(LOGITS)
    guide.coord_scale = SCALES
    return guide


def gradients(guide):
    return torch.cat([p.grad.flatten() for _, p in sorted(guide.named_parameters())])


def exact_gradients(guide, objective):
    """Gradient of the objective (a function of q and log p on a grid) by autograd."""
    guide.zero_grad()
    x = torch.linspace(-14, 14, 4001)
    q = MixtureSameFamily(
        Categorical(logits=guide.component_logits),
        Normal(guide.locs.squeeze(-1), guide.coord_scale.squeeze(-1)),
    )
    objective(q.log_prob(x), log_density(x), x[1] - x[0]).backward()
    return gradients(guide)


def minus_elbo(log_q, log_p, dx):
    return -(log_q.exp() * (log_p - log_q)).sum() * dx


def minus_renyi(alpha):
    def objective(log_q, log_p, dx):
        return -((alpha * log_q + (1 - alpha) * log_p).exp().sum() * dx).log() / (1 - alpha)

    return objective


def z_scores(guide, elbo, exact, repeats):
    draws = []
    for _ in range(repeats):
        guide.zero_grad()
        elbo.loss_and_grads(model, guide)
        draws.append(gradients(guide))
    draws = torch.stack(draws)
    return (draws.mean(0) - exact) / (draws.std(0) / math.sqrt(repeats)), draws


@pytest.mark.parametrize("weight_gradient", ["pathwise", "clustered", "hybrid"])
@pytest.mark.parametrize("objective", [Trace_ELBO, BaselinedTrace_ELBO])
def test_elbo_gradient_is_unbiased(objective, weight_gradient):
    guide = make_guide(weight_gradient)
    exact = exact_gradients(guide, minus_elbo)
    elbo = objective(num_particles=2000, vectorize_particles=True, max_plate_nesting=0)
    scores, draws = z_scores(guide, elbo, exact, 60)
    # 9 entries: false alarm about 9 * 2e-5 (t with 59 degrees of freedom beyond 4.6)
    assert scores.abs().max() < 4.6
    assert draws.std(0).max() / math.sqrt(60) < 0.05  # the test can see a bias


def minus_two_particle_bound(log_q, log_p, dx):
    """The importance-weighted bound of two particles, integrated over both."""
    log_q, log_p = log_q[::8], log_p[::8]
    weight = torch.logaddexp((log_p - log_q).unsqueeze(-1), log_p - log_q) - math.log(2)
    mass = log_q.exp() * 8 * dx
    return -(mass.unsqueeze(-1) * mass * weight).sum()


def test_renyi_gradient_is_unbiased_for_two_particles():
    """With pathwise weights; the score function terms of ``RenyiELBO`` are consistent only."""
    guide = make_guide("pathwise")
    exact = exact_gradients(guide, minus_two_particle_bound)
    assert exact.abs().max() > 0.1
    elbo = RenyiELBO(alpha=0, num_particles=2, vectorize_particles=True, max_plate_nesting=0)
    scores, _ = z_scores(guide, elbo, exact, 1000)
    assert scores.abs().max() < 4.7  # 9 * 3e-6


@pytest.mark.parametrize("weight_gradient", ["pathwise", "clustered", "hybrid"])
def test_renyi_gradient_is_consistent(weight_gradient):
    guide = make_guide(weight_gradient)
    exact = exact_gradients(guide, minus_renyi(0.5))
    # a bias of order 1 / num_particles is below the noise here
    elbo = RenyiELBO(
        alpha=0.5, num_particles=40_000, vectorize_particles=True, max_plate_nesting=0
    )
    scores, draws = z_scores(guide, elbo, exact, 20)
    assert scores.abs().max() < 6  # t with 19 degrees of freedom: 9 * 9e-6
    assert draws.std(0).max() / math.sqrt(20) < 0.05


def test_pathwise_guides_work_with_other_objectives():
    guide = make_guide("pathwise")
    exact = exact_gradients(guide, minus_elbo)
    elbo = TraceMeanField_ELBO(num_particles=2000, vectorize_particles=True, max_plate_nesting=0)
    scores, _ = z_scores(guide, elbo, exact, 60)
    assert scores.abs().max() < 4.6


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"num_particles": 4}, {"num_particles": 4, "vectorize_particles": True}],
    ids=["average", "loop", "vectorized"],
)
def test_baseline_is_unbiased_and_lowers_the_variance(kwargs):
    guide = make_guide("hybrid")
    exact = exact_gradients(guide, minus_elbo)
    elbo = BaselinedTrace_ELBO(max_plate_nesting=0, **kwargs)
    scores, draws = z_scores(guide, elbo, exact, 200)
    assert scores.abs().max() < 4.7  # 9 * 4e-6
    _, plain = z_scores(guide, Trace_ELBO(max_plate_nesting=0, **kwargs), exact, 200)
    logits = slice(0, 3)  # "component_logits" is the first in alphabetical order
    assert draws[:, logits].var(0).sum() < 0.5 * plain[:, logits].var(0).sum()


def test_baselined_equals_trace_elbo_without_score_terms():
    guide = make_guide("pathwise")
    results = []
    for objective in (Trace_ELBO, BaselinedTrace_ELBO):
        pyro.set_rng_seed(1)
        guide.zero_grad()
        loss = objective(num_particles=3).loss_and_grads(model, guide)
        results.append((loss, gradients(guide)))
    assert results[0][0] == pytest.approx(results[1][0])
    assert torch.allclose(results[0][1], results[1][1])


def test_differentiable_loss_has_the_gradients_of_loss_and_grads():
    guide = make_guide("clustered")
    results = []
    for differentiable in (True, False):
        elbo = BaselinedTrace_ELBO(num_particles=3)
        pyro.set_rng_seed(1)
        guide.zero_grad()
        if differentiable:
            loss = elbo.differentiable_loss(model, guide)
            loss.backward()
        else:
            loss = elbo.loss_and_grads(model, guide)
        results.append((torch.as_tensor(loss).item(), gradients(guide)))
    assert results[0][0] == pytest.approx(results[1][0])
    assert torch.allclose(results[0][1], results[1][1])


def test_baseline_decay_is_checked():
    with pytest.raises(ValueError, match="baseline_decay"):
        BaselinedTrace_ELBO(baseline_decay=1.0)


def test_weight_gradients_under_plates_and_several_sites():
    """The density of the latent vector is carried once, whatever the plates of the first site."""

    def plated():
        rows, columns = pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1)
        with rows, columns:
            a = pyro.sample("a", dist.Gamma(2.0, 1.0))
        with columns:
            b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("y", dist.Normal(a.sum() + b.sum(), 1.0), obs=torch.tensor(1.0))

    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = AutoDiagonalNormalMixture(plated, 3)
    guide()
    trace = pyro.poutine.trace(guide).get_trace()
    a, b = trace.nodes["a"]["value"], trace.nodes["b"]["value"]
    latent = torch.cat([a.log().flatten(), b.flatten()])
    expected = guide.get_posterior().log_prob(latent) - a.log().sum()
    assert trace.log_prob_sum().item() == pytest.approx(expected.item())
