"""The control variate of adaptive velocity fields learns: by an optimizer or by hand."""

import pytest
import torch

from tests.elliptical import each_adaptive_law, sample_at, sampled
from tests.pairwise import in_pairs
from tests.registry import gradients, leaves

DIM = 5


def quartic(z):
    return z.square().sum(-1).square()


def law_and_control(law, M=2, seed=1):
    parameters = law.parameters(D=DIM, M=M, seed=seed, light_tails=True)
    with torch.no_grad():
        parameters["loc"].zero_()
        parameters["control_var"].mul_(0.3)
    return parameters


def half_variance(law, parameters, control_var, count=20_000):
    """Of L's gradient, summed over its entries, with the same samples for every control_var."""
    torch.manual_seed(7)
    each = {name: x.expand(count, *x.shape) for name, x in parameters.items()}
    each = leaves({**each, "control_var": control_var.expand(count, *control_var.shape)})
    z = law.build(each).rsample()
    gradient = gradients(quartic(z), {"scale_tril": each["scale_tril"]})["scale_tril"]
    return float(gradient.var(0).sum()) / 2


@each_adaptive_law
@pytest.mark.parametrize("sample_shape", [(), (4,)])
def test_optimizer_lowers_the_variance(law, sample_shape):
    """By ``backward``, as in every step of an SVI; a wrong sign would raise it."""
    parameters = law_and_control(law)
    control_var = parameters["control_var"]
    before = half_variance(law, parameters, control_var.detach())
    without = half_variance(law, parameters, torch.zeros_like(control_var))
    optimizer = torch.optim.Adam([control_var], lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        q = law.build(parameters, validate_args=False)
        quartic(q.rsample(sample_shape)).sum().backward()
        optimizer.step()
    after = half_variance(law, parameters, control_var.detach())
    assert after < 0.96 * min(before, without)


@each_adaptive_law
def test_variance_gradient_lowers_the_variance(law):
    parameters = law_and_control(law)
    control_var = parameters["control_var"].detach()
    before = half_variance(law, parameters, control_var)
    q = law.build({**parameters, "control_var": control_var})
    for _ in range(400):
        z = q.sample((10,))
        step = q.variance_gradient(z, 4 * z.square().sum(-1, keepdim=True) * z)
        control_var -= 0.02 * step / step.norm()
    after = half_variance(law, parameters, control_var)
    assert after < 0.96 * min(
        before, half_variance(law, parameters, torch.zeros_like(control_var))
    )


@each_adaptive_law
@pytest.mark.parametrize(
    ("batch_shape", "sample_shape", "expanded"),
    [
        ((), (), None),
        ((), (5,), None),
        ((2,), (), None),
        ((3, 1), (4, 2), None),
        ((2,), (), (3, 2)),
        ((2, 1), (2,), (3, 2, 4)),
        ((), (0,), None),
    ],
)
def test_variance_gradient_is_that_of_backward(law, batch_shape, sample_shape, expanded):
    parameters = law.parameters(batch_shape)
    q = law.build(parameters)
    if expanded is not None:
        q = q.expand(expanded)
    points = q.sample(sample_shape)
    grad = torch.randn_like(points)
    expected = gradients(sample_at(q, points), sampled(parameters), grad)["control_var"]
    actual = q.variance_gradient(points, grad)
    assert not actual.requires_grad
    torch.testing.assert_close(actual.sum_to_size(expected.shape), expected)


@in_pairs
@each_adaptive_law
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sample_shape", [(), (5,)])
def test_variance_gradient_of_another_precision(law, dtype, sample_shape):
    q = law.build(law.parameters(dtype=dtype))
    points = q.sample(sample_shape).float()
    expected = q.variance_gradient(points, points.cos())
    assert expected.dtype == torch.float32
    actual = q.variance_gradient(points.double(), points.double().cos())
    assert actual.dtype == torch.float64
    torch.testing.assert_close(actual.float(), expected, rtol=1e-4, atol=1e-4)


@each_adaptive_law
@pytest.mark.parametrize("sample_shape", [(), (5,)])
def test_starts_that_stay(law, sample_shape):
    """As documented: nothing grows from zero, and equal rows stay equal."""
    parameters = law.parameters()
    points = law.build(parameters).sample(sample_shape)

    def slope(control_var):
        given = leaves({**parameters, "control_var": control_var})
        z = sample_at(law.build(given), points)
        return gradients(z, sampled(given), points.cos())["control_var"]

    assert (slope(torch.zeros(2, 2, 3).double()) == 0).all()
    twice = slope(torch.randn(2, 1, 3).double().expand(2, 2, 3))
    torch.testing.assert_close(twice[:, 0], twice[:, 1])
    assert (twice != 0).any()
