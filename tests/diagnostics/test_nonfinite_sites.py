"""The site, and what of it, that a NaN comes from; what a mask hides is not to blame."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO

from pyro_mixtures import (
    SIWAE_ELBO,
    BaselinedTrace_ELBO,
    MarginalizedMixture_ELBO,
    MixtureOfDiagNormals,
)
from pyro_mixtures.diagnostics import nonfinite_gradient, nonfinite_site

X = torch.tensor([0.5, 2.0, -1.0, 3.0])
BAD = torch.where(X > 1, math.nan, 0.0)  # two of four


def model(x, likelihood=None):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0) if likelihood is None else likelihood(z), obs=x)


def guide(x, q=None):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0) if q is None else q)


def unchecked(family, *args, **kwargs):
    return family(*args, **kwargs, validate_args=False)


OBJECTIVES = [
    Trace_ELBO,
    TraceMeanField_ELBO,
    RenyiELBO,
    BaselinedTrace_ELBO,
    SIWAE_ELBO,
    MarginalizedMixture_ELBO,
]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_parameter_is_named_whatever_the_objective(objective):
    locs = torch.tensor([[0.0], [math.nan]])

    def mixture_guide():
        pyro.sample("x", unchecked(MixtureOfDiagNormals, locs, torch.ones(2, 1), torch.zeros(2)))

    def normal():
        pyro.sample("x", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    found = nonfinite_site(objective(), normal, mixture_guide)
    assert found == "site x of the guide has a locs that is nan in 1 of 2 elements"


@pytest.mark.parametrize(
    ("likelihood", "told"),
    [
        (lambda z: unchecked(dist.Normal, z + BAD, 1.0), "loc that is nan in 2 of 4"),
        (lambda z: unchecked(dist.Normal, z, 1.0 + BAD), "scale that is nan in 2 of 4"),
        (lambda z: unchecked(dist.Normal, z, 0.0), "log density that is nan in 4 of 4"),
        (lambda z: unchecked(dist.Delta, z), "log density that is infinite in 4 of 4"),
    ],
)
def test_what_is_wrong_with_the_data(likelihood, told):
    pyro.set_rng_seed(0)

    def both(x):
        model(x, likelihood)

    found = nonfinite_site(Trace_ELBO(), both, guide, X)
    assert found == f"site x of the model has a {told} elements"


def test_a_value_of_the_guide_and_a_sampler_that_refuses():
    infinite = unchecked(dist.Normal, torch.zeros(4), torch.tensor([1.0, math.inf, 1.0, 1.0]))
    found = nonfinite_site(Trace_ELBO(), model, lambda x: guide(x, infinite), X)
    assert found == "site z of the guide has a value that is infinite in 1 of 4 elements"

    def categorical(x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", unchecked(dist.Categorical, logits=BAD.unsqueeze(-1).expand(4, 3)))

    found = nonfinite_site(Trace_ELBO(), categorical, categorical, X)
    assert found == "site k of the guide has a logits that is nan in 6 of 12 elements"


def test_keyword_arguments_and_what_is_finite():
    def scaled(x, scale):
        model(x, lambda z: unchecked(dist.Normal, z, scale))

    def scaled_guide(x, scale):
        guide(x)

    found = nonfinite_site(Trace_ELBO(), scaled, scaled_guide, X, scale=math.nan * X)
    assert found == "site x of the model has a scale that is nan in 4 of 4 elements"
    assert nonfinite_site(Trace_ELBO(), scaled, scaled_guide, X, scale=1.0) is None


def masked_model(hidden, by):
    """A NaN in two of the padded steps; ``hidden`` tells whether they are masked."""
    mask = (X < 1) if hidden else (X > 1)

    def padded(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            law = unchecked(dist.Normal, BAD.unsqueeze(-1), 1.0).to_event(1)
            if by == "distribution":
                pyro.sample("padded", law.mask(mask))
            else:
                with poutine.mask(mask=mask):
                    pyro.sample("padded", law)

    return padded


def padded_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("padded", dist.Normal(torch.zeros(4, 1), 1.0).to_event(1))


@pytest.mark.parametrize("by", ["context", "distribution"])
def test_what_a_mask_hides_is_not_to_blame(by):
    hidden, seen = (masked_model(hidden, by) for hidden in (True, False))
    assert math.isfinite(Trace_ELBO().loss(hidden, padded_guide, X))
    assert nonfinite_site(Trace_ELBO(), hidden, padded_guide, X) is None
    found = nonfinite_site(Trace_ELBO(), seen, padded_guide, X)
    assert found == "site padded of the model has a loc that is nan in 2 of 4 elements"


def test_traces_that_fail_for_another_reason():
    def fails(x):
        raise RuntimeError

    assert nonfinite_site(Trace_ELBO(), fails, guide, X) is None


def test_the_gradient_of_a_parameter():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    assert nonfinite_gradient(net) is None  # has none yet
    net(torch.ones(2)).sum().backward()
    assert nonfinite_gradient(net) is None
    net[1].bias.grad.fill_(-math.inf)
    assert nonfinite_gradient(net) == "the gradient of 1.bias is infinite in 1 of 1 elements"


def test_bad_arguments():
    with pytest.raises(ValueError, match="Expected elbo to be an objective.* but got function"):
        nonfinite_site(model, model, guide, X)
    with pytest.raises(ValueError, match=r"Expected a torch.nn.Module, but got function"):
        nonfinite_gradient(guide)
