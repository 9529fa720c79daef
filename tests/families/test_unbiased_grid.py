"""The expectation of the backward pass, integrated on a grid instead of sampled.

A trapezoidal rule in a coordinate without ends converges exponentially; between kinks there are
Gauss-Legendre panels. Gradients of the quadrature itself, of the reference's density, are exact.
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from tests.families.registry import COMPONENTS, each_components, some_components
from tests.pairwise import in_pairs
from tests.registry import (
    Parameters,
    beside_its_score,
    gradients,
    leaves,
    relative_error,
    same_group,
)

TOLERANCE = 1e-8
NODES = {1: 2000, 2: 180}
SCALES = {1: (0.2, 5.0), 2: (0.5, 1.5)}
BEND = 4.0

COSTS = {
    "cubic": lambda z: z.pow(3).sum(-1),
    "cosine": lambda z: z.sum(-1).cos(),
    "quartic": lambda z: z.square().sum(-1).square(),
    "product": lambda z: z.prod(-1),
    "exponential": lambda z: (0.1 * z.sum(-1)).exp(),
}
BOUNDED_COSTS = {
    "bump": lambda z: (-(z - 1).square().sum(-1) / 8).exp(),
    "odd": lambda z: z.sum(-1) * (-z.square().sum(-1) / 10).exp(),
    "cosine": lambda z: z.sum(-1).cos() * (-z.square().sum(-1) / 10).exp(),
    "product": lambda z: z.prod(-1) * (-z.square().sum(-1) / 10).exp(),
}


def costs_of(family, parameters: Parameters):
    """Of points ``(*X, E)``. Without moments they fall off towards the ends of the support."""
    if family.moments:
        return COSTS
    low, high = family.interval(parameters)
    if not is_end(high):
        return BOUNDED_COSTS
    return {
        name: lambda z, cost=cost: cost(z) * ((z - low) * (high - z)).square().prod(-1)
        for name, cost in BOUNDED_COSTS.items()
    }


def is_end(x: Tensor | float) -> bool:
    return isinstance(x, Tensor) or math.isfinite(x)


def reach(family, D: int, low, high) -> tuple[float, float]:
    """Ends of the coordinate on the line, beyond which nothing counts."""
    far = {1: 450.0, 2: 70.0}[D] if family.moments else 20.0
    if is_end(high):
        # one minus the point loses its digits there, and so do distances from ends beside zero
        return -80.0 if isinstance(low, float) and low == 0 else -36.0, 36.0
    return -95.0 if is_end(low) else -far, far


def axis(D: int, low: float, high: float, kinks: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights on the real line, with the same spacing near zero and less far away."""
    start, end = (math.asinh(x / BEND) for x in (low, high))
    if not kinks.numel():
        t = torch.linspace(start, end, NODES[D], dtype=torch.float64)
        weights = torch.full_like(t, (end - start) / (NODES[D] - 1))
    else:
        breaks = torch.linspace(start, end, 5, dtype=torch.float64)
        inner = (kinks[(kinks > low) & (kinks < high)] / BEND).asinh()
        breaks = torch.cat([inner, breaks]).unique()
        nodes, weights = map(torch.tensor, np.polynomial.legendre.leggauss(NODES[D] // 6))
        half = breaks.diff().unsqueeze(-1) / 2
        t = (breaks[:-1].unsqueeze(-1) + half * (1 + nodes)).flatten()
        weights = (half * weights).flatten()
    return BEND * t.sinh(), weights * BEND * t.cosh()


def on_line(s: Tensor, low, high) -> tuple[Tensor, Tensor]:
    """Points of an interval and their logarithmic slopes, in each coordinate."""
    if not is_end(low):
        return s, torch.zeros_like(s)
    if not is_end(high):
        return low + softplus(s), logsigmoid(s)
    width = torch.as_tensor(high - low, dtype=s.dtype)
    return low + width * s.sigmoid(), width.log() + logsigmoid(s) + logsigmoid(-s)


def quadrature(family, parameters: Parameters, D: int) -> tuple[Tensor, Tensor]:
    """Points ``(S, *E)`` and weights ``(S,)``; they move with the ends of the support."""
    low, high = family.interval(parameters)
    kinks = torch.zeros(0, D) if family.kinks is None else family.kinks(parameters).detach()
    axes = [axis(D, *reach(family, D, low, high), x) for x in kinks.T]
    s = torch.cartesian_prod(*(nodes for nodes, _ in axes)).reshape(-1, D)
    weights = torch.cartesian_prod(*(weights for _, weights in axes)).reshape(-1, D).prod(-1)
    assert len(s) < 100_000
    if family.event(D) == (D + 1,):  # sticks broken of a simplex
        log_left = logsigmoid(-s).cumsum(-1)
        before = torch.nn.functional.pad(log_left[:, :-1], (1, 0))
        log_z = logsigmoid(s) + before
        weights = weights * (log_z + logsigmoid(-s)).sum(-1).exp()
        return torch.cat([log_z, log_left[:, -1:]], -1).exp(), weights
    z, log_slope = on_line(s, low, high)
    inside = ((z > low) & (z < high)).all(-1)  # not rounded to an end
    z, weights = z[inside], (weights * log_slope.sum(-1).exp())[inside]
    if "factor" in parameters:
        factor, shift = (parameters[name].detach().squeeze(0) for name in ("factor", "shift"))
        return z @ factor.tril().mT + shift, weights * factor.diagonal().prod()
    return z.reshape(len(z), *family.event(D)), weights


def exact_and_expected(family, parameters: Parameters, D: int, names=None, **options):
    """For each cost the exact gradient of its expectation, that of the estimator, with the score
    term where it has one, and the expected size of the cost's slope: centred mixtures have
    gradients that vanish by symmetry."""
    moving, weights = quadrature(family, parameters, D)
    with torch.no_grad():
        counts = family.reference(parameters).log_prob(moving) > -600
    moving, weights = moving[counts], weights[counts]
    mass = family.reference(parameters).log_prob(moving).exp() * weights
    points = moving.detach()
    mixture = family.mixture(parameters, **options)
    z = mixture.reparameterize(points)
    score = torch.as_tensor(mixture.score_parts(z).score_function)
    for name, cost in costs_of(family, parameters).items():
        if names is not None and name not in names:
            continue
        exact = gradients((mass * value_of(cost, moving)).sum(), parameters)
        at = points.clone().requires_grad_()
        value = value_of(cost, at)
        (slope,) = torch.autograd.grad(value.sum(), at)
        pull = slope * mass.detach().reshape(mass.shape + (1,) * (slope.dim() - 1))
        surrogate = (z * pull).sum() + (score * value.detach() * mass.detach()).sum()
        yield name, exact, gradients(surrogate, parameters), float(pull.abs().sum())


def value_of(cost, z: Tensor) -> Tensor:
    """Of points ``(S,)`` or ``(S, E)``."""
    return cost(z.reshape(len(z), -1))


def worst_errors(
    family, parameters: Parameters, D: int, names: tuple[str, ...] | None = None, **options
) -> dict[str, float]:
    """By the costs' names: all of them, or some."""
    results = exact_and_expected(family, parameters, D, names, **options)
    return {name: relative_error(expected, exact, size) for name, exact, expected, size in results}


each_in_one_or_two = pytest.mark.parametrize(
    ("family", "transport", "D"),
    [
        pytest.param(family, transport, D, id=f"{name}-{transport}-{D}")
        for name, family in COMPONENTS.items()
        for transport in family.transports
        for D in family.dims
        if D <= 2
    ],
)
each_kind = some_components(
    "laplace",
    "half_cauchy",
    "gamma",
    "dirichlet",
    "multivariate_normal",
    "multivariate_student_t",
    "shared_affine_laplace",
    "mixed_real",
    "mixed_elliptical",
)


@each_in_one_or_two
def test_pathwise(family, transport, D):
    parameters = family.parameters(K=4, D=D, scales=SCALES[D], seed=1)
    names = None if D == 1 else ("cosine", "product")  # neither is a sum over coordinates
    errors = worst_errors(family, parameters, D, names, transport=transport)
    assert max(errors.values()) < TOLERANCE, errors


@each_kind
def test_one_component(family):
    parameters = family.parameters(K=1, D=1)
    for _, exact, expected, size in exact_and_expected(family, parameters, 1):
        assert relative_error(expected, exact, size) < TOLERANCE
        assert expected["logits"] == 0


@in_pairs
@each_kind
@pytest.mark.parametrize("weight_gradient", ["pathwise", "hybrid"])
@pytest.mark.parametrize("corner", ["coinciding", "zero weight", "far and dead", "tiny weight"])
def test_corners(family, weight_gradient, corner):
    parameters = family.parameters(K=4, D=1, scales=(0.8, 1.4), seed=3)
    with torch.no_grad():
        match corner:
            case "coinciding":
                for value in parameters.values():
                    if len(value) == 4:
                        value[1] = value[0]
            case "zero weight":
                parameters["logits"][1] = -torch.inf
            case "far and dead":
                parameters["logits"][1] = -torch.inf
                for name in {"loc", "scale", "rate"} & parameters.keys():
                    parameters[name][1] *= 1e6
            case "tiny weight":
                parameters["logits"][1] = -200.0
    errors = worst_errors(family, parameters, 1, weight_gradient=weight_gradient)
    errors.pop("product")  # linear in D = 1, where its gradient by a scale vanishes
    assert max(errors.values()) < TOLERANCE, errors


GROUPED = (
    "logistic",
    "laplace",
    "weibull",
    "gamma",
    "multivariate_normal",
    "multivariate_student_t",
    "mixed_real",
    "mixed_positive",
    "mixed_elliptical",
)


def grouped_parameters(family, D: int) -> Parameters:
    """Of four components in several groups, one of them with several members."""
    parameters = family.parameters(K=4, D=D, scales=(0.45, 1.5), spread=2.3, seed=2)
    mixture = family.mixture(parameters, weight_gradient="clustered")
    assert 4 < same_group(mixture).sum() < 16
    return parameters


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize(
    ("weight_gradient", "D"), [("clustered", 1), ("clustered", 2), ("hybrid", 1)]
)
def test_with_score_term(name, weight_gradient, D):
    family = COMPONENTS[name]
    parameters = grouped_parameters(family, D)
    errors = worst_errors(family, parameters, D, weight_gradient=weight_gradient)
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("weight_gradient", ["clustered", "hybrid"])
def test_without_the_score_term(name, weight_gradient):
    """The samples carry the whole gradient, if the loss leaves the score term aside.

    A loss that uses it with another cost, here zero, shows that the test above sees the term.
    """
    family = COMPONENTS[name]
    parameters = grouped_parameters(family, 1)
    points, weights = quadrature(family, parameters, 1)
    mass = family.reference(parameters).log_prob(points).exp() * weights
    exact = gradients((mass * value_of(BOUNDED_COSTS["bump"], points)).sum(), parameters)["logits"]
    mixture = family.mixture(parameters, weight_gradient=weight_gradient)

    def found(z):
        value = value_of(BOUNDED_COSTS["bump"], z)
        return gradients((mass.detach() * value).sum(), parameters)["logits"]

    moved = mixture.reparameterize(points)
    assert (found(beside_its_score(mixture, moved)) - exact).abs().max() > 0.05 * exact.abs().max()
    moved = mixture.reparameterize(points)
    assert (found(moved) - exact).abs().max() < 1e-4 * exact.abs().max()


@each_components
@pytest.mark.parametrize("weight_gradient", ["pathwise", "hybrid"])
def test_batch(family, weight_gradient):
    """The entries of a batch stay apart."""
    parameters = family.parameters((3,), K=3, D=1, seed=5)
    each = [leaves({name: x[b] for name, x in parameters.items()}) for b in range(3)]
    points = torch.stack([family.component_samples(p, 20).flatten(0, 1) for p in each], 1)
    pull = (points + 0.5).cos()  # (S, 3, *E)
    batched = gradients(
        family.mixture(parameters, weight_gradient=weight_gradient).reparameterize(points),
        parameters,
        pull,
    )
    for b, single in enumerate(each):
        mixture = family.mixture(single, weight_gradient=weight_gradient)
        alone = gradients(mixture.reparameterize(points[:, b]), single, pull[:, b])
        entry = {name: x[b] for name, x in batched.items()}
        assert relative_error(entry, alone) < TOLERANCE
