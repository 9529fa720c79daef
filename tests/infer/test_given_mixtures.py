"""Guides whose posterior is a given mixture: exactly that, and ready for all that guides do."""

import copy
import io
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.nn import PyroParam

from pyro_mixtures.diagnostics import psis
from pyro_mixtures.distributions import (
    AVFMixtureOfDiagNormals,
    GaussianScaleMixture,
    MixtureOfDiagNormals,
    MixtureOfDiagNormalsSharedCovariance,
    MixtureOfNormals,
    MixtureOfNormalsSharedCovariance,
    MixtureSameFamily,
)
from pyro_mixtures.infer import (
    AutoAVFDiagonalNormalMixture,
    AutoAVFMultivariateNormal,
    AutoAVFMultivariateStudentT,
    AutoDiagonalNormalMixture,
    AutoGaussianScaleMixture,
    AutoMixture,
    AutoMultivariateNormalMixture,
    AutoOMTMultivariateNormal,
    AutoSharedDiagonalNormalMixture,
    AutoSharedMultivariateNormalMixture,
    BaselinedTrace_ELBO,
)
from tests.infer.mixture_guides import MIXTURES, AutoBentMixture, AutoLaplaceMixture

K, D = 4, 3


class AutoGumbelMixture(AutoMixture):
    """One that users write, with the inverse of its ``make_mixture``."""

    def init_components(self, locs):
        scale = torch.full_like(locs, self.init_scale)
        return {"centers": locs, "width": PyroParam(scale, self.scale_constraint)}

    def make_mixture(self, **options):
        weights = dist.Categorical(logits=self.component_logits)
        components = dist.Gumbel(self.centers, self.width).to_event(1)
        return MixtureSameFamily(weights, components, **options)

    def read_components(self, mixture):
        gumbel = mixture.component_distribution.base_dist
        return {"centers": gumbel.loc, "width": gumbel.scale}


def model(dtype=torch.float32):
    x = pyro.sample("x", dist.Normal(torch.zeros(2, dtype=dtype), 1.0).to_event(1))
    pyro.sample("y", dist.LogNormal(x.sum(-1), 1.0))


@pytest.fixture(autouse=True)
def _clean_store():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def tensors(dtype=torch.float32, count=K):
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    tril = 0.5 * normal(count, D, D).tril(-1) + normal(count, D).exp().diag_embed()
    return normal(count, D), normal(count, D).exp(), tril, normal(count), normal(2, count, D)


def given(guide_class, dtype=torch.float32, count=K):
    locs, scale, tril, logits, hub = tensors(dtype, count)
    return {
        AutoDiagonalNormalMixture: lambda: MixtureOfDiagNormals(locs, scale, logits),
        AutoMultivariateNormalMixture: lambda: MixtureOfNormals(locs, tril, logits),
        AutoSharedDiagonalNormalMixture: lambda: MixtureOfDiagNormalsSharedCovariance(
            locs, scale[0], logits
        ),
        AutoSharedMultivariateNormalMixture: lambda: MixtureOfNormalsSharedCovariance(
            locs, tril[0], logits
        ),
        AutoGaussianScaleMixture: lambda: GaussianScaleMixture(
            scale[0], logits, scale[:, 0], locs[:1].expand(count, D)
        ),
        AutoAVFDiagonalNormalMixture: lambda: AVFMixtureOfDiagNormals(locs, scale, logits, hub),
        AutoGumbelMixture: lambda: MixtureSameFamily(
            dist.Categorical(logits=logits), dist.Gumbel(locs, scale).to_event(1)
        ),
    }[guide_class]()


