"""The expectation of the backward pass, integrated on a grid instead of sampled.

Points of a grid stand for the samples and ``q(z) grad f(z) dA`` for the incoming gradient: in one
and two dimensions that judges an estimator without sampling error.
"""

from types import SimpleNamespace

import pyro.distributions.diag_normal_mixture as pyro_mixture
import pytest
import torch

from pyro_mixtures.distributions import UnusedScoreWarning
from tests.pairwise import in_pairs
from tests.registry import (
    COSTS,
    FAMILIES,
    beside_its_score,
    each_component,
    each_family,
    each_transport,
    gradients,
    grid,
    leaves,
    relative_error,
    same_group,
    sample_at,
)

TOLERANCE = 1e-8
REFINEMENT = {"implicit": 3}
SCALES = {
    1: (0.2, 5.0),
    2: ((0.25, 0.6), (2.5, 1.2)),  # narrow and wide in one coordinate keeps the grid small
}


def exact_and_expected(family, parameters, costs, **options):
    """For each cost the exact gradient of its expectation, that of the estimator, with the score
    term where it has one, and the expected size of the cost's slope: centred mixtures have
    gradients that vanish by symmetry."""
    reference = family.reference(parameters)
    refinement = REFINEMENT.get(options.get("transport"), 1)
    points, cell = grid(reference, refinement)
    assert len(points) < 100_000 * refinement
    density = reference.log_prob(points).exp()
    mass = density.detach() * cell
    mixture = family.build(parameters, **options)
    z = sample_at(mixture, points)
    score = torch.as_tensor(mixture.score_parts(z).score_function)
    for cost in costs.values():
        at = points.clone().requires_grad_()
        value = cost(at)
        (slope,) = torch.autograd.grad(value.sum(), at)
        exact = gradients((density * value.detach() * cell).sum(), parameters)
        surrogate = (z * slope * mass.unsqueeze(-1)).sum() + (score * value.detach() * mass).sum()
        size = (slope.abs().sum(-1) * mass).sum()
        yield exact, gradients(surrogate, parameters), float(size)


def some(*names):
    return {name: COSTS[name] for name in names}


def worst_error(family, parameters, costs=COSTS, **options):
    results = exact_and_expected(family, parameters, costs, **options)
    return {
        name: relative_error(expected, exact, size)
        for name, (exact, expected, size) in zip(costs, results, strict=True)
    }


@each_transport
@pytest.mark.parametrize("D", [1, 2])
def test_pathwise(family, transport, D):
    parameters = family.parameters(K=4, D=D, scales=SCALES[D], seed=1)
    errors = worst_error(family, parameters, transport=transport)
    assert max(errors.values()) < TOLERANCE, errors


@in_pairs
@each_transport
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("weight_gradient", ["clustered", "hybrid"])
def test_with_score_term(family, transport, weight_gradient, D):
    parameters = family.parameters(K=4, D=D, **family.groups, seed=2)
    # several groups, one of them with several members
    assert 4 < same_group(family.build(parameters)).sum() < 16
    options = {"transport": transport, "weight_gradient": weight_gradient}
    errors = worst_error(family, parameters, some("cosine", "quartic", "product"), **options)
    assert max(errors.values()) < TOLERANCE, errors


@each_family
@pytest.mark.parametrize("weight_gradient", ["clustered", "hybrid"])
def test_without_the_score_term(family, weight_gradient):
    """The samples carry the whole gradient, if the loss leaves the score term aside.

    A loss that uses it with another cost, here zero, shows that the test above sees the term.
    """
    parameters = family.parameters(K=4, D=2, **family.groups, seed=2)
    points, cell = grid(family.reference(parameters))
    density = family.reference(parameters).log_prob(points).exp()
    cost = points.square().sum(-1) + points.sum(-1)
    exact = gradients((density * cost * cell).sum(), parameters)["component_logits"]
    mixture = family.build(parameters, weight_gradient=weight_gradient)
    z = sample_at(mixture, points)
    beside = beside_its_score(mixture, z)
    grad_z = (density.detach() * cell).unsqueeze(-1) * (2 * points + 1)
    biased = gradients(beside, parameters, grad_z)["component_logits"]
    assert (biased - exact).abs().max() > 0.1 * exact.abs().max()
    with pytest.warns(UnusedScoreWarning, match="carry the whole gradient"):
        alone = gradients(z, parameters, grad_z)["component_logits"]
    # the grid ends where the density does; the currents between far groups reach further
    assert (alone - exact).abs().max() < 1e-3 * exact.abs().max()


