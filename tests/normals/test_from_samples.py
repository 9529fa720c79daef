"""Fits to samples: clusters are found, and no step loses likelihood."""

import sys

import pytest
import torch

from pyro_mixtures.distributions import (
    GaussianScaleMixture,
    MixtureOfDiagNormals,
    MixtureOfDiagNormalsSharedCovariance,
    MixtureOfNormals,
)
from pyro_mixtures.normals import from_samples
from tests.registry import FAMILIES, each_family, gradients, leaves

SHARED_SHAPE = {
    name: FAMILIES[name]
    for name in ("diag_normals_shared", "scale_mixture", "scale_mixture_with_locs")
}
each_shared_shape = pytest.mark.parametrize(
    "family", [pytest.param(family, id=name) for name, family in SHARED_SHAPE.items()]
)


def options_of(family):
    """To keep ``locs`` out where the family has none."""
    return {} if "locs" in family.parameters() else {"centered": True}


def separate(family, **options):
    """A mixture of components that do not overlap much."""
    extremes = {"spread": 30.0} if "locs" in family.parameters() else {"scales": (1e-4, 1e4)}
    return family.build(family.parameters(K=3, **extremes, **options), validate_args=False)


@each_family
@pytest.mark.parametrize("D", [1, 2, 5])
def test_separate_clusters_are_found(family, D):
    truth = separate(family, D=D, seed=2)
    samples = truth.sample((4000,))
    fit = family.distribution.from_samples(samples, 3, **options_of(family))
    assert type(fit) is family.distribution
    assert fit.batch_shape == ()
    locs, scales = fit.components.normals("test")
    true_locs, true_scales = (x.detach() for x in truth.components.normals("test"))
    if "locs" in family.parameters():
        order = torch.cdist(true_locs, locs).argmin(-1)
    else:
        order = (scales[:, 0].log() - true_scales[:, :1].log()).abs().argmin(-1)
    assert order.sort().values.tolist() == [0, 1, 2]
    # a component has some 800 samples; thresholds of 5 standard errors
    torch.testing.assert_close(
        fit.log_weights.exp()[order], truth.log_weights.exp().detach(), rtol=0, atol=0.05
    )
    stddev = truth.components.stddev.detach()
    assert ((fit.components.mean[order] - true_locs).abs() / stddev).max() < 0.4
    assert (fit.components.stddev[order] / stddev).log().abs().max() < 0.3
    if family.has_full_factors and D > 1:
        covariance = fit.marginal([0, 1]).covariance_matrix
        expected = truth.marginal([0, 1]).covariance_matrix.detach()
        torch.testing.assert_close(covariance, expected, rtol=0.1, atol=5.0)


@each_family
@pytest.mark.parametrize("seed", range(3))
def test_fits_are_at_least_as_likely_as_the_truth(family, seed):
    """And find the components that overlap."""
    truth = family.build(family.parameters(K=3, D=2, spread=2.0, seed=seed))
    samples = truth.sample((1000,))
    fit = family.distribution.from_samples(samples, 3, **options_of(family))
    gain = fit.log_prob(samples).mean() - truth.log_prob(samples).mean()
    assert -1e-4 < gain < 0.04  # half of a chi-square with at most 17 degrees of freedom / 1000


def steps_from_anywhere(family, x, K):
    """Components start with the samples that are nearest to some of them."""
    start = torch.nn.functional.one_hot(torch.cdist(x, x[:K]).argmin(-1), K).to(x)
    centered = "locs" not in family.parameters()
    return from_samples.expectation_maximization(family.distribution, x, start, centered)


@each_shared_shape
@pytest.mark.parametrize("D", [1, 3])
def test_steps_gain_likelihood(family, D):
    truth = family.build(family.parameters(K=3, D=D, spread=2.0))
    steps = steps_from_anywhere(family, truth.sample((500,)), 4)
    likelihoods = torch.tensor([next(steps)[1] for _ in range(100)], dtype=torch.float64)
    gains = likelihoods.diff()
    assert (gains > -1e-13).all()
    assert gains.sum() > 1e-3


@each_shared_shape
def test_steps_end_where_the_likelihood_is_stationary(family):
    """So the maximization is that of the family."""
    x = family.build(family.parameters(K=2, D=3, spread=2.0, scales=(0.3, 2.0))).sample((300,))
    steps = steps_from_anywhere(family, x, 2)
    for _ in range(700):
        parameters, _ = next(steps)
    parameters = leaves(parameters)
    log_likelihood = family.build(parameters).log_prob(x).mean()
    for gradient in gradients(log_likelihood, parameters).values():
        assert gradient.abs().max() < 1e-6


