"""float32 against float64, from the same rounded numbers, where digits may be lost."""

from unittest import mock

import pyro.distributions
import pytest
import torch

from tests.pairwise import in_pairs
from tests.registry import (
    FAMILIES,
    each_component,
    each_transport,
    gradients,
    leaves,
    relative_error,
    sample_at,
)

LOG_PROB = {"rtol": 1e-6, "atol": 1e-4}
"""Expanded squares may lose 1e-4 of a log density; where that would be more, they are not used."""

TOLERANCE = 1e-3
"""Of responsibilities, and of gradients relative to the largest entry of each parameter."""

K = 4


def evaluate(family, parameters, points, cost_gradient, **options):
    """Log density and responsibilities of points, and the gradients of samples there and of the
    log density."""
    mixture = family.build(parameters, **options)
    z = sample_at(mixture, points)
    with mock.patch.object(torch, "rand", return_value=torch.tensor(0.3)):
        pathwise = gradients(z, parameters, cost_gradient)  # nodes of long paths: a random offset
    log_prob = mixture.log_prob(points)
    densities = gradients(log_prob, parameters)
    return log_prob, mixture.responsibilities(points), {"sample": pathwise, "density": densities}


def assert_close(actual, expected, tolerance, what, total=0.0):
    """Of each parameter by its largest entry; of the logits' gradient, which is a difference and
    may nearly vanish, by the ``total`` that it is taken from; of ``control_var``, whose gradient
    vanishes in one dimension, by the squares that it is the gradient of."""
    squares = float(expected["component_logits"].square().sum())
    sizes = {"component_logits": 1e3 * total, "control_var": 1e3 * squares}
    for name, value in expected.items():
        size = sizes.get(name, 0.0)
        error = relative_error({name: actual[name]}, {name: value}, size)
        # squares have errors of their own and of their slope
        limit = 5 * tolerance if name == "control_var" else tolerance
        assert error < limit, (what, name, error)


def compare(family, parameters, sample_shape, **options):
    """Assert that both precisions agree, and float64 with torch's classes.

    Returns the points, the gradient of the cost there, the parameters and responsibilities and
    gradients, in float64.
    """
    single = leaves(parameters, torch.float32)
    double = leaves(single, torch.float64)
    points = family.build(single).sample(sample_shape)
    grad = torch.randn_like(points)
    actual = evaluate(family, single, points, grad, **options)
    points, grad = points.double(), grad.double()
    expected = evaluate(family, double, points, grad, **options)
    assert actual[0].dtype == actual[1].dtype == torch.float32
    torch.testing.assert_close(actual[0].double(), expected[0], **LOG_PROB)
    torch.testing.assert_close(actual[1].double(), expected[1], rtol=0, atol=TOLERANCE)
    total = float(expected[1].detach().sum(0).max())  # the weights' gradient is the sum of r - pi
    for what, exact in expected[2].items():
        assert all(x.isfinite().all() for x in exact.values())
        assert_close(actual[2][what], exact, TOLERANCE, what, total * (what == "density"))
    # torch's classes subtract before they square
    log_prob = family.reference(double).log_prob(points)
    torch.testing.assert_close(expected[0], log_prob, rtol=1e-6, atol=1e-6)
    exact = gradients(log_prob, double)
    assert_close(expected[2]["density"], exact, 1e-5, "density in float64", total)
    return points, grad, double, expected[1], expected[2]


SCALES = {
    "unit": {"scales": (1.0, 2.0)},
    "narrow": {"scales": (1e-4, 2e-4), "spread": 1e-4, "shift": 0.0},
    "wide": {"scales": (1e4, 2e4), "spread": 1e4},
    "narrow and wide": {"scales": (1e-4, 1e4)},
    "narrow and far from the origin": {"scales": (0.01, 0.02), "spread": 0.01, "shift": 10.0},
    "narrow and apart": {"scales": (0.01, 0.02), "spread": 10.0, "shift": 10.0},
    "far apart": {"scales": (1.0, 2.0), "spread": 1e4},
}


# one sample of each mixture takes another path through the code than several do
each_count = pytest.mark.parametrize(
    ("batch_shape", "sample_shape"),
    [pytest.param((10,), (), id="one sample"), pytest.param((), (20,), id="many samples")],
)


@in_pairs
@each_transport
@each_count
@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("D", [1, 5, 60])
def test_scales(family, transport, D, scales, batch_shape, sample_shape):
    parameters = family.parameters(batch_shape, K=K, D=D, **SCALES[scales])
    compare(family, parameters, sample_shape, transport=transport)


@in_pairs
@each_transport
@each_count
@pytest.mark.parametrize("scales", ["narrow", "wide", "narrow and far from the origin"])
def test_many_dimensions(family, transport, scales, batch_shape, sample_shape):
    dim = 1000
    if family.has_full_factors:
        dim, batch_shape = 200, ()
    parameters = family.parameters(batch_shape, K=K, D=dim, **SCALES[scales])
    compare(family, parameters, sample_shape, transport=transport)


thousands = pytest.mark.parametrize("D", [2000, pytest.param(10_000, marks=pytest.mark.slow)])


def many_dimensions(family, D, **options):
    if family.has_full_factors:
        pytest.skip("its factors would have up to 1e8 entries each")
    return family.parameters(K=10, D=D, dtype=torch.float32, **options)


@each_transport
@thousands
def test_thousands_of_dimensions_overlapping(family, transport, D):
    near = 2 / D**0.5
    parameters = many_dimensions(family, D, scales=(1 - near, 1 + near), spread=near)
    compare(family, parameters, (), transport=transport)
    *_, responsibilities, values = compare(family, parameters, (20,), transport=transport)
    # some samples have several likely components: the comparison is not one of zeros and ones
    assert (responsibilities.amax(-1) < 0.9).any()
    assert values["sample"]["component_logits"].abs().max() > 1e-3


@each_transport
@thousands
def test_thousands_of_dimensions_separated(family, transport, D):
    """One component is responsible for each sample: each gets just its own samples' gradient."""
    parameters = many_dimensions(family, D, scales=(0.25, 4.0))
    points, grad, double, responsibilities, values = compare(
        family, parameters, (20,), transport=transport
    )
    assert (responsibilities.amax(-1) == 1).all()
    own = responsibilities.mT  # (K, S)
    component = family.reference(double).component_distribution
    along = own @ (grad * (points - responsibilities @ component.mean))  # (K, D)
    per_scale = {
        "locs": own @ grad,
        "coord_scale": along / component.stddev,
        "component_scale": along.sum(-1) / double.get("component_scale", 1),
    }
    for name in each_component(family, double):
        torch.testing.assert_close(values["sample"][name], per_scale[name], msg=name)


def test_where_pyro_fails():
    """Sixty dimensions in float32 (test_scales has the same for this package)."""
    torch.manual_seed(0)
    parameters = FAMILIES["diag_normals"].parameters(K=K, D=60, scales=(1.0, 2.0))
    single = leaves(parameters, torch.float32)
    z = pyro.distributions.MixtureOfDiagNormals(**single).rsample(torch.Size([20]))
    assert not gradients(z, single)["component_logits"].isfinite().all()
