"""The expectation of each estimator's gradient, integrated on a grid instead of sampled."""

import math
from unittest import mock

import pytest
import torch

from pyro_mixtures.estimators import ESTIMATORS, marginalized
from tests.estimators.registry import CASES, LEARNED, each, estimated, sample_at, score_of
from tests.registry import COSTS, FAMILIES, gradients, grid, leaves, randn, relative_error

TOLERANCE = 1e-8
SCALES = {
    1: (0.2, 5.0),
    2: ((0.25, 0.6), (2.5, 1.2)),  # narrow and wide in one coordinate keeps the grid small
}
CORNERS = ["coinciding", "zero weight", "tiny weight", "one component"]


def test_every_estimator_is_judged():
    assert CASES.keys() == ESTIMATORS.keys() | LEARNED.keys()


def exact_gradients(family, parameters, cost, refinement=1):
    """Points, cost and slope there, mass, and the exact gradient of the expected cost."""
    reference = family.reference(parameters)
    points, cell = grid(reference, refinement)
    density = reference.log_prob(points).exp()
    points.requires_grad_()
    value = cost(points)
    (slope,) = torch.autograd.grad(value.sum(), points)
    points, value = points.detach(), value.detach()
    exact = gradients((density * value * cell).sum(), parameters)
    return points, value, slope, density.detach() * cell, exact


def errors(name, family, parameters, costs):
    """Of the expected gradient: that of the samples, and of the score term where there is one."""
    found = {}
    for label in costs:
        case = exact_gradients(family, parameters, COSTS[label], CASES[name].refinement)
        points, value, slope, mass, exact = case
        q = estimated(name, family.build(parameters))
        z = sample_at(q, points)
        assert torch.equal(z, points)
        surrogate = (score_of(q, z) * value * mass).sum()
        if z.requires_grad:
            surrogate = surrogate + (z * slope * mass.unsqueeze(-1)).sum()
        size = float((slope.abs().sum(-1) * mass).sum())
        found[label] = relative_error(gradients(surrogate, parameters), exact, size)
    return found


@each(unbiased=True)
@pytest.mark.parametrize("D", [1, 2])
def test_expected_gradient(name, family, D):
    parameters = family.parameters(K=4, D=D, scales=SCALES[D], seed=1)
    found = errors(name, family, parameters, ["cubic", "cosine", "product"])
    assert max(found.values()) < TOLERANCE, found


@each(unbiased=True, score=True)
@pytest.mark.parametrize("D", [1, 2])
def test_several_groups(name, family, D):
    parameters = family.parameters(K=4, D=D, **family.groups, seed=2)
    found = errors(name, family, parameters, ["cosine", "quartic"])
    assert max(found.values()) < TOLERANCE, found


@pytest.mark.parametrize("corner", CORNERS)
@each(unbiased=True)
def test_corners(name, family, corner):
    K = 1 if corner == "one component" else 3
    parameters = family.parameters(K=K, D=1, scales=(0.8, 1.4), spread=2.0, seed=3)
    with torch.no_grad():
        match corner:
            case "coinciding":
                for parameter, letters in family.distribution.component_parameters.items():
                    if letters.startswith("K") and parameter in parameters:
                        parameters[parameter][1] = parameters[parameter][0]
            case "zero weight":
                parameters["component_logits"][1] = -torch.inf
            case "tiny weight":
                parameters["component_logits"][1] = -200.0
    found = errors(name, family, parameters, ["cubic", "cosine"])
    assert max(found.values()) < TOLERANCE, found


@pytest.mark.parametrize("family", [pytest.param(x, id=name) for name, x in FAMILIES.items()])
@pytest.mark.parametrize("D", [1, 2])
def test_marginalized(family, D):
    """Each component on a grid of its own: a common one of the random numbers."""
    parameters = family.parameters(K=3, D=D, scales=(0.5, 1.5), seed=1)
    with torch.no_grad():
        parameters["component_logits"][0] = -torch.inf
    mixture = family.build(parameters)
    axis = torch.arange(-9, 9, 0.4, dtype=torch.float64)
    noise = torch.cartesian_prod(*[axis] * D).reshape(-1, D)
    weights = (-noise.square() / 2).exp().prod(-1) * (0.4 / math.sqrt(2 * math.pi)) ** D
    repeated = weights.repeat_interleave(3) * len(noise)  # the estimator takes the mean

    def on_a_grid(shape, **_):
        assert shape == noise.shape
        return noise

    for label in ("cubic", "cosine", "product"):
        *_, slope, mass, exact = exact_gradients(family, parameters, COSTS[label])
        size = float((slope.abs().sum(-1) * mass).sum())
        with mock.patch.object(torch, "randn", on_a_grid):
            value = marginalized(
                mixture, lambda z, f=COSTS[label]: repeated * f(z), num_samples=len(noise)
            )
        assert relative_error(gradients(value, parameters), exact, size) < TOLERANCE


@each(unbiased=True)
def test_batch_and_expand(name, family):
    """The entries of a batch stay apart, and expanded dimensions hold samples."""
    parameters = family.parameters((2,), K=3, D=2, seed=5)
    q = estimated(name, family.build(parameters)).expand((3, 2))
    points = q.sample((4,))
    weights = randn(4, 3, 2, 2)

    def gradient(q, points, weights, parameters):
        z = sample_at(q, points)
        surrogate = (score_of(q, z) * weights.sum(-1)).sum() + (z * weights).sum()
        return gradients(surrogate, parameters)

    batched = gradient(q, points, weights, parameters)
    for b in range(2):
        alone = leaves({key: value[b] for key, value in parameters.items()})
        single = estimated(name, family.build(alone))
        expected = gradient(single, points[:, :, b], weights[:, :, b], alone)
        assert relative_error({k: v[b] for k, v in batched.items()}, expected) < TOLERANCE