EACH = (
    AutoDiagonalNormalMixture,
    AutoMultivariateNormalMixture,
    AutoSharedDiagonalNormalMixture,
    AutoSharedMultivariateNormalMixture,
    AutoGaussianScaleMixture,
    AutoAVFDiagonalNormalMixture,
    AutoGumbelMixture,
)
each_guide = pytest.mark.parametrize("guide_class", EACH)
POINTS = 2 * torch.randn(20, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def assert_is(posterior, mixture):
    """Components and weights, in their order, to the rounding of the guide's dtype."""
    dtype, other = posterior.component_logits.dtype, mixture.component_logits.dtype
    z, exact = POINTS.to(dtype), POINTS.to(other)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if torch.float32 in (dtype, other) else {}
    for name in ("component_log_prob", "log_prob"):
        found, expected = getattr(posterior, name)(z), getattr(mixture, name)(exact)
        torch.testing.assert_close(found, expected.to(dtype), **tolerance)
    torch.testing.assert_close(posterior.log_weights, mixture.log_weights.to(dtype), **tolerance)


# --------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("when", ["before", "after", "at once"])
@each_guide
def test_the_posterior_is_the_mixture(guide_class, when, dtype):
    """Of any number of components, in the dtype of the model, whatever that of the mixture."""
    other = torch.float64 if dtype == torch.float32 else torch.float32
    for mixture in (given(guide_class, dtype), given(guide_class, other, 7)):
        pyro.clear_param_store()
        if when == "at once":
            guide = guide_class.from_mixture(model, mixture, dtype=dtype)
        else:
            guide = guide_class(model, 2)
            if when == "after":
                guide(dtype)
            guide.set_posterior(mixture)
        if when == "before":
            guide(dtype)
        posterior = guide.get_posterior()
        assert type(posterior) is type(mixture)
        assert posterior.component_logits.dtype == dtype
        assert guide.num_components == posterior.num_components == mixture.num_components
        assert_is(posterior, mixture)


def test_every_guide_of_the_package_is_met():
    mixtures = {each for each in MIXTURES if each is not AutoBentMixture}  # it is none
    assert set(EACH) >= {each for each in mixtures if each.distribution is not None}


def test_values_are_copies():
    mixture = given(AutoDiagonalNormalMixture)
    locs = mixture.locs.clone()
    guide = AutoDiagonalNormalMixture.from_mixture(model, mixture)
    with torch.no_grad():
        guide.locs += 1
    assert torch.equal(mixture.locs, locs)
    assert all(value.is_leaf and value.requires_grad for value in guide.parameters())


def test_a_component_without_weight_stays_one():
    locs, scale, _, logits, _ = tensors()
    logits[1] = -torch.inf
    mixture = MixtureOfDiagNormals(locs, scale, logits)
    guide = AutoDiagonalNormalMixture.from_mixture(model, mixture)
    SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step()
    assert guide.get_posterior().log_weights[1] == -torch.inf
    assert all(value.isfinite().all() for value in (guide.locs, guide.coord_scale))


def test_options_of_the_mixture_are_the_guides():
    mixture = MixtureOfDiagNormals(
        *tensors()[:2], tensors()[3], transport="telescoping", weight_gradient="hybrid"
    )
    posterior = AutoMultivariateNormalMixture.from_mixture(model, mixture).get_posterior()
    assert (posterior.transport, posterior.weight_gradient) == ("telescoping", "hybrid")
    locs, scale, _, logits, _ = tensors()
    paired = MixtureOfDiagNormalsSharedCovariance(locs, scale[0], logits, transport="pairwise")
    guide = AutoDiagonalNormalMixture.from_mixture(model, paired)
    assert guide.get_posterior().transport == "displacement"


# ---------------------------------------------------------------------------------- conversions

LOCS, SCALE, TRIL, LOGITS, HUB = tensors()
SAME = SCALE[0].expand(K, D)
WEIGHTS = dist.Categorical(logits=LOGITS)
EXACT = {
    "diagonal in full": (AutoMultivariateNormalMixture, MixtureOfDiagNormals(LOCS, SCALE, LOGITS)),
    "diagonal in learning": (
        AutoAVFDiagonalNormalMixture,
        MixtureOfDiagNormals(LOCS, SCALE, LOGITS),
    ),
    "learning in diagonal": (
        AutoDiagonalNormalMixture,
        AVFMixtureOfDiagNormals(LOCS, SCALE, LOGITS, HUB),
    ),
    "shared in full": (
        AutoMultivariateNormalMixture,
        MixtureOfNormalsSharedCovariance(LOCS, TRIL[0], LOGITS),
    ),
    "shared in diagonal": (
        AutoDiagonalNormalMixture,
        MixtureOfDiagNormalsSharedCovariance(LOCS, SCALE[0], LOGITS),
    ),
    "equal in shared": (
        AutoSharedDiagonalNormalMixture,
        MixtureOfDiagNormals(LOCS, SAME, LOGITS),
    ),
    "equal and diagonal in shared and full": (
        AutoSharedMultivariateNormalMixture,
        MixtureOfDiagNormals(LOCS, SAME, LOGITS),
    ),
    "triangular without correlation in diagonal": (
        AutoDiagonalNormalMixture,
        MixtureOfNormals(LOCS, SCALE.diag_embed(), LOGITS),
    ),
    "sizes in diagonal": (
        AutoDiagonalNormalMixture,
        GaussianScaleMixture(SCALE[0], LOGITS, SCALE[:, 0]),
    ),
    "sizes in full": (
        AutoMultivariateNormalMixture,
        GaussianScaleMixture(SCALE[0], LOGITS, SCALE[:, 0], LOCS),
    ),
    "centered sizes": (
        AutoGaussianScaleMixture,
        GaussianScaleMixture(SCALE[0], LOGITS, SCALE[:, 0]),
    ),
    "torch's names in full": (
        AutoMultivariateNormalMixture,
        MixtureSameFamily(WEIGHTS, dist.MultivariateNormal(LOCS, scale_tril=TRIL)),
    ),
    "torch's names in diagonal": (
        AutoDiagonalNormalMixture,
        MixtureSameFamily(WEIGHTS, dist.Normal(LOCS, SCALE).to_event(1)),
    ),
}
REFUSED = {
    "correlated in diagonal": (AutoDiagonalNormalMixture, MixtureOfNormals(LOCS, TRIL, LOGITS)),
    "unequal in shared": (
        AutoSharedDiagonalNormalMixture,
        MixtureOfDiagNormals(LOCS, SCALE, LOGITS),
    ),
    "correlated in shared": (
        AutoSharedMultivariateNormalMixture,
        MixtureOfNormals(LOCS, TRIL, LOGITS),
    ),
    "diagonal in sizes": (AutoGaussianScaleMixture, MixtureOfDiagNormals(LOCS, SCALE, LOGITS)),
    "locations apart in sizes": (
        AutoGaussianScaleMixture,
        GaussianScaleMixture(SCALE[0], LOGITS, SCALE[:, 0], LOCS),
    ),
    "no Normals": (
        AutoMultivariateNormalMixture,
        MixtureSameFamily(WEIGHTS, dist.Laplace(LOCS, SCALE).to_event(1)),
    ),
    "a batch": (
        AutoDiagonalNormalMixture,
        MixtureOfDiagNormals(LOCS, SCALE, LOGITS).expand((2,)),
    ),
    "numbers": (
        AutoDiagonalNormalMixture,
        MixtureSameFamily(WEIGHTS, dist.Normal(LOCS[:, 0], SCALE[:, 0])),
    ),
    "torch's class": (
        AutoDiagonalNormalMixture,
        torch.distributions.MixtureSameFamily(WEIGHTS, dist.Normal(LOCS, SCALE).to_event(1)),
    ),
}


@pytest.mark.parametrize("case", EXACT)
def test_exact_conversions(case):
    guide_class, mixture = EXACT[case]
    assert_is(guide_class.from_mixture(model, mixture).get_posterior(), mixture)


@pytest.mark.parametrize("case", REFUSED)
def test_other_mixtures_are_refused(case):
    """And leave the guide what it was."""
    guide_class, mixture = REFUSED[case]
    guide = guide_class(model, 2)
    guide()
    before = guide.state_dict()
    for attempt in (guide.set_posterior, lambda q: guide_class.from_mixture(model, q)):
        with pytest.raises(ValueError, match="Expected mixture to .*but got"):
            attempt(mixture)
    assert guide.num_components == 2
    assert all(torch.equal(before[name], value) for name, value in guide.state_dict().items())


@each_guide
def test_another_dimension_is_refused(guide_class):
    """By the first call if that comes later, and by every call until it is mended."""

    def larger():
        pyro.sample("x", dist.Normal(torch.zeros(D + 1), 1.0).to_event(1))

    guide = guide_class(larger, 2)
    guide.set_posterior(given(guide_class))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"over the 4 unconstrained .* event shape \(3,\)"):
            guide()
    pyro.clear_param_store()
    guide = guide_class(larger, 2)
    guide()
    with pytest.raises(ValueError, match=r"over the 4 unconstrained .* event shape \(3,\)"):
        guide.set_posterior(given(guide_class))
    assert guide.num_components == guide.get_posterior().num_components == 2


