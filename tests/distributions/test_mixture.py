"""A list of components whose batch shapes broadcast: shapes, values and exact gradients."""

import pytest
import torch
from torch.distributions import Categorical, Laplace, Normal, StudentT

from pyro_mixtures import Mixture
from tests.families.registry import EXACT, cost_gradients
from tests.registry import gradients, leaves, randn, relative_error

ONE = torch.ones((), dtype=torch.float64)


def real_line(batch_shapes=((), (), ()), logits_shape=()):
    """Parameters of a Normal, a Student t and a Laplace distribution."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    parameters = {"df": 3 + draw(*batch_shapes[1]).exp(), "logits": draw(*logits_shape, 3)}
    for j, shape in enumerate(batch_shapes):
        parameters[f"loc{j}"] = draw(*shape)
        parameters[f"scale{j}"] = (0.3 * draw(*shape)).exp()
    return leaves(parameters)


def components(p):
    return [
        Normal(p["loc0"], p["scale0"]),
        StudentT(p["df"], p["loc1"], p["scale1"]),
        Laplace(p["loc2"], p["scale2"]),
    ]


def build(p, **options):
    return Mixture(Categorical(logits=p["logits"]), components(p), **options)


BROADCAST = [
    (((), (), ()), (), ()),
    (((4,), (), (1,)), (), (4,)),
    (((), (), ()), (4,), (4,)),
    (((3, 1), (4,), (3, 4)), (), (3, 4)),
    (((3, 1), (1, 1), ()), (4,), (3, 4)),
]


@pytest.mark.parametrize(("shapes", "logits_shape", "batch_shape"), BROADCAST)
def test_batch_shapes_broadcast(shapes, logits_shape, batch_shape):
    """As if all parameters were repeated in memory."""
    parameters = real_line(shapes, logits_shape)
    mixture = build(parameters)
    full = leaves(
        {
            name: value.expand((*batch_shape, 3) if name == "logits" else batch_shape)
            for name, value in parameters.items()
        }
    )
    explicit = build(full)
    assert mixture.batch_shape == batch_shape
    assert mixture.event_shape == ()
    assert mixture.mean.shape == mixture.variance.shape == mixture.stddev.shape == batch_shape
    assert [component.batch_shape for component in mixture.component_distributions] == [
        batch_shape
    ] * 3
    assert mixture.mixture_distribution.batch_shape == batch_shape
    for sample_shape in ((), (2, 5)):
        z = mixture.rsample(sample_shape)
        assert z.shape == sample_shape + batch_shape
        assert mixture.component_log_prob(z).shape == (*z.shape, 3)
        points = z.detach()
        torch.testing.assert_close(mixture.log_prob(points), explicit.log_prob(points), **EXACT)
        actual = cost_gradients(mixture, points, parameters)
        expected = cost_gradients(explicit, points, full)
        for name, value in parameters.items():
            expected[name] = expected[name].sum_to_size(value.shape)
        assert relative_error(actual, expected) < 1e-10


@pytest.mark.parametrize(("before", "after"), [((), (4,)), ((1,), (4,)), ((3, 1), (2, 3, 4))])
def test_expand(before, after):
    parameters = real_line((before, before, before), before)
    mixture = build(parameters, weight_gradient="hybrid").expand(after)
    assert type(mixture) is Mixture
    assert mixture.batch_shape == after
    assert mixture.weight_gradient == "hybrid"
    assert mixture.component_logits.shape == (*after, 3)
    assert mixture.rsample((5,)).shape == (5, *after)
    value = mixture.sample()
    torch.testing.assert_close(mixture.log_prob(value), build(parameters).log_prob(value), **EXACT)
    with pytest.raises(RuntimeError, match="expand"):
        mixture.expand((7, 5))


@pytest.mark.parametrize("value_shape", [(), (4,), (3, 1), (5, 3, 4)])
def test_log_density_is_a_sum_of_densities(value_shape):
    """At any value that broadcasts with the batch shape."""
    parameters = real_line(((3, 1), (4,), ()), (4,))
    mixture = build(parameters)
    value = 2 * torch.randn(value_shape, dtype=torch.float64)
    densities = torch.broadcast_tensors(*(d.log_prob(value) for d in components(parameters)))
    each = torch.stack(densities, -1)
    shape = torch.broadcast_shapes(value_shape, mixture.batch_shape)
    torch.testing.assert_close(mixture.component_log_prob(value), each.expand(*shape, 3), **EXACT)
    joint = each + parameters["logits"].log_softmax(-1)
    torch.testing.assert_close(mixture.log_prob(value), joint.logsumexp(-1), **EXACT)
    torch.testing.assert_close(mixture.responsibilities(value), joint.softmax(-1), **EXACT)
    actual, expected = (
        gradients(x, parameters) for x in (mixture.log_prob(value), joint.logsumexp(-1))
    )
    assert relative_error(actual, expected) < 1e-10


def quadrature():
    """Points of the real line, closer about zero."""
    x = torch.linspace(-1, 1, 40_001, dtype=torch.float64)
    return 400 * x * (0.005 + x.square())


def test_moments():
    """By quadrature."""
    mixture = build(real_line())
    z = quadrature()
    density = mixture.log_prob(z).exp()
    assert torch.trapezoid(density, z).item() == pytest.approx(1, abs=1e-5)
    assert mixture.mean.item() == pytest.approx(torch.trapezoid(density * z, z).item(), abs=1e-4)
    second = torch.trapezoid(density * (z - mixture.mean).square(), z)
    assert mixture.variance.item() == pytest.approx(second.item(), rel=0.01)  # of a heavy tail
    assert mixture.stddev.item() == pytest.approx(mixture.variance.sqrt().item())


def test_distribution_function():
    parameters = real_line(((2,), (), ()))
    mixture = build(parameters)
    value = (3 * randn(7, 2)).requires_grad_()
    cdf = mixture.cdf(value)
    (slope,) = torch.autograd.grad(cdf.sum(), value)
    torch.testing.assert_close(slope, mixture.log_prob(value).exp(), rtol=1e-8, atol=1e-10)
    # that of torch where it has one
    parts = [Normal(ONE, ONE), Laplace(ONE, 2 * ONE)]
    plain = Mixture(Categorical(logits=torch.zeros(2).double()), parts)
    expected = sum(part.cdf(value) for part in parts) / 2
    torch.testing.assert_close(plain.cdf(value), expected, **EXACT)


def test_order_does_not_matter():
    parameters = real_line(((2,), (), ()))
    weights, parts = parameters["logits"], components(parameters)
    order = [2, 0, 1]
    mixture = build(parameters)
    turned = Mixture(Categorical(logits=weights[order]), [parts[j] for j in order])
    points = mixture.sample((20,))
    torch.testing.assert_close(turned.log_prob(points), mixture.log_prob(points), **EXACT)
    torch.testing.assert_close(turned.mean, mixture.mean, **EXACT)
    torch.testing.assert_close(turned.variance, mixture.variance, **EXACT)
    torch.testing.assert_close(turned.cdf(points), mixture.cdf(points), **EXACT)
    actual, expected = (cost_gradients(q, points, parameters) for q in (turned, mixture))
    assert relative_error(actual, expected) < 1e-10
    torch.testing.assert_close(
        turned.responsibilities(points), mixture.responsibilities(points)[..., order], **EXACT
    )


def test_gradient_is_exact():
    """The gradient of ``rsample``, integrated over all samples by quadrature."""
    parameters = real_line()
    mixture = build(parameters)
    z = quadrature()
    density = mixture.log_prob(z).exp()

    def cost(z):
        return (z / (1 + z.square())).sin() + (-z.square() / 3).exp()

    estimate = torch.trapezoid(density.detach() * cost(mixture.reparameterize(z)), z)
    expected = torch.trapezoid(density * cost(z), z)
    actual, exact = gradients(estimate, parameters), gradients(expected, parameters)
    assert min(value.abs().max() for value in exact.values()) > 1e-4
    assert relative_error(actual, exact) < 1e-3
