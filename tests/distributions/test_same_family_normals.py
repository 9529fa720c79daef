"""Mixtures of Normals are those of the classes made for them."""

import functools
import math

import pytest
import torch
from torch.distributions import (
    Categorical,
    Independent,
    Laplace,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
)

from pyro_mixtures import MixtureOfDiagNormals, MixtureOfNormals, MixtureSameFamily
from tests.families.registry import EXACT
from tests.pairwise import in_pairs
from tests.registry import gradients, leaves, randn, random_factor, relative_error, same_group

K = 3


# Normal components, flat and in the shape that they are given in


def diagonal(event_shape, batch_shape=(2,), spread=1.0):
    shape = (*batch_shape, K, *event_shape)
    parameters = leaves(
        {
            "loc": 0.7 + spread * randn(*shape),
            "scale": (0.4 * randn(*shape)).exp(),
            "logits": randn(*batch_shape, K),
        }
    )
    loc, scale, logits = parameters.values()
    components = Normal(loc, scale)
    if event_shape:
        components = Independent(components, len(event_shape))
    flat = (*batch_shape, K, math.prod(event_shape))
    build = functools.partial(MixtureOfDiagNormals, loc.reshape(flat), scale.reshape(flat), logits)
    return parameters, components, build


def full(batch_shape=(2,), spread=1.0):
    loc = 0.7 + spread * randn(*batch_shape, K, 2)
    scale_tril = random_factor((0.4 * randn(*batch_shape, K, 2)).exp(), randn)
    parameters = leaves({"loc": loc, "scale_tril": scale_tril, "logits": randn(*batch_shape, K)})
    loc, scale_tril, logits = parameters.values()
    components = MultivariateNormal(loc, scale_tril=scale_tril.tril())
    build = functools.partial(MixtureOfNormals, loc, scale_tril.tril(), logits)
    return parameters, components, build


def by_covariance(batch_shape=(2,), spread=1.0):
    parameters, *_ = full(batch_shape, spread)
    loc, factor, logits = parameters.values()
    parameters = leaves({"loc": loc, "covariance": factor @ factor.mT, "logits": logits})
    loc, covariance, logits = parameters.values()
    components = MultivariateNormal(loc, covariance)
    build = functools.partial(MixtureOfNormals, loc, torch.linalg.cholesky(covariance), logits)
    return parameters, components, build


def low_rank(batch_shape=(2,), spread=1.0):
    parameters = leaves(
        {
            "loc": 0.7 + spread * randn(*batch_shape, K, 3),
            "cov_factor": randn(*batch_shape, K, 3, 1),
            "cov_diag": (0.4 * randn(*batch_shape, K, 3)).exp(),
            "logits": randn(*batch_shape, K),
        }
    )
    loc, factor, diag, logits = parameters.values()
    covariance = factor @ factor.mT + diag.diag_embed()
    components = LowRankMultivariateNormal(loc, factor, diag)
    build = functools.partial(MixtureOfNormals, loc, torch.linalg.cholesky(covariance), logits)
    return parameters, components, build


NORMALS = {
    "scalar": functools.partial(diagonal, ()),
    "vector": functools.partial(diagonal, (2,)),
    "matrix": functools.partial(diagonal, (2, 3)),
    "full": full,
    "covariance": by_covariance,
    "low rank": low_rank,
}
each_normal = pytest.mark.parametrize("make", NORMALS.values(), ids=NORMALS)


def cost(z, event_dims):
    """Of vectors that differ in their coordinates."""
    z = z.unsqueeze(-1).flatten(z.dim() - event_dims)
    return (z * torch.arange(1, z.shape[-1] + 1)).sum(-1).sin() + 0.1 * z.pow(3).sum(-1)


def both(make, **options):
    parameters, components, build = make()
    mixture = MixtureSameFamily(Categorical(logits=parameters["logits"]), components, **options)
    return parameters, mixture, build(**options)