def test_values_beyond_the_dtype_of_the_guide():
    for scale in (1e-60, 1e60):
        mixture = MixtureOfDiagNormals(
            torch.zeros(1, D), torch.full((1, D), scale, dtype=torch.float64), torch.zeros(1)
        )
        with pytest.raises(ValueError, match=r"mixture's coord_scale to be finite and.*float32"):
            AutoDiagonalNormalMixture.from_mixture(model, mixture)
        pyro.clear_param_store()
        AutoDiagonalNormalMixture.from_mixture(model, mixture, dtype=torch.float64)
        pyro.clear_param_store()


def test_guides_without_the_inverse_tell_so():
    """Also if they have kept the name of a class whose mixture they do not make."""

    class Scaled(AutoDiagonalNormalMixture):
        def make_mixture(self, **options):
            return super().make_mixture(**options).affine(torch.tensor([1.0, 2.0, 3.0]))

    for guide_class in (AutoLaplaceMixture, Scaled):
        with pytest.raises(NotImplementedError, match="to define read_components"):
            guide_class(model, 2).set_posterior(given(AutoDiagonalNormalMixture))


# ------------------------------------------------------------------------------------ ready to use


@each_guide
def test_what_guides_do(guide_class):
    mixture = given(guide_class)
    guide = guide_class.from_mixture(model, mixture)
    predictive = Predictive(model, guide=guide, num_samples=10, parallel=True)
    assert predictive()["x"].shape[0] == 10
    median = mixture.marginal_icdf(torch.tensor(0.5))
    torch.testing.assert_close(guide.median()["x"], median[:2], rtol=1e-3, atol=1e-4)
    found = psis(model, guide, num_samples=100, vectorize=True)
    assert math.isfinite(found.log_evidence)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), BaselinedTrace_ELBO())
    for _ in range(3):
        svi.step()
    assert not torch.equal(guide.get_posterior().log_prob(POINTS), mixture.log_prob(POINTS))


