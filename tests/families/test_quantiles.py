"""Quantiles of every family with distribution functions, to the last digits of these."""

import numpy
import pytest
import torch
from torch.distributions import Beta, Categorical, Gamma, Normal, StudentT, Uniform

from pyro_mixtures import Mixture, MixtureSameFamily
from pyro_mixtures.components import Normals
from pyro_mixtures.components.quantiles import mixture_tails
from pyro_mixtures.families.support import has_tails
from tests.families.registry import EXACT, each_components

LEVELS = torch.cat(
    [
        torch.logspace(-14, -1, 14, dtype=torch.float64),
        torch.linspace(0.15, 0.85, 8, dtype=torch.float64),
        1 - torch.logspace(-1, -14, 14, dtype=torch.float64),
    ]
)


def number(family):
    """A mixture of numbers, if the family has them."""
    if 1 not in family.dims:
        return None
    parameters = family.parameters((2,), D=1)
    mixture = family.mixture(parameters)
    return (parameters, mixture) if mixture.event_shape.numel() == 1 else None


def offers_quantiles(mixture):
    components = mixture.components
    return isinstance(components, Normals) or all(map(has_tails, components.distributions))


@each_components
def test_quantiles_of_numbers(family):
    """Both tails change sides between a quantile and the number before, but for rounding."""
    if (found := number(family)) is None:
        return
    _, mixture = found
    if not offers_quantiles(mixture):
        with pytest.raises(NotImplementedError, match="cdf and icdf, but got"):
            mixture.icdf(LEVELS.unsqueeze(-1))
        return
    level = LEVELS.unsqueeze(-1).expand(-1, 2)
    quantile = mixture.icdf(level)
    assert quantile.shape == (len(LEVELS), 2, *mixture.event_shape)
    assert not quantile.requires_grad
    here = quantile.reshape(len(LEVELS), 2)
    before = here.nextafter(torch.full_like(here, -torch.inf))
    (cdf, sf), (cdf_before, sf_before) = (tails(mixture, z) for z in (here, before))
    few = 1 + 100 * torch.finfo(torch.float64).eps
    low = level < 0.5
    assert (torch.where(low, cdf * few >= level, sf <= few * (1 - level))).all()
    assert (torch.where(low, cdf_before <= few * level, sf_before * few >= 1 - level)).all()
    torch.testing.assert_close(mixture.cdf(quantile), level, rtol=0, atol=1e-13)


def tails(mixture, z):
    """Of numbers ``(S, B)``."""
    with torch.no_grad():
        both = mixture_tails(mixture.components, mixture.log_weights, z.T.unsqueeze(-1))
    return [x.squeeze(-1).T for x in both]


@each_components
def test_mass_below_a_quantile(family):
    """By quadrature of the density, from quantile to quantile."""
    found = number(family)
    if found is None or not offers_quantiles(found[1]):
        return
    _, mixture = found
    level = torch.linspace(0.05, 0.95, 101, dtype=torch.float64)
    quantile = mixture.icdf(level.unsqueeze(-1)).reshape(len(level), 2)
    nodes, weights = gauss_legendre()
    width = (quantile[1:] - quantile[:-1]).unsqueeze(-1)
    z = quantile[:-1].unsqueeze(-1) + width * nodes  # (S, B, N)
    points = z.movedim(-1, 0).reshape(len(nodes), -1, 2, *mixture.event_shape)
    density = mixture.log_prob(points).exp().detach()  # (N, S, B)
    mass = (density.movedim(0, -1) * width * weights).sum(-1)
    torch.testing.assert_close(mass, torch.full_like(mass, 0.9 / 100), rtol=1e-3, atol=0)
    # a kink lies in few of them
    assert (mass * 100 / 0.9 - 1).abs().quantile(0.9) < 1e-8


def gauss_legendre():
    nodes, weights = (torch.from_numpy(x) for x in numpy.polynomial.legendre.leggauss(8))
    return (nodes + 1) / 2, weights / 2


@each_components
def test_ends_are_those_of_the_support(family):
    found = number(family)
    if found is None or not offers_quantiles(found[1]):
        return
    parameters, mixture = found
    ends = mixture.icdf(torch.tensor([[0.0], [1.0]]))
    for end, expected in zip(ends, family.interval(parameters), strict=True):
        expected = torch.as_tensor(expected, dtype=torch.float64)
        if expected.dim():
            expected = expected[:, 0].reshape(end.shape)
        assert torch.equal(end, expected.expand_as(end))


@each_components
def test_marginals_of_vectors(family):
    parameters, mixture = family.example((2,))
    if not offers_quantiles(mixture):
        with pytest.raises(NotImplementedError, match="cdf and icdf, but got"):
            mixture.marginal_icdf(torch.tensor(0.5))
        return
    dim = mixture.event_shape.numel()
    level = torch.rand(5, 2, dim, dtype=torch.float64)
    quantile = mixture.marginal_icdf(level)
    assert quantile.shape == level.shape
    torch.testing.assert_close(mixture.marginal_cdf(quantile), level, rtol=0, atol=1e-13)
    expanded = mixture.expand((3, 2)).marginal_icdf(level.unsqueeze(1))
    torch.testing.assert_close(expanded, quantile.unsqueeze(1).expand(5, 3, 2, dim), **EXACT)
    assert mixture.marginal_icdf(0.5).shape == (2, dim)


@pytest.mark.parametrize("bad", [-0.1, 1.5, torch.nan])
def test_what_is_no_probability(bad):
    weights, components = Categorical(torch.ones(2)), Gamma(torch.tensor([1.0, 2.0]), 1.0)
    with pytest.raises(ValueError, match=r"probabilities in \[0, 1\], but got"):
        MixtureSameFamily(weights, components).icdf(torch.tensor([0.5, bad]))
    unchecked = MixtureSameFamily(weights, components, validate_args=False)
    assert unchecked.icdf(torch.tensor([0.5, bad])).isnan().tolist() == [False, True]


@pytest.mark.parametrize("size", [1e-300, 1e-3, 1e300])
def test_any_scale(size):
    """Of components of scales that have nothing to do with each other."""
    scale = torch.tensor([1.0, size], dtype=torch.float64)
    mixture = MixtureSameFamily(Categorical(torch.ones(2).double()), Normal(0 * scale, scale))
    level = torch.tensor([0.2, 0.3, 0.7, 0.8], dtype=torch.float64)
    quantile = mixture.icdf(level)
    torch.testing.assert_close(mixture.cdf(quantile), level, rtol=1e-14, atol=0)
    torch.testing.assert_close(quantile, -quantile.flip(0), rtol=1e-12, atol=0)


def test_of_different_families():
    shapes = torch.tensor([0.5, 0.01], dtype=torch.float64)
    parts = [Beta(*shapes), Uniform(*torch.tensor([0.0, 1.0]).double())]
    mixture = Mixture(Categorical(torch.ones(2).double()), parts)
    assert mixture.icdf(torch.tensor([0.0, 1.0])).tolist() == [0, 1]
    level = torch.tensor([1e-30, 1e-5, 0.3], dtype=torch.float64)
    torch.testing.assert_close(mixture.cdf(mixture.icdf(level)), level, rtol=1e-13, atol=0)


def test_digits_of_python_numbers():
    """They have those of the parameters."""
    loc = torch.tensor([0.0, 1.0], dtype=torch.float64)
    mixture = MixtureSameFamily(Categorical(torch.ones(2).double()), StudentT(3.0, loc, 1.0))
    expected = mixture.icdf(torch.tensor(0.1, dtype=torch.float64))
    assert torch.equal(mixture.icdf(0.1), expected)
