"""Objectives with a dimension of components, for events and plates of all kinds."""

import contextlib
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_mixtures.estimators.strata import component_samples
from pyro_mixtures.infer import (
    SIWAE_ELBO,
    AutoDiagonalNormalMixture,
    MarginalizedMixture_ELBO,
)
from tests.infer.mixture_guides import MIXTURES
from tests.pairwise import in_pairs
from tests.strata import diag_normals, gradient_of, gradients, parameters_of_two

EVENT = (2, 3, 2)
SIZES = (3, 4, 2)  # of the plates, from the right
PARTICLES = [(1, False), (1, True), (3, False), (3, True)]
each_objective = pytest.mark.parametrize("objective", [MarginalizedMixture_ELBO, SIWAE_ELBO])


@pytest.fixture(autouse=True)
def _double_precision():
    pyro.clear_param_store()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def observations(plates):
    sizes = SIZES[:plates][::-1]
    return torch.linspace(-1.0, 2.0, math.prod(sizes)).reshape(sizes)


def nested_model(event_dim, plates):
    """A latent event outside of plates, one in the second if there is one, and data in all."""
    event = EVENT[:event_dim]

    def latent(name):
        value = pyro.sample(name, dist.Normal(0.3, 1.5).expand(event).to_event(event_dim))
        return value.flatten(value.dim() - event_dim).sum(-1) if event_dim else value

    def model():
        stack = [pyro.plate(f"plate_{i}", SIZES[i], dim=-1 - i) for i in range(plates)]
        total = latent("w")
        if plates > 1:
            with stack[1]:
                total = total + latent("v")
        with contextlib.ExitStack() as entered:
            for plate in stack:
                entered.enter_context(plate)
            pyro.sample("y", dist.Normal(total, 1.0), obs=observations(plates))

    return model


def nested_log_joint(latent, event_dim, plates):
    """Without any plate, of the packed latent ``(*X, D) -> (*X,)``."""
    size = math.prod(EVENT[:event_dim])
    prior = dist.Normal(0.3, 1.5).log_prob(latent).sum(-1)
    total = latent[..., :size].sum(-1)[..., None, None, None]
    if plates > 1:
        v = latent[..., size:].unflatten(-1, (SIZES[1], size)).sum(-1)  # (*X, SIZES[1])
        total = total + v[..., None, :, None]
    observed = dist.Normal(total, 1.0).log_prob(observations(plates)[(None,) * (3 - plates)])
    return prior + observed.sum((-3, -2, -1))


@in_pairs
@each_objective
@pytest.mark.parametrize("plates", [0, 1, 2, 3])
@pytest.mark.parametrize("event_dim", [0, 1, 2, 3])
def test_events_and_plates(objective, event_dim, plates):
    """Loss and gradients of each draw are those of the formula, which knows no plates."""
    model = nested_model(event_dim, plates)
    pyro.set_rng_seed(0)
    guide = AutoDiagonalNormalMixture(model, 2, init_scale=0.5)
    guide()
    parameters = dict(guide.named_parameters())
    for count, vectorized in PARTICLES:
        if objective is SIWAE_ELBO and not vectorized:
            continue
        elbo = objective(count, vectorize_particles=vectorized, max_plate_nesting=plates)
        for value in parameters.values():
            value.grad = None
        pyro.set_rng_seed(1)
        loss = elbo.loss_and_grads(model, guide)
        found = gradients(parameters)
        pyro.set_rng_seed(1)
        q = guide.get_posterior()
        if vectorized:
            z = component_samples(q, (count,))  # (T, K, D)
        else:
            z = torch.stack([component_samples(q) for _ in range(count)])
        ratio = nested_log_joint(z, event_dim, plates) - q.log_prob(z)
        if objective is SIWAE_ELBO:
            expected = math.log(count) - (ratio + q.log_weights).logsumexp((0, 1))
        else:
            expected = -(q.log_weights.exp() * ratio).sum(-1).mean()
        assert loss == pytest.approx(expected.item(), rel=1e-10)
        assert torch.allclose(found, gradient_of(expected, parameters), rtol=1e-8, atol=1e-10)


@each_objective
@pytest.mark.parametrize("guide_class", MIXTURES)
def test_constrained_matrix(objective, guide_class):
    """Of other dimensions than the unconstrained vector that it comes from."""
    scores = torch.tensor([[0.5, 0.1, -0.2], [1.0, 0.8, 0.3]])

    def correlated():
        factor = pyro.sample("factor", dist.LKJCholesky(3, torch.tensor(2.0)))
        with pyro.plate("data", 2):
            observed = dist.MultivariateNormal(torch.zeros(3), scale_tril=factor)
            pyro.sample("y", observed, obs=scores)

    def joint():
        factor = pyro.sample("factor", dist.LKJCholesky(3, torch.tensor(2.0)))
        observed = dist.MultivariateNormal(torch.zeros(3), scale_tril=factor.unsqueeze(-3))
        pyro.sample("y", observed.expand([*factor.shape[:-2], 2]).to_event(1), obs=scores)

    pyro.set_rng_seed(0)
    guide = guide_class(correlated, 2)
    guide()
    results = []
    for model in (joint, correlated):
        guide.zero_grad()
        pyro.set_rng_seed(1)
        elbo = objective(max_plate_nesting=0 if model is joint else 1)
        loss = elbo.loss_and_grads(model, guide)
        results.append((loss, gradients(dict(guide.named_parameters()))))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    assert torch.allclose(results[0][1], results[1][1])
    assert results[0][1].isfinite().all()


@each_objective
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dist.Normal(torch.zeros(3, 2), 1.0).to_event(2), r"event shape \(2, 3\) .*'w'.*\(3, 2\)"),
        (dist.Normal(torch.zeros(2, 3), 1.0).to_event(1), r"event shape \(2, 3\) .*'w'.*\(3,\)"),
        (dist.Normal(torch.zeros(5, 2, 3), 1.0).to_event(2), r"shape \(\).*'w'.*\(5,\)"),
        (dist.Normal(torch.zeros(1, 4, 2, 3), 1.0).to_event(2), r"shape \(\).*'w'.*\(1, 4\)"),
    ],
)
def test_other_shapes_in_the_guide_are_refused(objective, given, message):
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("w", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))

    def guide():
        pyro.sample("z", diag_normals(parameters_of_two()))
        pyro.sample("w", given)

    with pytest.raises(ValueError, match=message):
        objective(max_plate_nesting=1).loss(model, guide)


@each_objective
def test_plate_left_out_of_the_guide_is_refused(objective):
    def program(latent, plate):
        def run():
            latent()
            with plate():
                pyro.sample("w", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))

        return run

    def prior():
        pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))

    def mixture():
        pyro.sample("z", diag_normals(parameters_of_two()))

    def plate():
        return pyro.plate("data", 3)

    elbo = objective(max_plate_nesting=1)
    model = program(prior, plate)
    assert math.isfinite(elbo.loss(model, program(mixture, plate)))
    with pytest.raises(ValueError, match=r"shape \(3,\) of the model at site 'w'.*\(\)"):
        elbo.loss(model, program(mixture, contextlib.nullcontext))