@pytest.mark.parametrize("count", [2, 7])
@each_guide
def test_within_a_loop(guide_class, count):
    """Steps move the new parameters, which are those in the store."""
    guide = guide_class(model, 2)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), BaselinedTrace_ELBO())
    for _ in range(3):
        svi.step()
    mixture = given(guide_class, count=count)
    guide.set_posterior(mixture)
    stored = dict(pyro.get_param_store().named_parameters())
    assert set(map(id, stored.values())) == set(map(id, guide.parameters()))
    before = [value.detach().clone() for value in guide.parameters()]
    svi.step()
    moved = [(a.detach() - b).abs().max() for a, b in zip(guide.parameters(), before, strict=True)]
    assert max(moved).item() == pytest.approx(0.01, rel=1e-2)  # the first step of a new Adam


@each_guide
def test_copies_and_files(guide_class):
    mixture = given(guide_class)
    guide = guide_class.from_mixture(model, mixture)
    file = io.BytesIO()
    torch.save(pyro.get_param_store().get_state(), file)
    copies = [copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))]
    pyro.clear_param_store()
    other = guide_class(model, K)
    other()
    other.load_state_dict(guide.state_dict())
    copies.append(other)
    for each in copies:
        assert_is(each.get_posterior(), mixture)
    pyro.clear_param_store()
    file.seek(0)
    pyro.get_param_store().set_state(torch.load(file, weights_only=False))
    stored = guide_class(model, K)
    stored()
    assert_is(stored.get_posterior(), mixture)


@each_guide
def test_what_another_guide_left_in_the_store_is_replaced(guide_class):
    for count in (K, 7):
        pyro.clear_param_store()
        left = guide_class(model, K)
        left()
        mixture = given(guide_class, count=count)
        guide = guide_class.from_mixture(model, mixture)
        guide()
        assert_is(guide.get_posterior(), mixture)


