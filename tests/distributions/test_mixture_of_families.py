"""Which families a list of components may mix, and what each of them is worth in it."""

import math

import pytest
import torch
from torch.distributions import (
    AffineTransform,
    Beta,
    Categorical,
    Gamma,
    HalfNormal,
    InverseGamma,
    Kumaraswamy,
    Laplace,
    LogNormal,
    MultivariateNormal,
    Normal,
    StudentT,
    TransformedDistribution,
    Weibull,
    constraints,
)

from pyro_mixtures import Mixture, MixtureSameFamily
from tests.families.registry import EXACT, SAME, cost_gradients
from tests.registry import gradients, leaves, relative_error

ONE = torch.ones((), dtype=torch.float64)


@pytest.mark.parametrize(
    ("parts", "support"),
    [
        ([Normal(ONE, ONE), Laplace(ONE, ONE)], constraints.real),
        ([LogNormal(ONE, ONE), Weibull(ONE, ONE)], constraints.positive),
        ([Kumaraswamy(ONE, ONE), Beta(ONE, ONE)], constraints.unit_interval),
    ],
    ids=["real", "positive", "unit interval"],
)
def test_support(parts, support):
    mixture = Mixture(Categorical(logits=torch.zeros(2).double()), parts)
    value = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
    assert mixture.support.event_dim == 0
    assert torch.equal(mixture.support.check(value), support.check(value))


def test_vectors_have_no_distribution_function():
    parts = [MultivariateNormal(torch.zeros(2), torch.eye(2)) for _ in range(2)]
    with pytest.raises(NotImplementedError, match="D = 2; use marginal_cdf"):
        Mixture(Categorical(logits=torch.zeros(2)), parts).cdf(torch.zeros(2))


def test_sample_moments():
    """Five standard errors of the mean and of two quantiles."""
    parts = [Gamma(3 * ONE, ONE), LogNormal(ONE, 0.3 * ONE), Weibull(ONE, 2 * ONE)]
    mixture = Mixture(Categorical(torch.tensor([0.2, 0.5, 0.3]).double()), parts)
    z = mixture.sample((100_000,))
    assert (z.mean() - mixture.mean).abs() < 5 * mixture.stddev / math.sqrt(100_000)
    for end in (1.0, 2.5):
        below = [part.cdf(torch.tensor(end, dtype=torch.float64)) for part in parts]
        expected = sum(w * p for w, p in zip((0.2, 0.5, 0.3), below, strict=True))
        deviation = (expected * (1 - expected) / 100_000) ** 0.5
        assert ((z < end).double().mean() - expected).abs() < 5 * deviation


def test_dead_components_are_never_drawn():
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 1.0], requires_grad=True)
    parts = [HalfNormal(1e-30), HalfNormal(1.0), HalfNormal(1e30), Gamma(1.0, 1.0)]
    z = Mixture(Categorical(logits=logits), parts).rsample((5000,))
    assert 1e-15 < z.min()
    assert z.max() < 1e15
    (gradient,) = torch.autograd.grad(z.sum(), logits)
    assert gradient[[0, 2]].tolist() == [0, 0]
    rest = torch.tensor([0.0, 1.0], requires_grad=True)
    moved = Mixture(Categorical(logits=rest), parts[1::2]).reparameterize(z)
    torch.testing.assert_close(gradient[1::2], torch.autograd.grad(moved.sum(), rest)[0])


PARTS = {
    "gamma": lambda: Gamma(3 * ONE, ONE),
    "log_normal": lambda: LogNormal(ONE, ONE),
    "weibull": lambda: Weibull(ONE, 2 * ONE),
    "shifted": lambda: TransformedDistribution(Gamma(ONE, ONE), [AffineTransform(0.0, 2 * ONE)]),
    "inverse_gamma": lambda: InverseGamma(3 * ONE, ONE),
}


@pytest.mark.parametrize("first", PARTS)
@pytest.mark.parametrize("second", PARTS)
def test_any_two_of_one_support(first, second):
    """Transformed or not, in any order: the gradient of the weight, by quadrature."""
    logits = torch.tensor([0.3, -0.4], dtype=torch.float64, requires_grad=True)
    mixture = Mixture(Categorical(logits=logits), [PARTS[first](), PARTS[second]()])
    z = torch.linspace(-7, 5, 5_001, dtype=torch.float64).exp()
    density = mixture.log_prob(z).exp()
    moved = mixture.reparameterize(z)
    estimate = torch.trapezoid(density.detach() * (moved / (1 + moved)).sin(), z)
    expected = torch.trapezoid(density * (z / (1 + z)).sin(), z)
    actual, exact = (gradients(x, {"logits": logits})["logits"] for x in (estimate, expected))
    torch.testing.assert_close(actual, exact, rtol=1e-3, atol=1e-4)
    if first != second:
        assert exact.abs().max() > 1e-3


NORMALS = ("normal", "normal_scalar", "multivariate_normal")
"""In two and more dimensions their weights' field averages over two orders of the coordinates."""

OTHER = ("low_rank_normal", "shared_affine_laplace")
"""One whose parameters have another field there, and a map that only one object can share."""


@pytest.mark.parametrize("name", [name for name in SAME if name not in OTHER])
def test_one_family_is_mixture_same_family(name):
    """Densities, and samples' gradients at fixed points."""
    family = SAME[name]
    parameters = family.parameters((2,), D=family.dimension)
    together = family.build(parameters)
    parts = [
        family.build({name: x[:, min(j, x.shape[1] - 1)] for name, x in parameters.items()})
        for j in range(3)
    ]
    weights = Categorical(logits=parameters["logits"])
    mixture = Mixture(weights, parts)
    same = MixtureSameFamily(weights, together, transport="telescoping")
    assert mixture.event_shape == same.event_shape
    assert mixture.batch_shape == same.batch_shape
    bound = 1 - 1e-9 if "tanh" in name else math.inf
    points = same.sample((5,)).clamp(-bound, bound)
    torch.testing.assert_close(mixture.log_prob(points), same.log_prob(points), **EXACT)
    actual, expected = (cost_gradients(q, points, parameters) for q in (mixture, same))
    if name in NORMALS and same.event_shape:
        del actual["logits"], expected["logits"]
    assert relative_error(actual, expected) < 1e-8


@pytest.mark.parametrize("weight_gradient", ["clustered", "hybrid"])
def test_score_parts(weight_gradient):
    """Groups of overlapping components share a term."""
    parameters = leaves({"logits": torch.tensor([0.2, -0.1, 0.4], dtype=torch.float64)})
    parts = [Normal(0 * ONE, ONE), Laplace(0.3 * ONE, ONE), StudentT(9 * ONE, 40 * ONE, ONE)]
    mixture = Mixture(
        Categorical(logits=parameters["logits"]), parts, weight_gradient=weight_gradient
    )
    z = mixture.rsample((7,))
    groups = [[0, 1], [2]] if weight_gradient == "clustered" else [[0], [1], [2]]
    responsibilities = mixture.responsibilities(z).detach()
    log_weights = mixture.log_weights
    expected = sum(
        (responsibilities[:, group].sum(-1) * log_weights[group].logsumexp(0)).sum()
        for group in groups
    )
    score = mixture.score_parts(z).score_function.sum()
    torch.testing.assert_close(
        gradients(score, parameters), gradients(expected, parameters), **EXACT
    )
