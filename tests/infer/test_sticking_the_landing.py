"""``detached`` and the gradients of objectives that stick the landing."""

import contextlib
import math
import pickle

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import nn

from pyro_mixtures.distributions import (
    AVFMultivariateNormal,
    Mixture,
    MixtureOfDiagNormals,
    MixtureSameFamily,
    TransformedDistribution,
)
from pyro_mixtures.distributions.moving import modules_of
from pyro_mixtures.infer import (
    SIWAE_ELBO,
    AutoDiagonalNormalMixture,
    AutoMultivariateNormalMixture,
    MarginalizedMixture_ELBO,
    detached,
)
from tests.registry import FAMILIES, each_family, leaves
from tests.strata import gradients


@pytest.fixture(autouse=True)
def _double_precision():
    pyro.clear_param_store()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# ---- detached ----


def parameters():
    return leaves(
        {
            "logits": torch.tensor([[0.3, -0.4], [0.1, 0.2], [0.0, 1.0]]),
            "locs": torch.randn(3, 2, 2),
            "scales": torch.randn(3, 2, 2).exp(),
        }
    )


def diag_normals(p, **options):
    return MixtureOfDiagNormals(p["locs"], p["scales"], p["logits"], **options)


def same_family(p):
    components = dist.Gamma(p["scales"][..., 0], p["scales"][..., 1])
    return MixtureSameFamily(dist.Categorical(logits=p["logits"]), components)


def same_family_of_normals(p):
    components = dist.Normal(p["locs"], p["scales"]).to_event(1)
    return MixtureSameFamily(dist.Categorical(logits=p["logits"]), components)


def unlike(p):
    components = [
        dist.Gamma(p["scales"][:, 0, 0], p["scales"][:, 0, 1]),
        dist.LogNormal(p["locs"][:, 1, 0], p["scales"][:, 1, 0]),
    ]
    return Mixture(dist.Categorical(logits=p["logits"]), components)


def elliptical(p):
    factor = torch.diag_embed(p["scales"][:, 0])
    return AVFMultivariateNormal(p["locs"][:, 0], factor, p["locs"][:2, :1])


def affine(p):
    """A cached and an inverse transform with tensors of their own."""
    base = dist.Normal(p["locs"], 1.0)
    cached = transforms.AffineTransform(p["locs"][0, 0, 0], p["scales"], cache_size=1)
    inverse = transforms.AffineTransform(0.0, p["scales"]).inv
    composed = transforms.ComposeTransform([cached, inverse])
    return dist.TransformedDistribution(base, [composed, transforms.ExpTransform()])


BUILDERS = {
    "mixture": diag_normals,
    "clustered": lambda p: diag_normals(p, weight_gradient="clustered"),
    "event": lambda p: diag_normals(p, weight_gradient="hybrid").to_event(1),
    "mask": lambda p: diag_normals(p).mask(torch.tensor([True, False, True])),
    "expand": lambda p: diag_normals(p).expand([2, 3]),
    "same-family": same_family,
    "same-family-normals": same_family_of_normals,
    "unlike": unlike,
    "normal": lambda p: dist.Normal(p["locs"], p["scales"]).to_event(1),
    "multivariate": lambda p: dist.MultivariateNormal(
        p["locs"], scale_tril=p["scales"].diag_embed()
    ),
    "covariance": lambda p: dist.MultivariateNormal(p["locs"], p["scales"].diag_embed()),
    "probs": lambda p: dist.Categorical(probs=p["logits"].softmax(-1)),
    "expanded": lambda p: dist.ExpandedDistribution(
        dist.Normal(p["locs"], p["scales"]), torch.Size([4, 3, 2, 2])
    ),
    "transformed": affine,
    "transformed-mixture": lambda p: dist.TransformedDistribution(
        diag_normals(p), [transforms.ExpTransform()]
    ),
    "elliptical": elliptical,
    "relaxed": lambda p: dist.RelaxedOneHotCategorical(torch.tensor(0.7), logits=p["logits"]),
}


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_density_has_no_gradient_but_that_of_the_value(build, used):
    p = parameters()
    fn = build(p)
    if used:  # so that it keeps what it computed
        z = fn.rsample() if fn.has_rsample else fn.sample()
        fn.log_prob(z)
        for name in ("probs", "logits", "mean", "variance", "covariance_matrix"):
            with contextlib.suppress(NotImplementedError):
                getattr(fn, name, None)
    constant = detached(fn)
    assert type(constant) is type(fn)
    z = fn.sample()
    assert not constant.log_prob(z).requires_grad
    assert fn.log_prob(z).requires_grad  # as before
    assert torch.equal(constant.log_prob(z), fn.log_prob(z))
    assert constant.batch_shape == fn.batch_shape
    if not fn.has_rsample:
        return
    z = z.requires_grad_()
    (expected,) = torch.autograd.grad(fn.log_prob(z).sum(), z)
    (found,) = torch.autograd.grad(constant.log_prob(z).sum(), z)
    assert torch.allclose(found, expected)


