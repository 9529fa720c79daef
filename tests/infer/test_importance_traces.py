"""What is checked of the traces of a step: once for each structure, and again for another."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_mixtures.infer import BaselinedTrace_ELBO, MarginalizedMixture_ELBO
from pyro_mixtures.infer.objectives import importance_traces
from tests.strata import diag_normals, parameters_of_two

DATA = torch.tensor([1.0, 2.0, 3.0])


def model(fault=None):
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    if fault == "latent site":
        pyro.sample("more", dist.Normal(0.0, 1.0))
    mean = z.sum(-1)
    with pyro.plate("data", 3, dim=-2 if fault == "plate" else -1):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=DATA[:2] if fault == "data" else DATA)


def guide(fault=None):
    fn = diag_normals(parameters_of_two())
    if fault == "event":
        fn = dist.Normal(torch.zeros(2), 1.0)
    pyro.sample("z", fn)
    if fault == "auxiliary":
        pyro.sample("more", dist.Normal(0.0, 1.0))
    if fault == "observed":
        pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    if fault == "factor":
        pyro.factor("more", torch.tensor(0.0))


FAULTS = ("latent site", "data", "plate", "event", "auxiliary", "observed", "factor")
each_objective = pytest.mark.parametrize(
    "objective", [BaselinedTrace_ELBO, MarginalizedMixture_ELBO]
)


@each_objective
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_later_step_is_found(objective, fault):
    torch.manual_seed(0)
    elbo = objective(max_plate_nesting=1)
    for _ in range(2):
        assert elbo.loss(model, guide) != 0
    for _ in range(2):  # nor does it count as known once it was seen
        with pytest.raises((ValueError, NotImplementedError, UserWarning)):
            elbo.loss(model, guide, fault)
    assert elbo.loss(model, guide) != 0


def test_a_mask_of_a_site_that_the_guide_lacks_is_looked_at_in_each_step():
    torch.manual_seed(0)
    elbo = BaselinedTrace_ELBO(max_plate_nesting=1)

    def with_mask(mask):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("more", dist.Normal(0.0, 1.0).mask(torch.tensor(mask)))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=DATA[0])

    def without(mask):
        guide()

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found vars in model but not guide")
        for _ in range(2):
            elbo.loss(with_mask, without, False)
        with pytest.raises(ValueError, match="more"):
            elbo.loss(with_mask, without, True)


@each_objective
def test_steps_that_look_alike_are_checked_once(objective, monkeypatch):
    torch.manual_seed(0)
    checked, check = [], importance_traces.check_site_shape

    def counted(site, max_plate_nesting):
        checked.append(site["name"])
        check(site, max_plate_nesting)

    monkeypatch.setattr(importance_traces, "check_site_shape", counted)
    elbo = objective(max_plate_nesting=1)
    for _ in range(3):
        elbo.loss(model, guide)
    assert sorted(checked) == ["x", "z", "z"]
    elbo.max_plate_nesting = 2
    elbo.loss(model, guide)
    assert len(checked) == 6


@pytest.mark.parametrize("log_density", [torch.nan, torch.inf, -torch.inf])
def test_warnings_of_what_is_not_finite_are_those_of_pyro(log_density):
    def unlikely():
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.factor("f", z.sum() + log_density)

    def warned(elbo):
        torch.manual_seed(0)
        with warnings.catch_warnings(record=True) as found, pyro.validation_enabled(False):
            warnings.simplefilter("always")
            pyro.poutine.util.enable_validation(True)  # no errors, but warnings
            elbo.loss(unlikely, guide)
        return [str(each.message) for each in found if "log_prob_sum" in str(each.message)]

    expected = warned(Trace_ELBO())
    assert warned(BaselinedTrace_ELBO()) == expected
    assert bool(expected) == (log_density != -torch.inf)
