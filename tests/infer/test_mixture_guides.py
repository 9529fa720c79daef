"""What every mixture guide does, those that users write by hooks of ``AutoMixture`` included."""

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import init_to_value

from pyro_mixtures.distributions import (
    GaussianScaleMixture,
    MixtureOfDiagNormals,
    MixtureOfNormals,
    MixtureSameFamily,
)
from pyro_mixtures.estimators import ESTIMATORS
from pyro_mixtures.infer import (
    SIWAE_ELBO,
    AutoAVFDiagonalNormalMixture,
    AutoDiagonalNormalMixture,
    AutoGaussianScaleMixture,
    AutoMultivariateNormalMixture,
    AutoSharedDiagonalNormalMixture,
    AutoSharedMultivariateNormalMixture,
    BaselinedTrace_ELBO,
    avf_optim_args,
)
from tests.infer.mixture_guides import (
    MIXTURES,
    NORMALS,
    OWN,
    AutoLaplaceMixture,
    AutoMultivariateStudentTMixture,
    AutoSquashedMixture,
    AutoStudentTMixture,
)

each_guide = pytest.mark.parametrize("guide_class", MIXTURES)


@pytest.fixture(autouse=True)
def _clean_store():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def model():
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.LogNormal(x.sum(-1), 1.0))


# ------------------------------------------------------------------------------------------ fits

K, LOCS = 2, torch.tensor([[-2.0, 1.0], [2.0, -1.0]])
LOGITS = torch.tensor([0.3, 0.7]).log()
ONE, OTHER = torch.tensor([0.5, 1.0]), torch.tensor([1.0, 0.4])
TILTED = torch.tensor([[1.0, 0.0], [0.8, 0.4]])


def weighted(components):
    return MixtureSameFamily(dist.Categorical(logits=LOGITS), components)


TARGETS = {
    AutoAVFDiagonalNormalMixture: MixtureOfDiagNormals(LOCS, torch.stack([ONE, OTHER]), LOGITS),
    AutoSharedDiagonalNormalMixture: MixtureOfDiagNormals(LOCS, ONE.expand(2, 2), LOGITS),
    AutoSharedMultivariateNormalMixture: MixtureOfNormals(LOCS, TILTED.expand(2, 2, 2), LOGITS),
    AutoGaussianScaleMixture: GaussianScaleMixture(
        ONE, LOGITS, torch.tensor([0.5, 3.0]), LOCS[:1].expand(2, 2)
    ),
    AutoMultivariateStudentTMixture: weighted(
        dist.MultivariateStudentT(torch.tensor([4.0, 4.0]), LOCS, TILTED.expand(2, 2, 2))
    ),
    AutoLaplaceMixture: weighted(dist.Laplace(LOCS, torch.stack([ONE, OTHER])).to_event(1)),
}
"""A posterior that each guide can be, of two modes or of two sizes."""


@pytest.mark.parametrize("guide_class", TARGETS)
def test_finds_the_posterior(guide_class):
    """Its divergence from the posterior vanishes, to within 0.02, and its mean is the right one.

    ``loss`` is the divergence: of 4000 samples its standard deviation is below 0.01.
    """
    target = TARGETS[guide_class]

    def posterior():
        pyro.sample("x", target)

    starts = iter(LOCS + torch.tensor([0.5, 0.3]))  # in each basin
    guide = guide_class(
        posterior,
        K,
        init_loc_fn=lambda site: init_to_value(site, values={"x": next(starts)}),
        init_scale=0.4,
    )
    guide()
    many = Trace_ELBO(num_particles=4000, vectorize_particles=True, max_plate_nesting=0)
    assert many.loss(posterior, guide) > 0.2
    optimizer = pyro.optim.ClippedAdam(
        lambda name: {"lr": 0.003 if name.endswith("control_var") else 0.1, "lrd": 0.98}
    )
    elbo = BaselinedTrace_ELBO(
        num_particles=16,
        vectorize_particles=True,
        max_plate_nesting=0,
        sticking_the_landing=True,
    )
    svi = SVI(posterior, guide, optimizer, elbo)
    for _ in range(220):
        svi.step()
    assert many.loss(posterior, guide) == pytest.approx(0, abs=0.02)
    torch.testing.assert_close(guide.loc, target.mean, atol=0.15, rtol=0)


