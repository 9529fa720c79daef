"""Moments, distribution functions and quantiles of mixtures of Normals."""

import pytest
import torch
from torch.distributions import Normal

from pyro_mixtures.distributions import MixtureOfDiagNormals
from tests.registry import assert_same, each_family, grid, randn

EXACT = {"rtol": 1e-9, "atol": 1e-10}


@each_family
def test_covariance_matrix(family):
    parameters = family.parameters(D=2)
    reference = family.reference(parameters)
    points, volume = grid(reference)
    mass = reference.log_prob(points).exp() * volume
    offset = points - reference.mean
    expected = (mass * offset.mT) @ offset
    assert_same(family.build(parameters).covariance_matrix, expected, parameters)


@each_family
def test_covariance_matrix_of_a_batch(family):
    mixture = family.build(family.parameters((2, 3), D=3))
    covariance = mixture.covariance_matrix
    assert covariance.shape == (2, 3, 3, 3)
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(variance, mixture.variance, **EXACT)


@each_family
@pytest.mark.parametrize("batch_shape", [(), (4,)])
def test_marginal_cdf_and_icdf(family, batch_shape):
    parameters = family.parameters(batch_shape, D=3)
    mixture, components = family.build(parameters), family.components(parameters)
    value = mixture.mean.detach() + mixture.stddev.detach() * randn(5, *batch_shape, 3)
    normal = Normal(components.mean, components.stddev)
    weights = mixture.log_weights.exp().unsqueeze(-1)
    expected = (weights * normal.cdf(value.unsqueeze(-2))).sum(-2)
    assert_same(mixture.marginal_cdf(value), expected, parameters)
    quantiles = mixture.marginal_icdf(expected.detach())
    assert not quantiles.requires_grad
    torch.testing.assert_close(quantiles, value, **EXACT)


@each_family
def test_cdf_and_icdf(family):
    mixture = family.build(family.parameters((2,), D=1))
    value = randn(7, 2, 1).requires_grad_()
    probability = mixture.cdf(value)
    assert probability.shape == (7, 2)
    (density,) = torch.autograd.grad(probability.sum(), value)
    torch.testing.assert_close(density.squeeze(-1), mixture.log_prob(value).exp(), **EXACT)
    torch.testing.assert_close(mixture.icdf(probability.detach()), value.detach(), **EXACT)
    ends = mixture.icdf(torch.tensor([[0.0], [1.0]]))
    assert torch.equal(ends[..., 0], torch.tensor([[-torch.inf] * 2, [torch.inf] * 2]).double())


def test_quantiles_ignore_components_without_weight():
    logits = torch.tensor([0.0, -torch.inf])
    mixture = MixtureOfDiagNormals(torch.tensor([[1.0], [1e30]]), torch.ones(2, 1), logits)
    torch.testing.assert_close(mixture.icdf(torch.tensor(0.5)), torch.tensor([1.0]))


@each_family
def test_cdf_and_icdf_are_for_one_dimension(family):
    mixture = family.build(family.parameters(D=2))
    with pytest.raises(NotImplementedError, match="cdf .* D = 2; use marginal_cdf"):
        mixture.cdf(torch.zeros(2))
    with pytest.raises(NotImplementedError, match="icdf .* D = 2; use marginal_icdf"):
        mixture.icdf(torch.tensor(0.5))


@pytest.mark.parametrize("bad", [-0.1, 1.5, torch.nan])
def test_quantiles_of_what_is_no_probability(bad):
    mixture = MixtureOfDiagNormals(torch.zeros(2, 1), torch.ones(2, 1), torch.zeros(2))
    for quantile in (mixture.icdf, mixture.marginal_icdf):
        with pytest.raises(ValueError, match=r"probabilities in \[0, 1\], but got"):
            quantile(bad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_quantiles_in_half_precision(dtype):
    parameters = (torch.zeros(2, 1), torch.ones(2, 1), torch.zeros(2))
    mixture = MixtureOfDiagNormals(*(x.to(dtype) for x in parameters))
    quantile = mixture.marginal_icdf(0.84)
    assert quantile.dtype == dtype
    assert float(quantile) == pytest.approx(0.9945, abs=0.01)
