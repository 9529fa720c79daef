"""Objectives where models and costs are unusual: sites outside of logarithms, infinite costs."""

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO

from pyro_mixtures.distributions import Mixture, MixtureSameFamily
from pyro_mixtures.infer import (
    SIWAE_ELBO,
    BaselinedTrace_ELBO,
    ImportanceWeighted_ELBO,
    MarginalizedMixture_ELBO,
)
from pyro_mixtures.infer.objectives.importance_bound import credits


@pytest.fixture(autouse=True)
def _clean():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def local(fn, seen):
    """A guide with two samples in a plate, which are put into a list."""
    with pyro.plate("data", 2):
        seen.append(pyro.sample("z", fn()))


def summed(prior):
    """A model with an observation of their sum, outside of the plate."""
    with pyro.plate("data", 2):
        z = pyro.sample("z", prior)
    pyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=torch.tensor(2.0))


def test_one_score_term_meets_what_lies_outside_of_the_logarithms():
    p, seen = torch.tensor([0.3, 0.6], requires_grad=True), []
    elbo = ImportanceWeighted_ELBO(max_plate_nesting=1)
    elbo.load_state_dict({"averages": {"bound": torch.tensor(0.0)}, "blendings": {}})
    model = functools.partial(summed, dist.Bernoulli(0.5))
    elbo.loss_and_grads(model, functools.partial(local, lambda: dist.Bernoulli(p), seen))
    (z,) = seen
    log_q = dist.Bernoulli(p).log_prob(z)
    outside = dist.Normal(z.sum(-1), 1.0).log_prob(torch.tensor(2.0))
    cost = (math.log(0.5) - log_q + outside).detach()
    (expected,) = torch.autograd.grad(((1 - cost) * log_q).sum(), p)
    torch.testing.assert_close(p.grad, expected)


def test_one_doubly_reparameterized_sample_moves_what_lies_outside():
    loc, seen = torch.tensor([0.3, 0.6], requires_grad=True), []
    elbo = ImportanceWeighted_ELBO(doubly_reparameterized=True, max_plate_nesting=1)
    model = functools.partial(summed, dist.Normal(0.0, 1.0))
    elbo.loss_and_grads(model, functools.partial(local, lambda: dist.Normal(loc, 1.0), seen))
    # the densities' slopes cancel but for the means
    torch.testing.assert_close(loc.grad, (loc - (2.0 - seen[0].sum())).detach())


@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize("kind", [ImportanceWeighted_ELBO, SIWAE_ELBO])
def test_all_particles_of_a_step_see_one_subsample(kind, vectorized):
    """Else the logarithm would be of means over particles of different data."""
    seen = []

    def run(fn, observe):
        with pyro.plate("data", 1000, subsample_size=2) as index:
            z = pyro.sample("z", fn)
            if observe:
                seen.append(index)
                pyro.sample("y", dist.Normal(z, 1.0), obs=index.float())

    q = MixtureSameFamily(
        dist.Categorical(logits=torch.zeros(2)), dist.Normal(torch.tensor([-1.0, 1.0]), 1.0)
    )
    elbo = kind(3, vectorize_particles=vectorized, max_plate_nesting=1)
    for _ in range(2):
        elbo.loss(lambda: run(dist.Normal(0.0, 1.0), True), lambda: run(q, False))
    first, second = seen[0], seen[-1]
    half = len(seen) // 2
    assert all(torch.equal(each, first) for each in seen[:half])
    assert all(torch.equal(each, second) for each in seen[half:])
    assert not torch.equal(first, second)


