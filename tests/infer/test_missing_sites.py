"""Guides that lack a latent site of the model, or have one too many."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_mixtures.infer import (
    SIWAE_ELBO,
    AutoDiagonalNormalMixture,
    MarginalizedMixture_ELBO,
)
from pyro_mixtures.infer.objectives.missing_sites import check_complete
from tests.strata import diag_normals, parameters_of_two

DATA = torch.tensor([1.0, 2.0, 3.0])
each_objective = pytest.mark.parametrize("objective", [MarginalizedMixture_ELBO, SIWAE_ELBO])


@pytest.fixture(autouse=True)
def _clear():
    pyro.clear_param_store()


def program(*more):
    """A latent vector, and what ``more`` samples after it."""

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        for site in more:
            site()
        pyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=torch.tensor(0.5))

    return model


def guide_of(*more):
    def guide():
        pyro.sample("z", diag_normals(parameters_of_two()))
        for site in more:
            site()

    return guide


def coin():
    return pyro.sample("coin", dist.Bernoulli(0.3))


def enumerated():
    return pyro.sample("coin", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})


def number():
    return pyro.sample("number", dist.Normal(0.0, 2.0))


def in_plate():
    with pyro.plate("data", 3, subsample_size=2):
        return pyro.sample("number", dist.Normal(0.0, 2.0))


def observed():
    return pyro.sample("number", dist.Normal(0.0, 2.0), obs=torch.tensor(1.0))


def partly_observed():
    mask = torch.tensor([True, False, True])
    with pyro.plate("data", 3):
        return pyro.sample("x", dist.Normal(0.0, 1.0), obs=DATA, obs_mask=mask)


@each_objective
@pytest.mark.parametrize(
    ("more", "name"),
    [
        (coin, "coin"),
        (enumerated, "coin"),
        (number, "number"),
        (in_plate, "number"),
        (partly_observed, "x_unobserved"),
    ],
)
def test_latent_site_left_out_of_the_guide_is_refused(objective, more, name):
    with pytest.raises(ValueError, match=rf"\['{name}'\].*sites \['z'\].*TraceEnum_ELBO"):
        objective(max_plate_nesting=1).loss(program(more), guide_of())


@each_objective
def test_all_sites_are_named(objective):
    with pytest.raises(ValueError, match=r"\['coin', 'number'\]"):
        objective().loss(program(number, coin), guide_of())


@each_objective
def test_site_blocked_from_an_automatic_guide_is_refused(objective):
    model = program(coin)
    guide = AutoDiagonalNormalMixture(poutine.block(model, hide=["coin"]), 2)
    with pytest.raises(ValueError, match=r"\['coin'\]"):
        objective().loss_and_grads(model, guide)


@each_objective
def test_site_that_the_model_observes_is_refused(objective):
    conditioned = poutine.condition(program(number), {"number": torch.tensor(1.0)})
    for model in (program(observed), conditioned):
        with pytest.raises(ValueError, match=r"\['number'\], which the model observes"):
            objective().loss(model, guide_of(number))


@each_objective
def test_unvalidated_runs_are_checked_too(objective):
    with pyro.validation_enabled(False), pytest.raises(ValueError, match="number"):
        objective().loss(program(number), guide_of())


@each_objective
def test_complete_guides_pass(objective):
    def auxiliary():
        return pyro.sample("other", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})

    def subsampled():
        with pyro.plate("data", 3, subsample=torch.tensor([0, 2])) as index:
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=DATA[index])
        pyro.deterministic("mean", DATA.mean())
        pyro.factor("f", torch.tensor(0.1))

    cases = [
        (program(), guide_of()),
        (program(number), guide_of(number)),
        (program(in_plate), guide_of(in_plate)),
        (program(), guide_of(auxiliary)),
        (program(observed), guide_of()),
    ]
    for model, guide in cases:
        assert math.isfinite(objective(max_plate_nesting=1).loss(model, guide))
    guide_trace = poutine.trace(guide_of()).get_trace()
    replayed = poutine.replay(program(subsampled), trace=guide_trace)
    check_complete(poutine.trace(replayed).get_trace(), guide_trace)


@pytest.mark.parametrize("mask", [False, torch.tensor([False, False, False])], ids=["off", "each"])
@pytest.mark.parametrize("by_poutine", [False, True])
def test_site_masked_throughout_may_be_missing(mask, by_poutine):
    def masked(mask=mask):
        with pyro.plate("data", 3):
            fn = dist.Normal(0.0, 2.0).expand([3])
            if by_poutine:
                with poutine.mask(mask=mask):
                    return pyro.sample("number", fn)
            return pyro.sample("number", fn.mask(mask))

    def traces(model):
        guide_trace = poutine.trace(guide_of()).get_trace()
        return poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(), guide_trace

    check_complete(*traces(program(masked)))
    with pytest.raises(ValueError, match="number"):
        check_complete(*traces(program(lambda: masked(torch.tensor([False, True, False])))))


@each_objective
def test_site_that_the_model_lacks_is_warned_of(objective):
    """By Pyro; to mark it, as that advises, says that it is meant and changes nothing."""

    def loss(**infer):
        def extra():
            return pyro.sample("extra", dist.Normal(0.0, 3.0), infer=infer)

        pyro.set_rng_seed(0)
        return objective(max_plate_nesting=0).loss(program(), guide_of(extra))

    with pytest.warns(UserWarning, match=r"non-auxiliary vars in guide.*\s.*extra"):
        unmarked = loss()
    assert unmarked == loss(is_auxiliary=True)
