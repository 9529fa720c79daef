"""Guides refuse parameters of another fit that do not fit, and latent sites in subsamples."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoContinuous, AutoGuideList, AutoNormal

from pyro_mixtures.distributions import MixtureOfDiagNormals
from pyro_mixtures.infer import (
    AutoAVFMultivariateNormal,
    AutoAVFMultivariateStudentT,
    AutoDiagonalNormalMixture,
    AutoOMTMultivariateNormal,
    BaselinedTrace_ELBO,
)
from pyro_mixtures.infer.guides.checked_guide import CheckedGuide
from tests.infer.mixture_guides import MIXTURES

AVF = (AutoAVFMultivariateNormal, AutoAVFMultivariateStudentT)
SIZED = [
    *(partial(guide, num_components=count) for guide in MIXTURES for count in (1, 2)),
    *(partial(guide, num_rotations=2) for guide in AVF),
]
"""By a number in their shapes, which is 1 or 2 here."""

ALL = [*SIZED, AutoOMTMultivariateNormal]


@pytest.fixture(autouse=True)
def _clean_store():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def model_of(size):
    def model():
        pyro.sample("x", dist.Normal(torch.zeros(size), 1.0).to_event(1))

    return model


def step(guide):
    return SVI(guide.model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step()


def resized(guide_class):
    (name,) = guide_class.keywords
    return partial(guide_class.func, **{name: 3})


@pytest.mark.parametrize("guide_class", SIZED)
def test_another_number_of_components(guide_class):
    first, second = guide_class(model_of(2)), resized(guide_class)(model_of(2))
    step(first)
    message = rf"{type(first).__name__}\.\w+' .* shape \(.*3.*clear_param_store\(\)"
    for _ in range(2):  # not by chance the first time only
        with pytest.raises(ValueError, match=message):
            step(second)
    step(first)
    pyro.clear_param_store()
    step(second)
    assert any(3 in parameter.shape for parameter in second.parameters())


@pytest.mark.parametrize("guide_class", ALL)
def test_another_latent_dimension(guide_class):
    step(guide_class(model_of(2)))
    with pytest.raises(ValueError, match=r"to have the shape \(.*4.*, but got \(.*2"):
        step(guide_class(model_of(4)))


@pytest.mark.parametrize("guide_class", SIZED)
def test_a_guide_that_has_lost_its_place(guide_class):
    """Components that broadcast, or of which only some come from the store, would not tell."""
    first, second = guide_class(model_of(2)), resized(guide_class)(model_of(2))
    step(first)
    pyro.clear_param_store()
    step(second)
    with pytest.raises(ValueError, match=r"but got \(.*3"):
        step(first)


@pytest.mark.parametrize("guide_class", SIZED)
def test_what_fits_is_taken_over(guide_class):
    first, second = guide_class(model_of(2)), guide_class(model_of(2))
    step(first)
    second()
    for mine, other in zip(first.parameters(), second.parameters(), strict=True):
        assert mine is other


@pytest.mark.parametrize("guide_class", SIZED)
def test_fits_that_are_kept_apart(guide_class):
    for other in (guide_class(model_of(2)), resized(guide_class)(model_of(3))):
        with pyro.get_param_store().scope():
            assert step(other) < float("inf")
    with pyro.settings.context(module_local_params=True):
        for other in (guide_class(model_of(2)), resized(guide_class)(model_of(3))):
            Trace_ELBO()(other.model, other)().backward()
            assert all(parameter.grad is not None for parameter in other.parameters())


DATA = torch.linspace(-2, 2, 6)


def local_model(**subsample):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("groups", 2), pyro.plate("data", 6, **subsample) as index:
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=DATA[index].unsqueeze(-1))


@pytest.mark.parametrize("subsample", [{"subsample_size": 3}, {"subsample": torch.arange(3)}])
@pytest.mark.parametrize("guide_class", ALL)
def test_a_latent_site_in_a_subsample(guide_class, subsample):
    guide = guide_class(local_model)
    for _ in range(2):
        with pytest.raises(NotImplementedError, match="'z'.* 'data' with 3 of 6"):
            guide(**subsample)
    assert not dict(guide.named_parameters())
    assert guide()["z"].shape == (6, 2)


@pytest.mark.parametrize("subsample", [{}, {"subsample_size": 6}])
@pytest.mark.parametrize("guide_class", ALL)
def test_a_latent_site_in_a_whole_plate(guide_class, subsample):
    assert guide_class(local_model)(**subsample)["z"].shape == (6, 2)


@pytest.mark.parametrize("guide_class", ALL)
def test_a_subsample_of_observations(guide_class):
    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 6, subsample_size=3) as index:
            pyro.sample("y", dist.Normal(loc, 1.0), obs=DATA[index])

    assert step(guide_class(model)) < float("inf")


def test_a_mixture_for_each_datum_as_the_error_says():
    """Its ELBO is the evidence of two modes each, but for what Normals miss of them."""
    y = torch.tensor([0.5, 1.0, 2.0, 3.0])

    def model(index):
        with pyro.plate("data", 4, subsample=index):
            z = pyro.sample("z", dist.Normal(torch.tensor([1.0]), 2.0).to_event(1))
            pyro.sample("y", dist.Normal(z.squeeze(-1).abs(), 0.3), obs=y[index])

    def guide(index):
        with pyro.plate("data", 4, subsample=index):
            start = torch.tensor([[-1.0], [1.0]]).repeat(4, 1, 1)
            locs = pyro.param("locs", start, event_dim=2)
            logits = pyro.param("logits", torch.zeros(4, 2), event_dim=1)
            positive = dist.constraints.positive
            scale = pyro.param("scale", torch.full_like(start, 0.3), positive, event_dim=2)
            pyro.sample("z", MixtureOfDiagNormals(locs, scale, logits))

    with pytest.raises(NotImplementedError, match="nn.ConditionalMixture, or a pyro.param"):
        AutoDiagonalNormalMixture(model, 2)(torch.tensor([0, 1]))
    elbo = BaselinedTrace_ELBO(num_particles=64, vectorize_particles=True)
    optimizer = pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.99})
    svi = SVI(model, guide, optimizer, elbo)
    for _ in range(300):
        svi.step(torch.randperm(4)[:2])
    grid = torch.linspace(-8, 8, 4001)
    joint = dist.Normal(1.0, 2.0).log_prob(grid) + dist.Normal(grid.abs(), 0.3).log_prob(
        y[:, None]
    )
    evidence = joint.logsumexp(-1) + math.log(16 / 4000)
    many = Trace_ELBO(num_particles=4000, vectorize_particles=True)
    gap = evidence.sum().item() + many.loss(model, guide, torch.arange(4))
    assert -0.01 < gap < 0.1
    negative = (joint.masked_fill(grid > 0, -math.inf).logsumexp(-1) - joint.logsumexp(-1)).exp()
    weights = pyro.param("logits").softmax(-1)[:, 0]
    torch.testing.assert_close(weights, negative, atol=0.06, rtol=0)


def test_the_local_site_left_to_another_guide():
    """As the error says."""

    def model():
        local_model(subsample_size=3)

    def create_plates():
        return pyro.plate("data", 6, subsample_size=3)

    guide = AutoGuideList(model, create_plates=create_plates)
    guide.append(AutoDiagonalNormalMixture(poutine.block(model, hide=["z"]), 2))
    guide.append(AutoNormal(poutine.block(model, expose=["z"])))
    assert step(guide) < float("inf")
    assert guide.median()["z"].shape == (6, 2)


def several_sites():
    pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    pyro.sample("whole", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("data", 4, dim=-1):
        pyro.sample("x", dist.Uniform(0.0, torch.ones(4)))


@pytest.mark.parametrize("guide_class", ALL)
@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("particles", [1, 3])
def test_forward_is_that_of_pyro(guide_class, mask, particles):
    """Values and densities, alone and for particles in a plate, masked throughout or not."""

    guide = guide_class(several_sites)
    guide()

    def run(forward):
        program = poutine.mask(partial(forward, guide), mask=mask)
        if particles > 1:
            program = pyro.plate("particles", particles, dim=-2)(program)
        with guide._pyro_context:
            pyro.set_rng_seed(1)
            trace = poutine.trace(program).get_trace()
        trace.compute_log_prob()
        return {name: trace.nodes[name] for name in trace.stochastic_nodes}

    ours, expected = run(CheckedGuide.forward), run(AutoContinuous.forward)
    assert {"scale", "whole", "x"} < ours.keys() == expected.keys()
    for name, site in expected.items():
        for what in ("value", "log_prob"):
            assert torch.equal(ours[name][what], site[what])


def test_sites_in_a_vector_are_those_of_pyro():
    guide = AutoDiagonalNormalMixture(several_sites, 2)
    guide()
    z = torch.randn(guide.latent_dim, requires_grad=True)
    for vectors in (z, z.repeat(5, 1, 1)):
        expected = list(AutoContinuous._unpack_latent(guide, vectors))
        found = list(guide._unpack_latent(vectors))
        assert [site["name"] for site, _ in found] == [site["name"] for site, _ in expected]
        for (_, value), (_, other) in zip(found, expected, strict=True):
            assert torch.equal(value, other)
            gradients = (torch.autograd.grad(x.square().sum(), z)[0] for x in (value, other))
            assert torch.equal(*gradients)
    with pytest.raises(AssertionError):
        list(guide._unpack_latent(torch.zeros(guide.latent_dim + 1)))
