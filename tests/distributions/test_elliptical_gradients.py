"""Expectations of the backward pass: on a grid, where nothing is random, and by Monte Carlo."""

import itertools

import pytest
import torch

from tests.elliptical import LAWS, each_adaptive_law, each_law, grid, sample_at, sampled
from tests.registry import COSTS, gradients, leaves, relative_error

TOLERANCE = 1e-8

REPLICAS = 10_000
# Normal tails give 6e-7 for each entry beyond 5 standard errors. The tests below compare some 2000
# entries: a false alarm for one seed in 800. The seed is fixed.
THRESHOLD = 5.0


def slope(cost, points):
    """The gradient of a cost at each point."""
    at = points.clone().requires_grad_()
    return torch.autograd.grad(cost(at).sum(), at)[0]


@each_law
@pytest.mark.parametrize(("D", "scales"), [(1, (0.2, 0.2)), (1, (5.0, 5.0)), (2, (0.2, 5.0))])
def test_expected_gradient(law, D, scales):
    """With grid points as samples, against the derivative of the integral itself."""
    parameters = law.parameters(D=D, scales=scales, seed=2, light_tails=True)
    points, mass = grid(law, parameters)
    assert float(mass.sum()) == pytest.approx(1, abs=1e-12)
    z = sample_at(law.build(parameters), points)
    torch.testing.assert_close(z, points)
    log_prob = law.reference(parameters).log_prob(points)
    moved = {name: parameters[name] for name in ("loc", "scale_tril")}
    for name, cost in COSTS.items():
        if name == "exponential" and not law.exponential_moments:
            continue
        exact = gradients(log_prob, moved, mass * cost(points))
        grad_z = slope(cost, points) * mass.unsqueeze(-1)
        size = float(grad_z.abs().sum())
        assert relative_error(gradients(z, moved, grad_z), exact, size) < TOLERANCE, name


@each_adaptive_law
@pytest.mark.parametrize("M", [1, 3])
def test_expected_gradient_of_control_var(law, M):
    """That of half the variance of L's gradient, its mean included; for one sample at a time."""
    parameters = law.parameters(D=2, M=M, scales=(0.3, 2.0), light_tails=True)
    points, mass = grid(law, parameters)
    grad_z = slope(COSTS["cubic"], points) + slope(COSTS["cosine"], points)

    def each(control_var):
        """Gradients of one sample at each point."""
        full = {**parameters, "control_var": control_var}
        full = leaves({name: x.expand(len(points), *x.shape) for name, x in full.items()})
        return gradients(sample_at(law.build(full), points), sampled(full), grad_z)

    actual = torch.einsum("n,n...->...", mass, each(parameters["control_var"])["control_var"])

    # L's gradient is an affine function of B^T C
    at_zero = torch.zeros_like(parameters["control_var"])
    still = each(at_zero)["scale_tril"]
    gradient, (b, c) = still, parameters["control_var"]
    for i, j in itertools.product(range(2), repeat=2):
        at_one = at_zero.clone()
        at_one[0, 0, i] = at_one[1, 0, j] = 1.0
        turned = each(at_one)["scale_tril"] - still
        gradient = gradient + (b.mT @ c)[i, j] * turned
    mean = torch.einsum("n,nab->ab", mass, gradient)
    variance = torch.einsum("n,nab->", mass, (gradient - mean).square())
    expected = gradients(variance / 2, parameters)["control_var"]
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def bounded(z):
    return z.sum(-1).cos() + (z[..., 0] * z[..., -1]).tanh() + (-z.square().sum(-1) / 8).exp()


@each_law
@pytest.mark.parametrize(
    ("D", "batch_shape", "sample_shape"), [(3, (2,), ()), (4, (), (6,)), (5, (3, 1), (2, 3))]
)
def test_mean_gradient(law, D, batch_shape, sample_shape):
    """Against the score function of the reference at the same samples: equal on average, for all
    parameters."""
    parameters = law.parameters(batch_shape, D=D, scales=(0.4, 1.2), seed=D)
    replicas = leaves({name: x.expand(REPLICAS, *x.shape) for name, x in parameters.items()})
    z = law.build(replicas).rsample(sample_shape)
    cost = bounded(z)
    pathwise = gradients(cost.sum(), replicas)
    log_prob = law.reference(replicas).log_prob(z.detach())
    score = gradients(log_prob, replicas, cost.detach() - 0.5)  # a baseline of no importance
    pathwise.pop("control_var", None)
    for name, value in pathwise.items():
        difference = value - score[name]
        standard_error = (difference.std(0) / REPLICAS**0.5).clamp_min(1e-12)
        assert (difference.mean(0) / standard_error).abs().max() < THRESHOLD, name
        if name == "scale_tril":
            assert torch.equal(value, value.tril())


@pytest.mark.parametrize("df", [0.7, 3.0, 40.0])
def test_degrees_of_freedom(df):
    """The mean gradient of a form of z against the derivative of a one-dimensional integral."""
    law = LAWS["avf_student_t"]
    parameters = law.parameters(D=3, seed=3)
    with torch.no_grad():
        parameters["df"].fill_(df)
    direction = torch.tensor([0.6, -1.0, 0.8]).double()
    replicas = leaves({name: x.expand(20_000, *x.shape) for name, x in parameters.items()})
    estimate = gradients((law.build(replicas).rsample() @ direction).tanh().sum(), replicas)

    t = torch.linspace(-60, 60, 6001).double()  # x = sinh(t) reaches into the heaviest tails
    x = t.sinh()
    loc = parameters["loc"] @ direction
    scale = torch.linalg.vector_norm(parameters["scale_tril"].mT @ direction)
    log_density = torch.distributions.StudentT(parameters["df"], loc, scale).log_prob(x)
    expected = ((log_density + t.cosh().log()).exp() * x.tanh()).sum() * (t[1] - t[0])
    exact = gradients(expected, {"df": parameters["df"], "loc": parameters["loc"]})
    for name, value in exact.items():
        standard_error = estimate[name].std(0) / 20_000**0.5
        assert ((estimate[name].mean(0) - value) / standard_error).abs().max() < THRESHOLD


@each_law
def test_samples_come_from_the_law(law):
    """Their means, and their logarithmic distances, by standard errors; 5 as above."""
    count = 100_000
    parameters = law.parameters((2,), D=3)
    q = law.build(parameters)
    z = q.sample((count,))
    deviation = z.mean(0) - parameters["loc"]
    assert (deviation / z.std(0) * count**0.5).abs().max() < THRESHOLD
    # against an integral over the density along a ray; sinh reaches into heavy tails
    t = torch.linspace(0, 12, 2001).double().unsqueeze(-1)
    radius = t.sinh()
    ray = q.loc + radius.unsqueeze(-1) * q.scale_tril[..., 0]  # (T, B, D)
    density = law.reference(parameters).log_prob(ray).exp() * radius.square() * t.cosh()
    expected = (density * radius.square().log1p()).sum(0) / density.sum(0)
    offset = (z - q.loc).unsqueeze(-1)
    white = torch.linalg.solve_triangular(q.scale_tril, offset, upper=False).squeeze(-1)
    distance = white.square().sum(-1).log1p()
    deviation = distance.mean(0) - expected
    assert (deviation / distance.std(0) * count**0.5).abs().max() < THRESHOLD