@each_guide
def test_evidence_of_a_conjugate_model(guide_class):
    """The trace holds the whole density: by 1000 importance samples of each component."""

    def conjugate():
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=torch.tensor([0.5, -0.5]))

    guide = guide_class(conjugate, 3, init_scale=1.0)
    guide()
    with torch.no_grad():
        guide.locs *= 0.5  # over the posterior
    elbo = SIWAE_ELBO(1000, vectorize_particles=True, max_plate_nesting=0)
    exact = dist.Normal(0.0, 2.0**0.5).log_prob(torch.tensor([0.5, -0.5])).sum().item()
    assert -elbo.loss(conjugate, guide) == pytest.approx(exact, abs=0.1)


# ------------------------------------------------------------------------------------ parameters

PARAMETERS = {
    AutoDiagonalNormalMixture: {"locs": (3, 4), "coord_scale": (3, 4)},
    AutoMultivariateNormalMixture: {
        "locs": (3, 4),
        "coord_scale": (3, 4),
        "scale_tril": (3, 4, 4),
    },
    AutoSharedDiagonalNormalMixture: {"locs": (3, 4), "coord_scale": (4,)},
    AutoSharedMultivariateNormalMixture: {
        "locs": (3, 4),
        "coord_scale": (4,),
        "scale_tril": (4, 4),
    },
    AutoGaussianScaleMixture: {"locs": (1, 4), "coord_scale": (4,), "component_scale": (3,)},
    AutoAVFDiagonalNormalMixture: {
        "locs": (3, 4),
        "coord_scale": (3, 4),
        "control_var": (2, 3, 4),
    },
    AutoStudentTMixture: {"locs": (3, 4), "coord_scale": (3, 4), "df": (3, 1)},
}


@pytest.mark.parametrize("guide_class", PARAMETERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_names_shapes_and_dtype_in_the_store(guide_class, dtype):
    def posterior():
        pyro.sample("x", dist.Normal(torch.zeros(4, dtype=dtype), 1.0).to_event(1))

    guide = guide_class(posterior, 3, init_scale=0.3)
    guide()
    expected = {"component_logits": (3,), **PARAMETERS[guide_class]}
    stored = {
        name.removeprefix(f"{guide_class.__name__}."): value
        for name, value in pyro.get_param_store().items()
    }
    assert {name: tuple(value.shape) for name, value in stored.items()} == expected
    assert {value.dtype for value in stored.values()} == {dtype}
    assert guide()["x"].dtype == guide.get_posterior().log_prob(guide.loc).dtype == dtype
    torch.testing.assert_close(stored["coord_scale"], torch.full_like(stored["coord_scale"], 0.3))


@each_guide
def test_copies_are_the_same_and_apart(guide_class):
    guide = guide_class(model, 2)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(3):
        svi.step()
    z = torch.randn(5, 3)
    expected = guide.get_posterior().log_prob(z).detach()
    pyro.clear_param_store()
    other = guide_class(model, 2)
    other()
    assert not torch.equal(other.get_posterior().log_prob(z), expected)
    other.load_state_dict(guide.state_dict())
    pyro.clear_param_store()
    copies = (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide)), other)
    with torch.no_grad():
        guide.locs += 1.0
    for each in copies:
        pyro.clear_param_store()
        assert torch.equal(each.get_posterior().log_prob(z), expected)


def test_sizes_start_apart_and_one_is_the_scale_itself():
    for count in (1, 2, 5):
        pyro.clear_param_store()
        guide = AutoGaussianScaleMixture(model, count, init_scale=0.2)
        guide()
        logs = guide.component_scale.log()
        assert logs.sum().item() == pytest.approx(0, abs=1e-5)
        torch.testing.assert_close(logs.diff(), torch.full((count - 1,), 2 / count))


@pytest.mark.parametrize("particles", [1, 4])
def test_the_hub_has_a_learning_rate_of_its_own(particles):
    """The first step of Adam is as long as the learning rate, where there is a gradient."""
    guide = AutoAVFDiagonalNormalMixture(model, 4, init_scale=1.0)
    guide()
    before = {name: value.detach().clone() for name, value in guide.named_parameters()}
    optimizer = pyro.optim.Adam(avf_optim_args({"lr": 0.02}, {"lr": 0.003}))
    elbo = Trace_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=0)
    SVI(model, guide, optimizer, elbo).step()
    steps = {name: (value - before[name]).abs() for name, value in guide.named_parameters()}
    for name, step in steps.items():
        rate = 0.003 if name == "control_var" else 0.02
        assert step.max().item() == pytest.approx(rate, rel=1e-3), name