def test_a_loop_over_a_plate_has_one_logarithm():
    seen = []

    def guide():
        for i in pyro.plate("data", 3):
            seen.append(pyro.sample(f"z{i}", dist.Normal(0.0, 1.0)))

    def model():
        z = [pyro.sample(f"z{i}", dist.Normal(0.0, 1.0)) for i in pyro.plate("data", 3)]
        pyro.sample("y", dist.Normal(sum(z), 1.0), obs=torch.tensor(2.0))

    elbo = ImportanceWeighted_ELBO(5, vectorize_particles=True, max_plate_nesting=0)
    loss = elbo.loss(model, guide)
    density = dist.Normal(sum(seen), 1.0).log_prob(torch.tensor(2.0))
    assert -loss == pytest.approx((density.logsumexp(0) - math.log(5)).item(), rel=1e-5)


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("kind", [ImportanceWeighted_ELBO, BaselinedTrace_ELBO])
def test_a_model_without_latent_sites(kind, particles):
    def model():
        loc = pyro.param("loc", torch.tensor(0.5))
        with pyro.plate("data", 20, subsample_size=4):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=torch.arange(4.0))

    found = []
    for elbo in (kind(particles, max_plate_nesting=1), Trace_ELBO(max_plate_nesting=1)):
        pyro.clear_param_store()
        loss = elbo.loss_and_grads(model, lambda: None)
        found.append(torch.tensor([loss, pyro.param("loc").grad]))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("doubly", [True, False])
def test_particles_without_weight(doubly):
    """Some draws are impossible: neither the loss nor its gradient knows them."""
    loc = torch.tensor(0.3, requires_grad=True)

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("half", torch.where(z > 0, 0.0, -torch.inf))

    elbo = ImportanceWeighted_ELBO(
        10, doubly_reparameterized=doubly, vectorize_particles=True, max_plate_nesting=0
    )
    found = []
    for way in (elbo.loss_and_grads, lambda *x: elbo.differentiable_loss(*x)):
        pyro.set_rng_seed(0)
        loc.grad = None
        loss = way(model, lambda: pyro.sample("z", dist.Normal(loc, 1.0)))
        if isinstance(loss, torch.Tensor):
            loss.backward()
            loss = loss.item()
        found.append(torch.tensor([loss, loc.grad]))
    assert bool(found[0].isfinite().all())
    torch.testing.assert_close(*found)


def test_credits_of_single_precision():
    log_weights = torch.randn(10_000, 1) - 1000
    expected = credits(log_weights.double())
    torch.testing.assert_close(credits(log_weights).double(), expected, rtol=1e-6, atol=1e-9)
    alone = torch.tensor([[3.0], [-math.inf]])
    expected = torch.tensor([[3.0 - math.log(2)], [-math.log(2)]])
    torch.testing.assert_close(credits(alone), expected)


@pytest.mark.parametrize(
    "kind", [ImportanceWeighted_ELBO, BaselinedTrace_ELBO, SIWAE_ELBO, MarginalizedMixture_ELBO]
)
def test_sites_to_be_enumerated_are_warned_of(kind):
    q = MixtureSameFamily(
        dist.Categorical(logits=torch.zeros(2)), dist.Normal(torch.tensor([-1.0, 1.0]), 1.0)
    )

    def run(fn, infer):
        pyro.sample("z", fn)
        pyro.sample("a", dist.Bernoulli(0.5), infer=infer)

    elbo = kind(max_plate_nesting=0)
    with pytest.warns(UserWarning, match="TraceEnum_ELBO"):
        elbo.loss(
            lambda: run(dist.Normal(0.0, 1.0), {}), lambda: run(q, {"enumerate": "parallel"})
        )


def spike_and_slab(logits):
    parts = [dist.Delta(torch.tensor(0.0)), dist.Normal(0.0, 1.0)]
    return Mixture(dist.Categorical(logits=logits), parts, weight_gradient="hybrid")


