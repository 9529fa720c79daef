"""Narrow precision: float32 against float64, half against float32, from the same numbers."""

import pytest
import torch

from tests.elliptical import each_law, sample_at, sample_from, sampled
from tests.pairwise import in_pairs
from tests.registry import gradients, leaves, relative_error

SCALES = {
    "unit": (0.5, 2.0),
    "narrow": (1e-4, 2e-4),
    "wide": (1e4, 2e4),
    "narrow and wide": (1e-4, 1e4),
}
TOLERANCE = 1e-4
"""Of gradients, relative to the largest entry of each parameter."""

# one sample of each law takes another path through the code than several do
each_count = pytest.mark.parametrize(
    ("batch_shape", "sample_shape"),
    [pytest.param((2,), (), id="one sample"), pytest.param((), (10,), id="many samples")],
)


def evaluate(law, parameters, points, grad):
    """Log densities of points, and gradients of these and of samples that come to lie there."""
    q = law.build(parameters)
    log_prob = q.log_prob(points)
    densities = gradients(log_prob, parameters)
    densities.pop("control_var", None)
    samples = gradients(sample_at(q, points), sampled(parameters), grad)
    if points.shape[-1] == 1:  # nothing turns: a zero, up to rounding
        samples.pop("control_var", None)
    return log_prob.detach(), densities, samples


def assert_close(actual, expected, tolerance):
    for values, exact in zip(actual, expected, strict=True):
        for name, value in exact.items():
            # of each parameter by itself
            error = relative_error({name: values[name]}, {name: value}, size=1e-30)
            assert error < tolerance, (name, error)


@in_pairs
@each_law
@each_count
@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("D", [1, 5, 60, 500])
def test_single(law, D, scales, batch_shape, sample_shape):
    extremes = SCALES[scales]
    if scales == "narrow and wide" and not law.adapts:
        extremes = (0.03, 30.0)  # singular values are exact to rounding of the largest
    parameters = law.parameters(batch_shape, D=D, scales=extremes)
    with torch.no_grad():
        parameters["loc"].mul_(extremes[0])  # no digits lost in differences
    single = leaves(parameters, torch.float32)
    points = law.build(single).sample(sample_shape)
    grad = torch.randn_like(points)
    log_prob, *actual = evaluate(law, single, points, grad)
    double = leaves(single, torch.float64)
    exact, *expected = evaluate(law, double, points.double(), grad.double())
    assert log_prob.dtype == torch.float32
    torch.testing.assert_close(log_prob.double(), exact, rtol=1e-5, atol=1e-4)
    assert_close(actual, expected, TOLERANCE)


@in_pairs
@each_law
@each_count
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half(law, dtype, batch_shape, sample_shape):
    """Computed in float32 and rounded."""
    half = law.parameters(batch_shape, D=20, dtype=dtype)
    single = leaves(half, torch.float32)
    points = law.build(half).rsample(sample_shape).detach()
    assert points.dtype == dtype
    white, grad = (torch.randn_like(points) / scale for scale in (1, 4))  # no overflow
    results = []
    for parameters in (half, single):
        q = law.build(parameters)
        z = sample_from(q, white.to(q.loc.dtype))
        values = gradients(z, sampled(parameters), grad.to(z.dtype))
        assert {x.dtype for x in values.values()} == {q.loc.dtype}
        densities = {"log_prob": q.log_prob(points), "known": q.score_parts(z).log_prob}
        results.append({**densities, **values})
    assert_close([results[0]], [results[1]], 8 * torch.finfo(dtype).eps)


@each_law
@each_count
def test_each_parameter_has_gradients_of_its_own_dtype(law, batch_shape, sample_shape):
    parameters = law.parameters(batch_shape, dtype=torch.float32)
    parameters = leaves({**parameters, "loc": parameters["loc"].double()})
    q = law.build(parameters)
    z = q.rsample(sample_shape)
    assert z.dtype == q.log_prob(z.float()).dtype == torch.float64
    for name, value in gradients(z, parameters).items():
        assert value.dtype == parameters[name].dtype