def test_the_hub_starts_with_the_plain_gradient():
    gradients = []
    for guide_class in (AutoDiagonalNormalMixture, AutoAVFDiagonalNormalMixture):
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        guide = guide_class(model, 3, init_scale=1.0)
        Trace_ELBO().loss_and_grads(model, guide)
        gradients.append([guide.locs.grad, guide.component_logits.grad])
    for plain, learning in zip(*gradients, strict=True):
        torch.testing.assert_close(learning, plain)


# ------------------------------------------------------------------------------------- quantiles


@pytest.mark.parametrize("guide_class", NORMALS)
def test_quantiles_are_those_of_the_samples(guide_class):
    guide = guide_class(model, 3, init_scale=0.5)
    guide()
    y = guide.get_posterior().sample((100_000,))[:, 2].exp()
    found = guide.quantiles([0.2, 0.7])["y"]
    torch.testing.assert_close(found, y.quantile(torch.tensor([0.2, 0.7])), rtol=0.03, atol=0)
    assert torch.equal(guide.median()["y"], guide.quantiles([0.5])["y"][0])


def test_quantiles_that_there_are_not_are_refused():
    guide = AutoMultivariateStudentTMixture(model, 3)
    guide()
    for method in (guide.median, lambda: guide.quantiles([0.5])):
        with pytest.raises(NotImplementedError, match="but got MultivariateStudentT"):
            method()


def test_moments_that_there_are_not_are_refused():
    guide = AutoSquashedMixture(model, 3)
    guide()
    for name in ("loc", "scale"):
        with pytest.raises(NotImplementedError, match="moments for mean, but got Transformed"):
            getattr(guide, name)


# --------------------------------------------------------------------------- options and mistakes


FULL = (AutoMultivariateNormalMixture, AutoSharedMultivariateNormalMixture)


@pytest.mark.parametrize("estimator", [name for name in ESTIMATORS if name != "marginalized"])
@each_guide
def test_estimators(guide_class, estimator):
    """Each serves, in its own law, or is refused with the name of what it is not for."""
    guide = guide_class(model, 3, estimator=estimator)
    normal = estimator in ("implicit", "graves", "gumbel_soft", "gumbel_hard")
    diagonal = normal and estimator != "implicit"
    if (normal and guide_class in OWN) or (diagonal and guide_class in FULL):
        with pytest.raises(NotImplementedError, match=f"estimator '{estimator}', but got"):
            guide()
    else:
        guide()
        z = guide.sample_latent()
        assert z.requires_grad == (estimator != "score")
        if z.requires_grad:
            z.sum().backward()  # the locations shift it
            assert guide.locs.grad.sum().item() == pytest.approx(3, rel=1e-4)


@pytest.mark.parametrize("weight_gradient", ["clustered", "pathwise", "hybrid"])
@pytest.mark.parametrize("guide_class", [*NORMALS[:-1], *OWN])
def test_options_are_handed_on(guide_class, weight_gradient):
    guide = guide_class(model, 2, transport="telescoping", weight_gradient=weight_gradient)
    guide()
    posterior = guide.get_posterior()
    assert (posterior.transport, posterior.weight_gradient) == ("telescoping", weight_gradient)


@each_guide
def test_unknown_transports_are_refused(guide_class):
    """When the class is known, else at the first call."""
    with pytest.raises(ValueError, match="transport.*sideways"):
        guide_class(model, 2, transport="sideways")()


# ------------------------------------------------------------------------------- local variables


@each_guide
def test_a_whole_plate_is_one_joint_mixture(guide_class):
    """A component is of all data: those of one draw are of the same component."""

    def local_model():
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    guide = guide_class(local_model, 2, init_scale=0.01)
    guide()
    assert guide.get_posterior().batch_shape == ()
    assert guide.get_posterior().event_shape == (4,)
    if len(guide.locs) > 1:
        with torch.no_grad():
            guide.locs.copy_(torch.tensor([[-5.0], [5.0]]).expand(2, 4))
        signs = torch.stack([guide()["z"] for _ in range(30)]).sign()
        assert (signs == signs[:, :1]).all()
        assert signs[:, 0].unique().tolist() == [-1, 1]