def test_sample_of_the_original_is_no_short_cut():
    """A cached inverse knows a sample without the parameters that moved it."""
    scale = torch.tensor(2.0, requires_grad=True)
    affine = transforms.AffineTransform(0.0, scale, cache_size=1)
    fn = dist.TransformedDistribution(dist.Normal(0.0, 1.0), [affine])
    z = fn.rsample()
    (found,) = torch.autograd.grad(detached(fn).log_prob(z), scale)
    expected = -z / scale**2 * z / scale  # of -(z/s)^2/2 by z, times dz/ds
    assert found.item() == pytest.approx(expected.item())


def test_mixture_remembers_nothing_of_its_sample():
    p = parameters()
    fn = diag_normals(p, weight_gradient="clustered")
    z = fn.rsample()
    log_prob = detached(fn).log_prob(z).sum()
    gradients = torch.autograd.grad(log_prob, list(p.values()), allow_unused=True)
    constant = MixtureOfDiagNormals(p["locs"].detach(), p["scales"].detach(), p["logits"].detach())
    z = fn.reparameterize(z)
    expected = torch.autograd.grad(constant.log_prob(z).sum(), list(p.values()), allow_unused=True)
    for found, other in zip(gradients, expected, strict=True):
        assert torch.allclose(found, other)


def test_delta_is_returned():
    density = torch.tensor(0.5, requires_grad=True)
    delta = dist.Delta(torch.tensor(1.0), density)
    assert detached(delta) is delta
    event = detached(dist.Delta(torch.ones(2), density.expand(2)).to_event(1))
    assert event.log_prob(torch.ones(2)).requires_grad


def test_copies_can_be_pickled():
    fn = detached(diag_normals(parameters()))
    again = pickle.loads(pickle.dumps(fn))
    assert torch.equal(again.mean, fn.mean)


TRAINABLE = {
    "coupling": lambda: transforms.affine_coupling(2, [4]),
    "spline coupling": lambda: transforms.spline_coupling(2, None, [4], 4),
    "autoregressive": lambda: transforms.affine_autoregressive(2, [4]),
    "a method of its own": lambda: transforms.affine_autoregressive(2, [4], stable=True),
    "splines": lambda: transforms.Spline(2, count_bins=4),
    "inverse": lambda: transforms.Spline(2, count_bins=4).inv,
    "several": lambda: transforms.iterated(2, transforms.affine_coupling, 2, [4]),
}


@pytest.mark.parametrize("kind", [TransformedDistribution, dist.TransformedDistribution])
@pytest.mark.parametrize("name", TRAINABLE)
def test_trainable_transforms(kind, name):
    """The density is the same, and has the gradient of the point alone."""
    torch.manual_seed(0)
    loc = torch.zeros(2, requires_grad=True)
    fn = kind(dist.Normal(loc, 1.0).to_event(1), [TRAINABLE[name]()])
    fn.rsample((3,))
    y = fn.sample((5,)).clone().requires_grad_()
    expected = fn.log_prob(y)
    (slope,) = torch.autograd.grad(expected.sum(), y)
    copied = detached(fn)
    found = copied.log_prob(y)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    torch.testing.assert_close(y.grad, slope)
    modules = modules_of(fn.transforms)
    assert modules
    assert loc.grad is None
    for value in nn.ModuleList(modules).parameters():
        assert value.grad is None
        with torch.no_grad():
            value += 0.1
    assert not torch.allclose(fn.log_prob(y.detach()), expected)
    assert not torch.allclose(copied.log_prob(y.detach()), expected)  # it has the same numbers


def test_trainable_transforms_without_an_inverse_tell_so():
    fn = TransformedDistribution(diag_normals(parameters()), [transforms.Planar(2)])
    y = fn.rsample()
    fn.log_prob(y)
    with pytest.raises(NotImplementedError, match="Planar.*stick the landing"):
        detached(fn).log_prob(y)


def test_hidden_parameters_are_refused():
    network = nn.Linear(2, 1)
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    flow = transforms.ConditionalAffineCoupling(1, lambda x: network(x).chunk(2, -1))
    fn = dist.TransformedDistribution(base, [flow.condition(torch.zeros(2))])
    with pytest.raises(NotImplementedError, match="module AffineCoupling"):
        detached(fn)
    base.network = network.forward
    with pytest.raises(NotImplementedError, match=r"Independent.network .*may hide"):
        detached(base)


# ---- at the optimum ----


def gradient(elbo, model, guide, parameters):
    for value in parameters.values():
        value.grad = None
    elbo.loss_and_grads(model, guide)
    return gradients(parameters)


@each_family
@pytest.mark.parametrize("objective", [MarginalizedMixture_ELBO, SIWAE_ELBO])
def test_gradient_vanishes_at_the_optimum(family, objective):
    """For every draw: where the model's latent is the guide's mixture, the ratio is one."""
    p = family.parameters(K=3)
    target = family.build({name: value.detach() for name, value in p.items()})

    def model():
        pyro.sample("z", target)

    def guide():
        pyro.sample("z", family.build(p, weight_gradient="clustered"))

    for seed in range(3):
        pyro.set_rng_seed(seed)
        elbo = objective(num_particles=2, max_plate_nesting=0, sticking_the_landing=True)
        assert gradient(elbo, model, guide, p).abs().max() < 1e-12
        elbo = objective(num_particles=2, max_plate_nesting=0)
        assert gradient(elbo, model, guide, p).abs().max() > 1e-2


