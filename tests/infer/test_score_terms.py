"""What else meets the score terms of mixtures: other sites, empty models, single precision."""

import math
import threading
from contextlib import nullcontext
from unittest import mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO

from pyro_mixtures.distributions import MixtureOfDiagNormals, TransformedDistribution
from pyro_mixtures.estimators import score
from pyro_mixtures.infer import (
    AutoDiagonalNormalMixture,
    AutoMultivariateNormalMixture,
    BaselinedTrace_ELBO,
)
from pyro_mixtures.samples.pyro_context import Asker, asked_by, asker
from tests.pairwise import in_pairs

LOCS = torch.tensor([[-2.0], [2.0]])


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def mixture(logits, name="z", **infer):
    q = MixtureOfDiagNormals(LOCS, 0.5 * torch.ones(2, 1), logits)
    return pyro.sample(name, q, infer=infer)


def two_sites():
    z = pyro.sample("x", dist.Normal(torch.zeros(1), 3.0).to_event(1))
    w = pyro.sample("w", dist.Normal(z, 1.0).to_event(1))
    pyro.sample("y", dist.Normal((z + w).sum(-1), 1.0), obs=torch.tensor(2.5))


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("objective", [Trace_ELBO, BaselinedTrace_ELBO])
def test_auxiliary_sites_that_follow_others(objective, structured):
    """``Trace_ELBO`` leaves out the densities of those whose parameters depend on the sample, too:
    there the samples carry the whole gradient."""
    logits = torch.tensor([0.3, -0.2], requires_grad=True)

    def guide():
        z = mixture(logits, is_auxiliary=True)
        scale = (z / 8).exp() if structured else torch.ones(1)
        later = dist.Normal(z if structured else torch.zeros(1), scale).to_event(1)
        v = pyro.sample("v", later, infer={"is_auxiliary": True})
        pyro.sample("x", dist.Delta(z, event_dim=1))
        pyro.sample("w", dist.Delta(v, event_dim=1))

    draws = []
    elbo = objective(num_particles=10_000, vectorize_particles=True, max_plate_nesting=0)
    for _ in range(40):
        logits.grad = None
        elbo.differentiable_loss(two_sites, guide).backward()
        draws.append(logits.grad[0])
    draws = torch.stack(draws)

    z = torch.linspace(-6, 6, 2001)
    exact = torch.tensor([0.3, -0.2], requires_grad=True)
    log_q = MixtureOfDiagNormals(LOCS, 0.5 * torch.ones(2, 1), exact).log_prob(z.unsqueeze(-1))
    mean, scale = (z, (z / 8).exp()) if structured else (torch.zeros(()), torch.ones(()))
    # E over w of log p(w | z) and log p(y | z, w), and the entropy of w
    constant = -math.log(2 * math.pi) / 2
    cost = dist.Normal(0.0, 3.0).log_prob(z)
    cost = cost + constant - ((mean - z).square() + scale.square()) / 2
    cost = cost + constant - ((z + mean - 2.5).square() + scale.square()) / 2
    cost = cost + scale.log() + 0.5 - constant
    loss = (log_q.exp() * (log_q - cost)).sum() * (z[1] - z[0])
    (exact,) = torch.autograd.grad(loss, exact)
    score = (draws.mean() - exact[0]) / (draws.std() / math.sqrt(len(draws)))
    assert draws.std() / math.sqrt(len(draws)) < 0.1 * exact[0].abs()
    assert score.abs() < 4.5  # t with 39 degrees of freedom: 6e-5


@in_pairs
@pytest.mark.parametrize("guide_class", [AutoDiagonalNormalMixture, AutoMultivariateNormalMixture])
@pytest.mark.parametrize("options", [{}, {"num_particles": 3}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_dtypes(guide_class, options, dtype):
    """Of the parameters; the arithmetic may well be of another."""

    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(40), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x.abs().sum(-1), 5.0), obs=torch.tensor(30.0))

    guide = guide_class(model, 4)
    guide()
    with torch.no_grad():
        guide.locs[2:] += 20.0  # another group
    guide.to(dtype)
    elbo = BaselinedTrace_ELBO(max_plate_nesting=0, **options)
    for _ in range(3):  # the later ones by what the first has found
        elbo.loss_and_grads(model, guide)
    for parameter in guide.parameters():
        assert parameter.grad.dtype == dtype
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0


@pytest.mark.parametrize("options", [{}, {"num_particles": 3, "vectorize_particles": True}])
def test_a_model_without_sample_sites(options):
    """The loss is minus the entropy of the guide, as for ``Trace_ELBO``."""
    logits = torch.tensor([0.3, -0.2], requires_grad=True)

    def guide():
        mixture(logits, is_auxiliary=True)

    losses = []
    for objective in (Trace_ELBO, BaselinedTrace_ELBO):
        pyro.set_rng_seed(0)
        elbo = objective(max_plate_nesting=0, **options)
        losses.append(
            float(torch.as_tensor(elbo.differentiable_loss(lambda: None, guide)).detach())
        )
        elbo.loss_and_grads(lambda: None, guide)
        assert elbo.loss_and_grads(lambda: None, lambda: None) == 0.0
    assert losses[0] == pytest.approx(losses[1])