@each_family
def test_result(family):
    """Its dtype, options and history."""
    samples = torch.randn(100, 2, dtype=torch.float32, requires_grad=True)
    transport = list(family.distribution.transports)[-1]
    fit = family.distribution.from_samples(
        samples * 2, 3, transport=transport, weight_gradient="hybrid", **options_of(family)
    )
    assert fit.transport == transport
    assert fit.weight_gradient == "hybrid"
    for name in family.parameters():
        value = getattr(fit, name)
        assert value.dtype == torch.float32
        assert not value.requires_grad
    if family.distribution is GaussianScaleMixture:
        assert fit.component_scale.log().mean().abs() < 1e-6
        assert (fit.locs is None) == (options_of(family) != {})


@each_family
def test_seed(family):
    samples = torch.randn(50, 2)

    def likelihood(seed):
        fit = family.distribution.from_samples(samples, 2, seed=seed, **options_of(family))
        return float(fit.log_prob(samples).sum())

    assert likelihood(1) == likelihood(1)
    assert isinstance(likelihood(None), float)


@each_family
def test_units_do_not_matter(family):
    """A fit of samples in other units is the fit in other units."""
    samples = family.build(family.parameters(K=2, D=2, spread=3.0)).sample((300,))
    options = options_of(family)
    unit = torch.tensor([1e-4, 1e4], dtype=torch.float64)
    offset = None if options else torch.tensor([1.0, -1e6], dtype=torch.float64)
    moved = samples * unit + (0 if offset is None else offset)
    expected = family.distribution.from_samples(samples, 2, **options).affine(unit, offset)
    actual = family.distribution.from_samples(moved, 2, **options)
    torch.testing.assert_close(
        actual.log_prob(moved), expected.log_prob(moved), rtol=1e-4, atol=1e-4
    )


@each_family
@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@pytest.mark.parametrize(
    "samples",
    [
        torch.tensor([[1.0, 2.0], [3.0, 5.0]]),
        torch.randn(50, 1).expand(50, 2),
        torch.cat([torch.randn(50, 1), torch.ones(50, 1)], -1),
        torch.zeros(2, 2),
    ],
    ids=["as many as components", "on a line", "constant coordinate", "all the same"],
)
def test_degenerate_samples(family, samples):
    """Components may collapse, but stay distributions."""
    fit = family.distribution.from_samples(samples, 2, **options_of(family))
    assert fit.log_prob(samples).isfinite().all()
    assert fit.mean.isfinite().all()


@pytest.mark.parametrize(
    ("samples", "num_components", "words"),
    [
        (torch.zeros(5), 1, r"shape \(N, D\) .* got \(5,\)"),
        (torch.zeros(5, 2, 2), 1, r"shape \(N, D\) .* got \(5, 2, 2\)"),
        (torch.zeros(5, 0), 1, r"shape \(N, D\) .* got \(5, 0\)"),
        ([[0.0]], 1, r"shape \(N, D\) .* got list"),
        (torch.zeros(5, 2).long(), 1, "floating point"),
        (torch.full((5, 2), torch.nan), 1, "finite"),
        (torch.full((5, 2), torch.inf), 1, "finite"),
        (torch.randn(5, 2), 6, "between 1 and the number of samples, 5, but got 6"),
        (torch.randn(5, 2), 0, "between 1 and the number of samples, 5, but got 0"),
        (torch.zeros(0, 2), 1, "between 1 and the number of samples, 0, but got 1"),
    ],
)
@each_family
def test_bad_samples(family, samples, num_components, words):
    with pytest.raises(ValueError, match=words):
        family.distribution.from_samples(samples, num_components)


@pytest.mark.parametrize(
    "distribution",
    [MixtureOfDiagNormals, MixtureOfDiagNormalsSharedCovariance, MixtureOfNormals],
)
def test_only_a_scale_mixture_can_be_centered(distribution):
    with pytest.raises(ValueError, match=rf"{distribution.__name__} always has locs"):
        distribution.from_samples(torch.randn(5, 2), 2, centered=True)


@each_family
@pytest.mark.parametrize("module", ["sklearn.cluster", "sklearn.mixture"])
def test_missing_scikit_learn(family, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match="pip install .pyro-mixtures"):
        family.distribution.from_samples(torch.randn(5, 2), 2)