def test_guides_that_are_kept_apart_share_no_parameters():
    mixtures = [given(AutoDiagonalNormalMixture, count=2) for _ in range(2)]
    mixtures[1] = mixtures[1].affine(torch.ones(D))
    guides = [AutoDiagonalNormalMixture(model, 2) for _ in mixtures]
    for guide, mixture in zip(guides, mixtures, strict=True):
        guide.keep_apart()
        guide.set_posterior(mixture)
        guide()
    svi = SVI(model, guides[1], pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    svi.step()
    guides[0]()
    assert_is(guides[0].get_posterior(), mixtures[0])
    own = [{id(value) for value in guide.parameters()} for guide in guides]
    stored = {id(value) for _, value in pyro.get_param_store().named_parameters()}
    assert own[0] | own[1] == stored
    assert not own[0] & own[1]


def test_names_of_guides_that_were_loaded_are_left_to_them():
    first = AutoDiagonalNormalMixture(model, 2)
    first.keep_apart()
    first()
    name = next(iter(pyro.get_param_store())).split(".")[0]
    number = int(name.rsplit("_", 1)[1]) + 1
    value = torch.zeros(3)
    pyro.param(f"{type(first).__name__}_{number}.locs", value)  # as another process left it
    second = AutoDiagonalNormalMixture(model, 2)
    second.keep_apart()
    second()
    assert second.locs.shape == (2, D)
    assert any(f"_{number + 1}.locs" in each for each in pyro.get_param_store())


def test_a_guide_that_was_called_cannot_be_kept_apart():
    guide = AutoDiagonalNormalMixture(model, 2)
    guide()
    with pytest.raises(ValueError, match="not called yet"):
        guide.keep_apart()


@pytest.mark.parametrize("init", [None, "prior"])
def test_without_a_store(init):
    mixture = given(AutoDiagonalNormalMixture)
    with pyro.settings.context(module_local_params=True):
        first, guide = (AutoDiagonalNormalMixture(model, 2, init=init) for _ in range(2))
        for each in (first, guide):
            each()
        before = first.get_posterior().log_prob(POINTS.float())
        guide.set_posterior(mixture)
        guide()
        Trace_ELBO()(model, guide)().backward()
        assert guide.locs_unconstrained.grad is not None if init else guide.locs.grad is not None
        assert_is(guide.get_posterior(), mixture)
        assert torch.equal(first.get_posterior().log_prob(POINTS.float()), before)


def test_handlers_do_not_see_the_run_of_the_model():
    with poutine.trace() as trace:
        AutoDiagonalNormalMixture.from_mixture(model, given(AutoDiagonalNormalMixture))
    sites = [name for name, site in trace.trace.nodes.items() if site["type"] == "sample"]
    assert sites == []


# --------------------------------------------------------------------------- before the first call


@pytest.mark.parametrize(
    "make",
    [
        *(lambda kind=kind: kind(model, 2) for kind in MIXTURES),
        *(
            lambda kind=kind: kind(model)
            for kind in (
                AutoAVFMultivariateNormal,
                AutoAVFMultivariateStudentT,
                AutoOMTMultivariateNormal,
            )
        ),
    ],
)
def test_guides_that_were_not_called_tell_what_to_do(make):
    guide = make()
    with pytest.raises(ValueError, match=r"not: Auto\w+ makes .* call it once .* run a step"):
        guide.get_posterior()
    with pytest.raises(AttributeError, match="'locs': Auto.* call it once"):
        _ = guide.locs
    assert not hasattr(guide, "locs")
    guide()
    guide.get_posterior()
    with pytest.raises(AttributeError, match="'other'$"):
        _ = guide.other


def test_constraints_of_a_guide_are_kept():
    mixture = MixtureSameFamily(WEIGHTS, dist.Gumbel(LOCS, SCALE).to_event(1))
    guide = AutoGumbelMixture.from_mixture(model, mixture)
    state = pyro.get_param_store().get_state()["constraints"]
    assert state["AutoGumbelMixture.width"] is AutoGumbelMixture.scale_constraint
    assert state["AutoGumbelMixture.centers"] is constraints.real
    assert guide.width_unconstrained.requires_grad
