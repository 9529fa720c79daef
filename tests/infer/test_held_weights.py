"""Weights that stay as they are while the components move."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from pyro_mixtures.distributions import MixtureOfDiagNormals
from pyro_mixtures.infer import AutoDiagonalNormalMixture, MarginalizedMixture_ELBO
from tests.infer.mixture_guides import MIXTURES
from tests.infer.own_objectives import OBJECTIVES


@pytest.fixture(autouse=True)
def _clean_store():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def model():
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(x.prod(-1), 0.5), obs=torch.tensor(2.0))


@pytest.mark.parametrize("objective", [Trace_ELBO, *OBJECTIVES])
def test_steps_move_components_alone(objective):
    """Held before the first call, let go, and held again, when momentum goes nowhere."""
    guide = AutoDiagonalNormalMixture(model, 3, init_scale=0.5)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), objective(2))
    logits = torch.zeros(3)
    for held in (True, False, True):
        guide.hold_weights(held)
        for _ in range(3):
            locs = guide.locs.detach().clone() if "locs" in dict(guide.named_parameters()) else 0
            svi.step()
            assert not torch.equal(guide.locs, torch.as_tensor(locs))
        assert torch.equal(guide.component_logits, logits) == held
        logits = guide.component_logits.detach().clone()


@pytest.mark.parametrize("guide_class", MIXTURES)
def test_gradients_of_the_others_are_the_same(guide_class):
    """Of a weighted sum over components, which is the same whether the weights learn or not."""
    gradients = []
    for held in (False, True):
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        guide = guide_class(model, 3, init_scale=0.5)
        guide.hold_weights(held)
        MarginalizedMixture_ELBO(max_plate_nesting=0).loss_and_grads(model, guide)
        gradients.append({name: value.grad for name, value in guide.named_parameters()})
    free, held = gradients
    assert held["component_logits"] is None
    assert free["component_logits"] is not None
    for name, value in held.items():
        if name not in ("component_logits", "control_var"):
            torch.testing.assert_close(value, free[name])


def test_a_new_posterior_is_held_too():
    guide = AutoDiagonalNormalMixture(model, 3)
    guide.hold_weights()
    guide()
    guide.set_posterior(MixtureOfDiagNormals(torch.randn(4, 2), torch.ones(4, 2), torch.zeros(4)))
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    svi.step()
    assert not guide.component_logits.requires_grad
    guide.refit_weights()
    before = guide.component_logits.detach().clone()
    svi.step()
    assert torch.equal(guide.component_logits, before)