@in_pairs
@each_normal
@pytest.mark.parametrize("transport", ["displacement", "telescoping"])
@pytest.mark.parametrize("weight_gradient", ["pathwise", "clustered", "hybrid"])
def test_normals_are_those_of_their_own_class(make, transport, weight_gradient):
    """Density, groups, score term and, at the same points, gradients."""
    make = functools.partial(make, spread=2.5)  # several groups
    parameters, mixture, own = both(make, transport=transport, weight_gradient=weight_gradient)
    assert mixture.transport == transport
    event_dims = len(mixture.event_shape)
    points = mixture.sample((4,))
    assert points.shape == (4, 2, *mixture.event_shape)
    flat = points.reshape(4, 2, -1)
    parts, expected = mixture.score_parts(points), own.score_parts(flat)
    torch.testing.assert_close(parts.log_prob, expected.log_prob, **EXACT)
    torch.testing.assert_close(mixture.log_prob(points), own.log_prob(flat), **EXACT)
    torch.testing.assert_close(
        mixture.component_log_prob(points), own.component_log_prob(flat), **EXACT
    )
    torch.testing.assert_close(
        mixture.responsibilities(points), own.responsibilities(flat), **EXACT
    )
    results = []
    for q, value, dims in ((mixture, points, event_dims), (own, flat, 1)):
        z = q.reparameterize(value)
        assert torch.equal(z, value)
        score = torch.as_tensor(q.score_parts(value).score_function).expand(4, 2)
        surrogate = cost(z, dims) - q.log_prob(z) + torch.arange(8).reshape(4, 2) * score
        results.append(gradients(surrogate, parameters))
    assert relative_error(*results) < 1e-10
    if weight_gradient == "clustered":
        assert torch.equal(same_group(mixture), same_group(own))
        assert not same_group(mixture).all()


@each_normal
def test_expanded_normals(make):
    parameters, mixture, own = both(make)
    mixture, own = mixture.expand((5, 2)), own.expand((5, 2))
    points = mixture.sample((3,))
    assert points.shape == (3, 5, 2, *mixture.event_shape)
    flat = points.reshape(3, 5, 2, -1)
    torch.testing.assert_close(mixture.log_prob(points), own.log_prob(flat), **EXACT)
    results = [
        gradients(cost(q.reparameterize(value), dims).sum(), parameters)
        for q, value, dims in ((mixture, points, len(mixture.event_shape)), (own, flat, 1))
    ]
    assert relative_error(*results) < 1e-10


@each_normal
def test_moments_and_shapes_of_normals(make):
    """Those of torch's class, and samples that have them."""
    _, components, _ = make(batch_shape=())
    weights = Categorical(logits=randn(K))
    mixture = MixtureSameFamily(weights, components)
    reference = torch.distributions.MixtureSameFamily(weights, components)
    for name in ("mean", "variance", "stddev"):
        torch.testing.assert_close(getattr(mixture, name), getattr(reference, name), **EXACT)
    z = mixture.sample((20_000,))
    error = mixture.stddev / math.sqrt(20_000)
    assert ((z.mean(0) - mixture.mean).abs() < 5 * error).all()
    torch.testing.assert_close(z.var(0), mixture.variance, rtol=0.1, atol=0)


def test_default_transports():
    weights = Categorical(logits=torch.zeros(2))
    normal = MixtureSameFamily(weights, Independent(Normal(torch.zeros(2, 3), 1.0), 1))
    assert normal.transport == normal.expand((3,)).transport == "displacement"
    scalar = MixtureSameFamily(weights, Normal(torch.zeros(2), 1.0))
    assert scalar.transport == scalar.expand((3,)).transport == "telescoping"
    laplace = MixtureSameFamily(weights, Laplace(torch.zeros(2), 1.0))
    assert laplace.transport == laplace.expand((3,)).transport == "telescoping"
    explicit = MixtureSameFamily(weights, Laplace(torch.zeros(2), 1.0), transport="telescoping")
    assert explicit.transport == "telescoping"


def test_cdf_of_normals():
    parameters, components, _ = diagonal(())
    weights = Categorical(logits=parameters["logits"])
    mixture = MixtureSameFamily(weights, components)
    reference = torch.distributions.MixtureSameFamily(weights, components)
    value = randn(5, 2)
    torch.testing.assert_close(mixture.cdf(value), reference.cdf(value), **EXACT)
    with pytest.raises(NotImplementedError, match="D = 2; use marginal_cdf"):
        both(NORMALS["vector"])[1].cdf(randn(2))
