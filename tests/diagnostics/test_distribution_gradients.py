"""Gradient variances of distributions: closed forms, standard errors, chunks, errors that name."""

from functools import partial

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from torch.distributions import MultivariateNormal, Normal

from pyro_mixtures.diagnostics import gradient_variance
from pyro_mixtures.diagnostics.moments import Moments
from pyro_mixtures.distributions import AVFMultivariateNormal, MixtureOfDiagNormals
from pyro_mixtures.estimators import graves, marginalized, score

PARAMETERS = {"loc": torch.tensor([0.5, -1.0, 2.0]), "scale": torch.tensor([1.0, 0.3, 2.0])}


def assert_agrees(found, mean, variance, sigmas=5.0):
    """Moments within ``sigmas`` standard errors: false alarms of 6e-7 an entry."""
    assert ((found.mean - mean).abs() <= sigmas * found.mean_error + 1e-6).all()
    assert ((found.variance - variance).abs() <= sigmas * found.variance_error + 1e-6).all()


def test_normal_and_square():
    """f = z^2: the gradients are 2 z and 2 z epsilon."""
    loc, scale = PARAMETERS.values()
    found = gradient_variance(Normal, torch.square, PARAMETERS, num_draws=20_000)
    assert_agrees(found["loc"], 2 * loc, 4 * scale**2)
    assert_agrees(found["scale"], 2 * scale, 4 * loc**2 + 8 * scale**2)
    assert all(value.grad is None and not value.requires_grad for value in PARAMETERS.values())


def test_full_covariance_and_quadratic():
    """f = z . Q z: the gradient of L is 2 (Q z)_a epsilon_b."""
    root, scale_tril = torch.randn(4, 4), torch.randn(4, 4).tril(-1) + 2 * torch.eye(4)
    matrix = root + root.mT
    found = gradient_variance(
        MultivariateNormal,
        lambda z: (z @ matrix * z).sum(-1),
        {"loc": torch.zeros(4), "scale_tril": scale_tril},
        num_draws=20_000,
    )
    slope = 2 * matrix @ scale_tril  # g = slope epsilon
    variance = slope.square().sum(-1, keepdim=True) + slope.square()
    assert_agrees(found["scale_tril"], slope, variance)
    assert_agrees(found["loc"], torch.zeros(4), slope.square().sum(-1))


def test_constant_gradients_have_no_variance():
    found = gradient_variance(Normal, lambda z: 3 * z, PARAMETERS, num_draws=10)["loc"]
    assert torch.equal(found.mean, torch.full((3,), 3.0))
    assert found.variance.max() < 1e-20
    assert found.variance_error.max() < 1e-20


def test_standard_errors_cover():
    """2,000 measurements, a batch: two standard errors hold the truth in about 95 %."""
    parameters = {"loc": torch.ones(2000), "scale": torch.ones(2000)}
    found = gradient_variance(Normal, torch.square, parameters, num_draws=1000)["loc"]
    for value, error, truth in (
        (found.mean, found.mean_error, 2.0),
        (found.variance, found.variance_error, 4.0),
    ):
        covered = ((value - truth).abs() < 2 * error).double().mean().item()
        assert covered == pytest.approx(0.954, abs=0.025)  # five standard errors
    expected = 4.0 * (2 / 999) ** 0.5  # for Normal gradients
    assert found.variance_error.mean().item() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("sizes", [[100], [1] * 100, [37, 1, 62]])
def test_moments_do_not_depend_on_chunks(sizes):
    """Far from zero, in float32, with heavy tails."""
    gradients = 1e4 + dist.StudentT(5.0).sample((100, 3))
    moments = Moments("loc")
    for part in gradients.split(sizes):
        moments.add(part)
    found, exact = moments.result(torch.float64), gradients.double()
    fourth = (exact - exact.mean(0)).pow(4).mean(0)
    error = ((fourth - exact.var(0) ** 2 * 97 / 99) / 100).sqrt()
    assert torch.allclose(found.mean, exact.mean(0))
    assert torch.allclose(found.mean_error, exact.std(0) / 10)
    assert torch.allclose(found.variance, exact.var(0))
    assert torch.allclose(found.variance_error, error)


def test_chunks_add_up_to_all_draws():
    sizes = []

    def cost(z):
        sizes.append(len(z))
        return z.square()

    found = gradient_variance(Normal, cost, PARAMETERS, num_draws=5003, chunk_size=1000)
    assert sizes == [1000] * 5 + [3]
    assert_agrees(found["loc"], 2 * PARAMETERS["loc"], 4 * PARAMETERS["scale"] ** 2)


def test_control_variates_keep_the_mean():
    """What is not to be measured is bound; the gradient of L keeps its mean."""
    control_var = torch.randn(2, 2, 3)
    parameters = {"loc": torch.zeros(3), "scale_tril": torch.eye(3)}
    adaptive = partial(AVFMultivariateNormal, control_var=control_var)

    def cost(z):
        return (z[..., 0] * z[..., 1] + z[..., 2]).square()

    ours = gradient_variance(adaptive, cost, parameters, num_draws=20_000)
    plain = gradient_variance(MultivariateNormal, cost, parameters, num_draws=20_000)
    assert sorted(ours) == ["loc", "scale_tril"]
    for name in ours:
        error = (ours[name].mean_error ** 2 + plain[name].mean_error ** 2).sqrt()
        assert ((ours[name].mean - plain[name].mean).abs() <= 5 * error).all()
    assert not torch.allclose(ours["scale_tril"].variance, plain["scale_tril"].variance, rtol=0.1)


