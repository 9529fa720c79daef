"""Mixtures of any components under torch's function transforms and compiler."""

import pytest
import torch
from pyro.distributions import TorchDistribution
from torch.distributions import Categorical, Distribution, Laplace, LogNormal
from torch.func import grad, vmap

from pyro_mixtures import MixtureSameFamily
from tests.families.registry import (
    COMPONENTS,
    EXACT,
    bounded_cost,
    cost_gradients,
    each_components,
)
from tests.registry import relative_error

BATCH = 3


def without_gradient(parameters):
    return {name: value.detach() for name, value in parameters.items()}


@pytest.fixture
def no_validation():
    """Which looks at values. (Another fixture switches it on again.)"""
    for cls in (Distribution, TorchDistribution):
        cls._validate_args = False


@each_components
@pytest.mark.usefixtures("no_validation")
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_at_fixed_points(family):
    batched, mixture = family.example((BATCH,))
    points = mixture.sample((4,))
    event_dims = len(mixture.event_shape)

    def loss(parameters, points):
        q = family.mixture(parameters)
        return (bounded_cost(q.reparameterize(points), event_dims) - q.log_prob(points)).sum()

    actual = vmap(grad(loss), in_dims=(0, 1))(without_gradient(batched), points)
    each = [
        grad(loss)({name: value[b].detach() for name, value in batched.items()}, points[:, b])
        for b in range(BATCH)
    ]
    expected = {name: torch.stack([part[name] for part in each]) for name in batched}
    assert relative_error(actual, expected) < 1e-10


@each_components
@pytest.mark.usefixtures("no_validation")
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_over_one_parameter(family):
    """The others, and the points, are the same for all."""
    batched, _ = family.example((BATCH,))
    batched = without_gradient(batched)
    single = {name: value[0] for name, value in batched.items()}
    mixture = family.mixture(single)
    points, event_dims = mixture.sample((4,)), len(mixture.event_shape)

    def loss(parameters):
        q = family.mixture(parameters)
        return (bounded_cost(q.reparameterize(points), event_dims) - q.log_prob(points)).sum()

    for name, values in batched.items():
        lower, upper = zip(*(family.interval({**single, name: x}) for x in values), strict=True)
        if any(not torch.equal(*map(torch.as_tensor, ends[:2])) for ends in (lower, upper)):
            continue  # the points would not be in the support
        in_dims = ({other: 0 if other == name else None for other in single},)
        actual = vmap(grad(loss), in_dims=in_dims)({**single, name: values})
        each = [grad(loss)({**single, name: value}) for value in values]
        expected = {other: torch.stack([part[other] for part in each]) for other in single}
        assert relative_error(actual, expected) < 1e-10, name


# torch itself cannot draw the others under vmap: in-place or data-dependent random numbers
DRAWN_UNDER_VMAP = (
    "normal",
    "normal_scalar",
    "multivariate_normal",
    "low_rank_normal",
    "logistic",
    "gumbel",
    "laplace",
    "cauchy",
    "student_t",
    "log_normal",
    "half_normal",
    "half_cauchy",
    "exponential",
    "weibull",
    "pareto",
    "gamma",
    "gamma_scalar",
    "inverse_gamma",
    "chi2",
    "beta",
    "kumaraswamy",
    "uniform",
    "affine_tanh_logistic",
)


@pytest.mark.parametrize("name", DRAWN_UNDER_VMAP)
@pytest.mark.usefixtures("no_validation")
@pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:torch.searchsorted")
def test_vmap_of_rsample(name):
    family = COMPONENTS[name]
    batched, mixture = family.example((BATCH,))
    event_dims = len(mixture.event_shape)

    def loss(parameters):
        z = family.mixture(parameters).rsample((4,))
        return bounded_cost(z, event_dims).sum(), z

    values = without_gradient(batched)
    actual, samples = vmap(grad(loss, has_aux=True), randomness="different")(values)
    assert samples.shape == (BATCH, 4, *mixture.event_shape)
    assert len(samples.flatten(0, 1).unique(dim=0)) == BATCH * 4
    expected = cost_gradients(mixture, samples.movedim(0, 1), batched)
    assert relative_error(actual, expected) < 1e-10


COMPILED = [
    *("normal", "laplace", "log_normal"),
    # many terms of a series or nodes of quadrature make a large graph
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("gamma", "student_t", "beta")),
]


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.usefixtures("no_validation")
@pytest.mark.filterwarnings("default")  # torch warns about its own code
def test_compile(name):
    """A whole step as one graph, with the distribution made in it."""
    torch._dynamo.reset()
    family = COMPONENTS[name]
    parameters, mixture = family.example()
    points = mixture.sample((4,))

    def elbo(parameters, points):
        q = family.mixture(parameters, validate_args=False)
        z = q.reparameterize(points)
        return (bounded_cost(z, 1) - q.log_prob(z)).sum()

    results = []
    for step in (elbo, torch.compile(elbo, fullgraph=True, backend="aot_eager")):
        value = step(parameters, points)
        values = torch.autograd.grad(value, list(parameters.values()))
        results.append((value.detach(), dict(zip(parameters, values, strict=True))))
    (expected, expected_gradients), (actual, actual_gradients) = results
    torch.testing.assert_close(actual, expected, **EXACT)
    assert relative_error(actual_gradients, expected_gradients) < 1e-8


@pytest.mark.parametrize("way", ["vmap", "trace"])
@pytest.mark.parametrize("kind", [Laplace, LogNormal])
@pytest.mark.usefixtures("no_validation")
@pytest.mark.filterwarnings("ignore")  # of choices by values in torch's own code
def test_groups_of_the_score_term_are_those_of_the_samples(kind, way):
    """Where values are hidden, the groups are others: what is left to the score term is, too."""
    locs = torch.tensor([0.0, 2.0], dtype=torch.float64)
    logits = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    real = torch.linspace(-12, 14, 20_001, dtype=torch.float64)
    points = real.exp() if kind is LogNormal else real
    spacing = (points if kind is LogNormal else torch.ones_like(points)) * (real[1] - real[0])

    def cost(z):
        return (z.log() if kind is LogNormal else z).tanh() + 1

    def surrogate(logits):
        q = MixtureSameFamily(Categorical(logits=logits), kind(locs, torch.ones_like(locs)))
        z = q.reparameterize(points)
        value, score = cost(z), q.score_parts(z).score_function
        return (
            (value + value.detach() * score) * q.log_prob(points).exp().detach() * spacing
        ).sum()

    law = MixtureSameFamily(Categorical(logits=logits), kind(locs, torch.ones_like(locs)))
    mean = (law.log_prob(points).exp() * cost(points) * spacing).sum()
    (exact,) = torch.autograd.grad(mean, logits)
    if way == "vmap":
        actual = vmap(grad(surrogate))(logits.detach().expand(2, 2))[1]
    else:
        traced = torch.jit.trace(surrogate, logits, check_trace=False)
        (actual,) = torch.autograd.grad(traced(logits), logits)
    torch.testing.assert_close(actual, exact, rtol=1e-4, atol=1e-5)