@pytest.mark.parametrize("guide_class", [AutoDiagonalNormalMixture, AutoMultivariateNormalMixture])
@pytest.mark.parametrize("weight_gradient", ["pathwise", "clustered", "hybrid"])
def test_gradient_of_auto_guides_vanishes_at_the_optimum(guide_class, weight_gradient):
    """Though there the density may be carried by the model's sites, behind a transform."""
    target = {}

    def model():
        with pyro.plate("numbers", 2):
            pyro.sample("a", dist.LogNormal(0.0, 1.0))
        pyro.sample("b", dist.Normal(0.0, 1.0))

    def exact_model():
        with pyro.plate("numbers", 2):
            a = pyro.sample("a", dist.LogNormal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        latent = torch.cat([a.log(), b.unsqueeze(-1) if b.dim() < a.dim() else b], -1)
        prior = dist.Normal(0.0, 1.0).log_prob(latent).sum(-1, keepdim=True)
        pyro.factor("target", target["q"].log_prob(latent).unsqueeze(-1) - prior)

    pyro.set_rng_seed(0)
    guide = guide_class(model, 3, init_scale=0.5, weight_gradient=weight_gradient)
    guide()
    target["q"] = detached(guide.get_posterior())
    p = dict(guide.named_parameters())
    elbo = MarginalizedMixture_ELBO(max_plate_nesting=1, sticking_the_landing=True)
    assert gradient(elbo, exact_model, guide, p).abs().max() < 1e-12
    elbo = MarginalizedMixture_ELBO(max_plate_nesting=1)
    assert gradient(elbo, exact_model, guide, p).abs().max() > 1e-2


def test_other_sites_land_as_well():
    """A Normal site beside subsampled mixtures."""
    p = FAMILIES["diag_normals"].parameters(batch_shape=(4,))
    p["w"] = torch.tensor([0.3, 1.2], requires_grad=True)

    def sites(p):
        pyro.sample("w", dist.Normal(p["w"][0], p["w"][1]))
        with pyro.plate("data", 4, subsample_size=2) as index:
            locs, scales, logits = (
                p[name][index] for name in ("locs", "coord_scale", "component_logits")
            )
            pyro.sample("z", MixtureOfDiagNormals(locs, scales, logits))

    constant = {name: value.detach() for name, value in p.items()}
    elbo = MarginalizedMixture_ELBO(max_plate_nesting=1, sticking_the_landing=True)
    found = gradient(elbo, lambda: sites(constant), lambda: sites(p), p)
    assert found.abs().max() < 1e-12
    elbo = MarginalizedMixture_ELBO(max_plate_nesting=1)
    found = gradient(elbo, lambda: sites(constant), lambda: sites(p), p)
    assert found[-2:].abs().min() > 1e-2


def test_importance_weighted_bound_is_biased():
    """As documented; without ``sticking_the_landing`` it is not."""
    p = leaves({"loc": torch.tensor([[-1.0], [1.0]]), "logits": torch.tensor([0.5, -0.5])})
    scales = torch.tensor([[0.7], [0.7]])
    target = MixtureOfDiagNormals(1.3 * p["loc"].detach(), 1.5 * scales, torch.zeros(2))

    def model():
        with pyro.plate("repeats", 20_000):
            pyro.sample("z", target)

    def guide():
        with pyro.plate("repeats", 20_000):
            pyro.sample("z", MixtureOfDiagNormals(p["loc"], scales, p["logits"]))

    points, weights = map(torch.as_tensor, hermegauss(60))  # one draw of each component shares it
    z = p["loc"].T + scales.T * points.unsqueeze(-1)  # (60, K)
    q = MixtureOfDiagNormals(p["loc"], scales, p["logits"])
    ratio = target.log_prob(z.unsqueeze(-1)) - q.log_prob(z.unsqueeze(-1)) + q.log_weights
    loss = -(weights * ratio.logsumexp(-1)).sum() / math.sqrt(2 * math.pi)
    expected = torch.cat([x.flatten() for x in torch.autograd.grad(loss, list(p.values()))])
    found = {}
    for landing in (False, True):
        elbo = SIWAE_ELBO(max_plate_nesting=1, sticking_the_landing=landing)
        draws = [gradient(elbo, model, guide, p) / 20_000 for _ in range(20)]
        draws = torch.stack(draws)
        error = (draws.mean(0) - expected).abs()
        found[landing] = (error / (draws.std(0) / math.sqrt(20))).max(), error.max()
    assert found[False][0] < 6  # t with 19 degrees of freedom: false alarm 4 * 9e-6
    assert found[True][0] > 20
    assert found[True][1] > 0.1  # measured: 0.17, where the largest entry is 0.12