@pytest.mark.parametrize("objective", [Trace_ELBO, BaselinedTrace_ELBO])
@pytest.mark.parametrize("auxiliary", [False, True])
def test_a_discrete_site_that_the_guide_lacks(objective, auxiliary):
    logits = torch.zeros(2, requires_grad=True)

    def model():
        a = pyro.sample("a", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z.squeeze(-1) * a, 1.0), obs=torch.tensor(1.0))

    def guide():
        if auxiliary:
            pyro.sample("z", dist.Delta(mixture(logits, "u", is_auxiliary=True), event_dim=1))
        else:
            mixture(logits)

    with (
        pytest.warns(UserWarning, match="not guide") if objective is Trace_ELBO else nullcontext(),
        pytest.raises(ValueError, match=r"none for \['a'\].*TraceEnum_ELBO"),
    ):
        objective(max_plate_nesting=0).differentiable_loss(model, guide)
    # as the error says
    loss = TraceEnum_ELBO(max_plate_nesting=0).differentiable_loss(model, guide)
    loss.backward()
    assert logits.grad.isfinite().all()


def without_gradient(q):
    return q.has_rsample_(False)


@pytest.mark.parametrize("objective", [Trace_ELBO, BaselinedTrace_ELBO])
@pytest.mark.parametrize(
    "wrap",
    [
        score,
        without_gradient,
        lambda q: score(q).to_event(1),
        lambda q: TransformedDistribution(score(q), []),
        lambda q: without_gradient(q).to_event(1),
    ],
    ids=["score", "has_rsample_", "score to_event", "score flow", "has_rsample_ to_event"],
)
def test_samples_without_gradient_at_auxiliary_sites(objective, wrap):
    logits = torch.tensor([[0.3, -0.2]], requires_grad=True)

    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(1), 3.0).to_event(1))
        pyro.sample("y", dist.Normal(x.square().sum(-1), 2.0), obs=torch.tensor(3.0))

    def guide():
        q = wrap(mixture_of(logits))
        z = pyro.sample("z", q, infer={"is_auxiliary": True})
        pyro.sample("x", dist.Delta(z.reshape(z.shape[:1] + (1,)), event_dim=1))

    draws = []
    elbo = objective(num_particles=4000, vectorize_particles=True, max_plate_nesting=0)
    for _ in range(30):
        logits.grad = None
        elbo.differentiable_loss(model, guide).backward()
        draws.append(logits.grad[0, 0])
    draws = torch.stack(draws)
    z = torch.linspace(-6, 6, 2001)
    exact = torch.tensor([[0.3, -0.2]], requires_grad=True)
    log_q = mixture_of(exact).log_prob(z.reshape(-1, 1, 1)).squeeze(-1)
    cost = dist.Normal(0.0, 3.0).log_prob(z) + dist.Normal(z.square(), 2.0).log_prob(
        torch.tensor(3.0)
    )
    loss = (log_q.exp() * (log_q - cost)).sum() * (z[1] - z[0])
    (exact,) = torch.autograd.grad(loss, exact)
    error = draws.std() / math.sqrt(len(draws))
    assert (draws.mean() - exact[0, 0]).abs() < 4.7 * error  # t with 29 degrees: 6e-5
    assert error < 0.1


def mixture_of(logits):
    return MixtureOfDiagNormals(LOCS + 0.3, 0.5 * torch.ones(2, 1), logits)


def test_samples_without_gradient_before_other_auxiliary_sites():
    def guide():
        z = pyro.sample("z", score(mixture_of(torch.zeros(2))), infer={"is_auxiliary": True})
        w = pyro.sample("v", dist.Normal(z, 1.0).to_event(1), infer={"is_auxiliary": True})
        pyro.sample("x", dist.Delta(z, event_dim=1))
        pyro.sample("w", dist.Delta(w, event_dim=1))

    with pytest.raises(NotImplementedError, match="use BaselinedTrace_ELBO"):
        Trace_ELBO().differentiable_loss(two_sites, guide)
    assert BaselinedTrace_ELBO().differentiable_loss(two_sites, guide).isfinite()


@pytest.mark.parametrize("objective", [Trace_ELBO, BaselinedTrace_ELBO])
def test_masked_sites_may_be_missing(objective):
    """They count nothing."""
    logits = torch.zeros(2, requires_grad=True)

    def model():
        pyro.sample("a", dist.Bernoulli(0.5).mask(False))
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=torch.tensor(1.0))

    with pytest.warns(UserWarning, match="not guide"):
        objective().differentiable_loss(model, lambda: mixture(logits)).backward()
    assert logits.grad.abs().max() > 0


def test_the_first_baseline_is_a_cost():
    """Of an independent evaluation."""
    elbo = BaselinedTrace_ELBO()
    logits = torch.zeros(2, requires_grad=True)

    def guide():
        pyro.sample("x", dist.Delta(mixture(logits, is_auxiliary=True), event_dim=1))
        pyro.sample("w", dist.Delta(torch.zeros(1), event_dim=1))

    with mock.patch.object(elbo, "_update_averages"):
        elbo.differentiable_loss(two_sites, guide)
    assert elbo._averages["z"] < -3  # log p - log q, of densities below these


def test_each_thread_asks_for_itself():
    """What one thread's objective says of itself is not heard in another."""
    heard = []
    with asked_by(Asker(objective=Trace_ELBO())):
        thread = threading.Thread(target=lambda: heard.append(asker()))
        thread.start()
        thread.join()
        assert asker().objective is not None
    assert heard == [Asker()]
    assert asker() == Asker()