@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize("kind", [BaselinedTrace_ELBO, ImportanceWeighted_ELBO])
def test_particles_on_one_atom(kind, vectorized):
    """Their credits are zero, and the score term is a part of the loss all the same."""
    logits = torch.tensor([0.5, -0.5], requires_grad=True)

    def model():
        z = pyro.sample("z", spike_and_slab(torch.zeros(2)))
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(1.5))

    elbo = kind(2, vectorize_particles=vectorized, max_plate_nesting=0)
    found = []
    for _ in range(150):
        logits.grad = None
        elbo.loss_and_grads(model, lambda: pyro.sample("z", spike_and_slab(logits)))
        found.append(-logits.grad[1])
    rows = torch.stack(found)

    # by the choices of two particles, and a grid of the normal's quantiles
    points = 400
    z = dist.Normal(0.0, 1.0).icdf((torch.arange(points) + 0.5) / points)
    gain = [dist.Normal(x, 1.0).log_prob(torch.tensor(1.5)) for x in (torch.zeros(1), z)]
    leaf = logits.detach().requires_grad_()
    weights = [g + math.log(0.5) - leaf.log_softmax(-1)[i] for i, g in enumerate(gain)]
    bound = torch.zeros(())
    for i, first in enumerate(weights):
        for j, second in enumerate(weights):
            pair = torch.stack(torch.broadcast_tensors(first.unsqueeze(-1), second))
            if kind is ImportanceWeighted_ELBO:
                value = pair.logsumexp(0) - math.log(2)
            else:
                value = pair.mean(0)
            probability = leaf.softmax(-1)[i] * leaf.softmax(-1)[j]
            bound = bound + probability * value.mean()
    exact = torch.autograd.grad(bound, leaf)[0][1]
    assert (rows.mean() - exact).abs() < 4.5 * rows.std() / len(rows) ** 0.5


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("depends", [True, False])
def test_doubly_reparameterized_masks(depends, inside):
    """They leave out what nothing depends on: else the density's score were missed."""
    loc, mask = torch.zeros(3, 1, requires_grad=True), torch.tensor([True, True, False])

    def latent(place):
        fn = dist.Normal(place, 1.0).to_event(1)
        if inside:
            return pyro.sample("z", fn.mask(mask))
        with poutine.mask(mask=mask):
            return pyro.sample("z", fn)

    def model():
        with pyro.plate("data", 3):
            z = latent(torch.ones(3, 1))
            with poutine.mask(mask=mask | torch.tensor(depends)):
                pyro.sample("y", dist.Normal(z.squeeze(-1), 1.0), obs=torch.arange(3.0))

    def guide():
        with pyro.plate("data", 3):
            latent(loc)

    elbo = ImportanceWeighted_ELBO(3, doubly_reparameterized=True, max_plate_nesting=1)
    if depends:
        with pytest.raises(NotImplementedError, match="mask leaves out at site 'z'"):
            elbo.loss_and_grads(model, guide)
    else:
        elbo.loss_and_grads(model, guide)
        assert (loc.grad != 0).squeeze(-1).tolist() == [True, True, False]


@pytest.mark.parametrize("vectorized", [True, False])
def test_a_particle_none_of_whose_components_has_weight(vectorized):
    """It is one of zero weight among others, whose gradients do not know it."""
    locs = torch.tensor([-1.0, 1.0], requires_grad=True)
    logits, seen = torch.zeros(2, requires_grad=True), []

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        seen.append(z)
        pyro.factor("tail", torch.where(z > 1.5, 0.0, -torch.inf))

    def guide():
        pyro.sample(
            "z", MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(locs, 1.0))
        )

    elbo = SIWAE_ELBO(8, vectorize_particles=vectorized, max_plate_nesting=0)
    loss = elbo.loss_and_grads(model, guide)
    z = torch.stack([x.flatten() for x in seen[-8:]]) if not vectorized else seen[-1].T  # (T, K)
    assert (z < 1.5).all(-1).any()
    assert not (z < 1.5).all()
    leaves = [x.detach().requires_grad_() for x in (locs, logits)]
    moved = z.detach() + (leaves[0] - leaves[0].detach())
    q = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=leaves[1]),
        torch.distributions.Normal(leaves[0], 1.0),
    )
    weights = (
        leaves[1].softmax(-1) * (dist.Normal(0.0, 1.0).log_prob(moved) - q.log_prob(moved)).exp()
    )
    bound = (weights * (z > 1.5)).sum().log() - math.log(8)
    bound.backward()
    assert loss == pytest.approx(-bound.item(), rel=1e-5)
    for leaf, exact in zip((locs, logits), leaves, strict=True):
        torch.testing.assert_close(leaf.grad, -exact.grad, rtol=1e-4, atol=1e-5)


def test_sites_that_only_some_particles_have():
    runs = []

    def model():
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Normal(0.0, 1.0))
        runs.append(None)
        if len(runs) % 2:
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(2.0))

    elbo = ImportanceWeighted_ELBO(2, max_plate_nesting=1)
    guide = functools.partial(local, lambda: dist.Normal(0.0, 1.0), [])
    with pytest.raises(NotImplementedError, match=r"the same sites outside.*'data'.*\['y'\]"):
        elbo.loss(model, guide)