def test_mixtures():
    """A batch of mixtures, with batch dimensions of their own."""
    parameters = {
        "locs": torch.randn(2, 3, 4),
        "coord_scale": torch.ones(2, 3, 4),
        "component_logits": torch.zeros(2, 3),
    }
    found = gradient_variance(
        MixtureOfDiagNormals, lambda z: z.square().sum(-1), parameters, num_draws=5000
    )
    weights = parameters["component_logits"].softmax(-1).unsqueeze(-1)
    assert {name: entry.mean.shape for name, entry in found.items()} == {
        name: value.shape for name, value in parameters.items()
    }
    assert (
        (found["locs"].mean - 2 * weights * parameters["locs"]).abs()
        <= 5 * found["locs"].mean_error
    ).all()


MIXTURE = {
    "locs": torch.tensor([[-2.0, 0.0], [2.0, 1.0], [2.5, 0.5]]),
    "coord_scale": torch.ones(3, 2),
    "component_logits": torch.tensor([0.3, 0.0, -0.2]),
}


def squared(z):
    return z.square().sum(-1)


def squared_gradients():
    """Of E|z|^2 = sum pi_k (|mu_k|^2 + |sigma_k|^2)."""
    leaves = {name: value.clone().requires_grad_() for name, value in MIXTURE.items()}
    each = leaves["locs"].square() + leaves["coord_scale"].square()
    total = leaves["component_logits"].softmax(-1) @ each.sum(-1)
    return dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))


def assert_means(found, exact):
    for name, entry in found.items():  # false alarms of 6e-7 an entry
        assert ((entry.mean - exact[name]).abs() <= 5 * entry.mean_error).all(), name


@pytest.mark.parametrize("weight_gradient", ["pathwise", "clustered", "hybrid"])
def test_score_terms_count(weight_gradient):
    """Those of the distribution itself, which samples alone would be biased without."""
    family = partial(MixtureOfDiagNormals, weight_gradient=weight_gradient)
    found = gradient_variance(family, squared, MIXTURE, num_draws=20_000)
    assert_means(found, squared_gradients())


@pytest.mark.parametrize("estimator", ["hybrid", marginalized, "stratified", score, graves])
def test_estimators(estimator):
    """By name or as a function; means of samples have a fraction of the variance."""
    settings = {"estimator": estimator, "num_draws": 10_000, "baseline": 8.0}
    one, four = (
        gradient_variance(MixtureOfDiagNormals, squared, MIXTURE, num_samples=n, **settings)
        for n in (1, 4)
    )
    for found in (one, four):
        assert_means(found, squared_gradients())
    if estimator != "stratified":
        of_one, of_four = (found["component_logits"].variance.sum() for found in (one, four))
        assert float(4 * of_four / of_one) == pytest.approx(1, abs=0.2)


def test_costs_of_several_samples():
    """The cost meets all samples of all draws along one dimension."""
    shapes = []

    def cost(z):
        shapes.append(tuple(z.shape))
        return squared(z)

    settings = {"num_draws": 10, "num_samples": 3}
    gradient_variance(MixtureOfDiagNormals, cost, MIXTURE, **settings)
    gradient_variance(MixtureOfDiagNormals, cost, MIXTURE, estimator=marginalized, **settings)
    batch = {name: value.expand(4, *value.shape) for name, value in MIXTURE.items()}
    gradient_variance(MixtureOfDiagNormals, cost, batch, estimator="hybrid", **settings)
    assert shapes == [(30, 2), (90, 2), (30, 4, 2)]


def test_an_estimator_may_do_without_rsample():
    found = gradient_variance(
        NonreparameterizedNormal,
        torch.square,
        PARAMETERS,
        estimator=lambda normal: normal,
        num_samples=8,
        num_draws=20_000,
    )
    assert_means(found, {"loc": 2 * PARAMETERS["loc"], "scale": 2 * PARAMETERS["scale"]})


ONE = {"loc": torch.tensor(0.0), "scale": torch.tensor(1.0)}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"num_draws": 1}, "num_draws to be an integer >= 2, but got 1"),
        ({"chunk_size": 0}, "chunk_size to be an integer >= 1, but got 0"),
        ({"num_samples": 0}, "num_samples to be an integer >= 1, but got 0"),
        ({"num_samples": 3, "cost": torch.sum}, r"shape \(3000,\) .* but got \(\)"),
        ({"estimator": "best"}, "estimator to be one of pathwise, .* but got 'best'"),
        ({"estimator": "graves"}, "Expected a mixture .* but got Normal"),
        ({"parameters": {}}, "at least one tensor"),
        ({"cost": torch.sum}, r"cost to return .* shape \(1000,\) .* but got \(\)"),
        ({"cost": lambda z: z.unsqueeze(-1)}, r"but got \(1000, 1\)"),
        (
            {"cost": lambda z: z.square().sqrt() * 0 / 0},
            "finite .* 1000 of 1000 draws gave loc NaN",
        ),
        ({"distribution": lambda loc, scale: Normal(loc, 1.0)}, "cost to depend on scale"),
        (
            {"parameters": {"loc": torch.zeros(3), "scale": torch.tensor(1.0)}},
            r"one batch shape, \(3,\), .* loc \(3,\), scale \(\)",
        ),
        (
            {"parameters": {"loc": torch.zeros(2), "scale": torch.tensor(1.0)}},
            r"dimension of 3 draws .* is \(3, 2\)",
        ),
        ({"distribution": NonreparameterizedNormal}, "rsample, but got NonreparameterizedNormal"),
    ],
)
def test_mistakes_are_told(settings, told):
    given = {"distribution": Normal, "cost": torch.square, "parameters": ONE, **settings}
    with pytest.raises(ValueError, match=told):
        gradient_variance(**given)