@in_pairs
@each_transport
@pytest.mark.parametrize("weight_gradient", ["pathwise", "clustered", "hybrid"])
@pytest.mark.parametrize("corner", ["coinciding", "zero weight", "far and dead", "tiny weight"])
def test_corners(family, transport, weight_gradient, corner):
    parameters = family.parameters(K=3, D=2, scales=(0.8, 1.4), spread=2.0, seed=3)
    with torch.no_grad():
        match corner:
            case "coinciding":
                for name in each_component(family, parameters):
                    parameters[name][1] = parameters[name][0]
            case "zero weight":
                parameters["component_logits"][1] = -torch.inf
            case "far and dead":
                parameters["component_logits"][1] = -torch.inf
                family.move_away(parameters, slice(1, 2), 1e6)
            case "tiny weight":
                parameters["component_logits"][1] = -200.0
    options = {"transport": transport, "weight_gradient": weight_gradient}
    errors = worst_error(family, parameters, some("cubic", "cosine"), **options)
    assert max(errors.values()) < TOLERANCE, errors


@each_transport
@pytest.mark.parametrize("D", [1, 2])
def test_one_component(family, transport, D):
    parameters = family.parameters(K=1, D=D)
    results = exact_and_expected(family, parameters, COSTS, transport=transport)
    for exact, expected, size in results:
        assert relative_error(expected, exact, size) < TOLERANCE
        assert expected["component_logits"] == 0


def pyro_gradients(parameters, points, grad_z):
    """The backward pass of Pyro's class at chosen points."""
    locs, scales, logits = (value.detach() for value in parameters.values())
    saved = SimpleNamespace(saved_tensors=(points, scales, locs, logits, logits.softmax(-1)))
    values = pyro_mixture._MixDiagNormalSample.backward(saved, grad_z)
    return dict(zip(parameters, values[:3], strict=True))


@pytest.mark.parametrize(
    ("name", "pyro_is_right"),
    [("cubic", False), ("cosine", False), ("quartic", False), ("square", True)],
)
def test_why_this_project_exists(name, pyro_is_right):
    """Pyro's class with the same arguments: its logit gradient is wrong for every cost but
    ``|z|^2``, the only one its own tests use."""
    family = FAMILIES["diag_normals"]
    cost = {**COSTS, "square": lambda z: z.square().sum(-1)}[name]
    parameters = family.parameters(K=3, D=2, scales=(0.5, 1.5), seed=2)
    points, cell = grid(family.reference(parameters))
    mass = family.reference(parameters).log_prob(points).exp().detach() * cell
    at = points.clone().requires_grad_()
    (slope,) = torch.autograd.grad(cost(at).sum(), at)
    theirs = pyro_gradients(parameters, points, slope * mass.unsqueeze(-1))
    ((exact, ours, _),) = exact_and_expected(family, parameters, {name: cost})

    assert relative_error(ours, exact) < TOLERANCE
    logits = {"component_logits": exact["component_logits"]}
    error = relative_error(theirs, logits)
    assert error < TOLERANCE if pyro_is_right else error > 0.1
    for parameter in ("locs", "coord_scale"):  # Eq. 12 is right in both
        assert relative_error(theirs, {parameter: exact[parameter]}) < TOLERANCE


@each_transport
def test_batch(family, transport):
    """The entries of a batch stay apart, and one in the middle of wider ones is as exact."""
    parameters = family.parameters((3,), K=3, D=1, scales=(0.4, 2.0), seed=5)
    each = [leaves({k: v[b] for k, v in parameters.items()}) for b in range(3)]
    points, _ = grid(family.reference(parameters))
    # a cosine with the weights of a Normal, so that far tails do not decide
    grad_z = (points + 0.5).cos() * (-points.square() / 8).exp()
    z = sample_at(
        family.build(parameters, transport=transport),
        points.unsqueeze(-2).expand(-1, 3, -1),
    )
    batched = gradients(z, parameters, grad_z.unsqueeze(-2).expand_as(z))
    for b, single in enumerate(each):
        alone = gradients(
            sample_at(family.build(single, transport=transport), points), single, grad_z
        )
        assert relative_error({k: v[b] for k, v in batched.items()}, alone) < TOLERANCE
