"""Implicit reparameterization against the transform that defines it and its inverse."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from pyro_mixtures.velocity.diagonal_implicit import conditional_cdf, implicit
from pyro_mixtures.velocity.telescoping import diag_normal_telescoping
from tests.registry import FAMILIES, covariance, gradients, leaves

DOUBLE = torch.float64
HALVINGS = 60
each_family = pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, id=name)
        for name, family in FAMILIES.items()
        if "implicit" in family.distribution.transports
    ],
)


def transform(z: Tensor, logits: Tensor, component) -> Tensor:
    """Conditional distribution functions of a mixture, ``(S, D)``, by the components' moments."""
    factor = torch.linalg.cholesky(covariance(component))  # (K, D, D)
    offset = (z.unsqueeze(-2) - component.mean).unsqueeze(-1)  # (S, K, D, 1)
    standard = torch.linalg.solve_triangular(factor, offset, upper=False).squeeze(-1)
    normal = Normal(0.0, 1.0)
    log_pdf = normal.log_prob(standard) - factor.diagonal(dim1=-2, dim2=-1).log()
    before = log_pdf.cumsum(-1) - log_pdf + logits.unsqueeze(-1)  # (S, K, D)
    return (before.softmax(-2) * normal.cdf(standard)).sum(-2)


def inverse_transform(uniform: Tensor, logits: Tensor, component) -> Tensor:
    """By bisection, one coordinate after the other."""
    z = torch.zeros_like(uniform)
    for i in range(z.shape[-1]):
        low, high = torch.full_like(z[:, i], -50), torch.full_like(z[:, i], 50)
        for _ in range(HALVINGS):
            z[:, i] = (low + high) / 2
            below = transform(z, logits, component)[:, i] < uniform[:, i]
            low, high = torch.where(below, z[:, i], low), torch.where(below, high, z[:, i])
    return z


def setting(family, D, K=3, S=5):
    """Component parameters, logits, the reference, samples and gradients there."""
    parameters = leaves(family.parameters(K=K, D=D, scales=(0.5, 2.0), seed=D))
    *components, logits = (value.detach() for value in parameters.values())
    reference = family.reference({name: value.detach() for name, value in parameters.items()})
    z = reference.sample((S,))
    return components, logits, reference, z, torch.randn_like(z)


def logits_gradients(family, components, logits, reference, z, grad) -> Tensor:
    """Of each sample, ``(S, K)``."""
    weights = logits.softmax(-1)
    log_prob = reference.log_prob(z).unsqueeze(-1)
    values = (z, grad, log_prob, weights.unsqueeze(-2), *components)
    contributions = family.distribution.transports["implicit"](*values, precision=DOUBLE)
    average = (contributions * weights).sum(-1, keepdim=True)
    # the hub is the mixture itself
    torch.testing.assert_close(average, torch.zeros_like(average), rtol=0, atol=1e-12)
    return weights * (contributions - average)


@each_family
@pytest.mark.parametrize("D", [1, 2, 4])
def test_derivative_of_the_transform(family, D):
    """``-J^-1 dS / dlogits`` in the given coordinates, which whitening has not changed."""
    components, logits, reference, z, grad = setting(family, D)
    actual = logits_gradients(family, components, logits, reference, z, grad)
    for place, slope, result in zip(z, grad, actual, strict=True):

        def at(place, logits):
            return transform(place.unsqueeze(0), logits, reference.component_distribution)[0]

        by_place, by_logits = torch.autograd.functional.jacobian(at, (place, logits))
        torch.testing.assert_close(by_place, by_place.tril())
        expected = -slope @ torch.linalg.solve(by_place, by_logits)
        torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-10)


@each_family
@pytest.mark.parametrize("D", [1, 3])
def test_samples_of_the_same_quantiles(family, D):
    """Finite differences of the inverse transform at fixed uniform numbers."""
    step = 1e-4
    components, logits, reference, z, grad = setting(family, D)
    component = reference.component_distribution
    uniform = transform(z, logits, component)
    torch.testing.assert_close(inverse_transform(uniform, logits, component), z)
    expected = []
    for unit in torch.eye(len(logits), dtype=DOUBLE):
        ahead, behind = (
            inverse_transform(uniform, logits + sign * step * unit, component) for sign in (1, -1)
        )
        expected.append((grad * (ahead - behind)).sum(-1) / (2 * step))
    actual = logits_gradients(family, components, logits, reference, z, grad)
    torch.testing.assert_close(actual, torch.stack(expected, -1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("grouped", [False, True])
def test_one_dimension(grouped):
    """There is one solution, also where the density of a group is 1e-200."""
    locs, scales = torch.randn(4, 1, dtype=DOUBLE), torch.rand(4, 1, dtype=DOUBLE) + 1
    z = torch.cat([torch.randn(10, 1, dtype=DOUBLE), torch.tensor([[-30.0], [30.0]])])
    same = torch.arange(4) % 2 == torch.arange(4).unsqueeze(-1) % 2
    logits = torch.randn(4, dtype=DOUBLE)
    within = logits.masked_fill(~same, -torch.inf).softmax(-1) if grouped else logits.softmax(-1)
    joint = logits.log_softmax(-1) + Normal(locs, scales).log_prob(z.unsqueeze(-2)).squeeze(-1)
    log_prob = joint.logsumexp(-1, keepdim=True)
    values = (z, torch.randn_like(z), log_prob, within.reshape(-1, 4), locs, scales)
    actual = implicit(*values, precision=DOUBLE)
    expected = diag_normal_telescoping(*values, precision=DOUBLE)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["diag_normals", "normals"])
@pytest.mark.parametrize("D", [1, 3])
def test_groups_do_not_see_each_other(name, D):
    """The field of a group is that of its own mixture, by the share of its density."""
    family = FAMILIES[name]
    components, logits, reference, z, grad = setting(family, D, K=5)
    logits[2] = -torch.inf  # a member without weight
    labels = torch.tensor([0, 1, 0, 1, 0])
    masked = logits.masked_fill(labels.unsqueeze(-1) != labels, -torch.inf)
    field = family.distribution.transports["implicit"]
    log_prob = torch.zeros(len(z), 1, dtype=DOUBLE)
    together = field(z, grad, log_prob, masked.softmax(-1), *components, precision=DOUBLE)
    for label in labels.unique():
        members = labels == label
        parts = (masked[members][:1, members].softmax(-1), *(x[members] for x in components))
        alone = field(z, grad, log_prob, *parts, precision=DOUBLE)
        torch.testing.assert_close(together[:, members], alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["diag_normals", "normals"])
def test_component_without_weight(name):
    """Its contribution, which tells how to begin to give it some, is the limit."""
    family = FAMILIES[name]
    components, logits, _, z, grad = setting(family, 3)
    log_prob = torch.zeros(len(z), 1, dtype=DOUBLE)
    results = []
    for logit in (-torch.inf, -30.0):
        logits[0] = logit
        values = (z, grad, log_prob, logits.softmax(-1).unsqueeze(-2), *components)
        results.append(family.distribution.transports["implicit"](*values, precision=DOUBLE))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("D", [1, 4])
def test_conditional_cdf(D):
    """The transform, and its derivatives with respect to the sample and all parameters."""
    family = FAMILIES["diag_normals"]
    parameters = family.parameters((2,), K=3, D=D)
    z = torch.randn(2, 5, D, dtype=DOUBLE, requires_grad=True)
    log_weights = parameters["component_logits"].log_softmax(-1)
    cdf, jacobian = conditional_cdf(z, log_weights, parameters["locs"], parameters["coord_scale"])
    component = family.reference(parameters).component_distribution
    expected = torch.stack(
        [
            transform(z[b], log_weights[b], type(component)(Normal(loc, scale), 1))
            for b, (loc, scale) in enumerate(
                zip(parameters["locs"], parameters["coord_scale"], strict=True)
            )
        ]
    )
    torch.testing.assert_close(cdf, expected, rtol=1e-12, atol=1e-14)
    rows = [
        torch.autograd.grad(cdf[..., i].sum(), z, retain_graph=True)[0] for i in range(D)
    ]  # (*B, S, D) each
    torch.testing.assert_close(jacobian, torch.stack(rows, -2), rtol=1e-10, atol=1e-12)
    weights = torch.randn_like(cdf)
    actual, exact = gradients(cdf, parameters, weights), gradients(expected, parameters, weights)
    torch.testing.assert_close(actual, exact, rtol=1e-10, atol=1e-12)


def test_conditional_cdf_without_weight():
    """Values and gradients stay finite, and are those of the rest."""
    locs = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1e6, 1e6]], dtype=DOUBLE, requires_grad=True)
    scales = torch.ones(3, 2, dtype=DOUBLE, requires_grad=True)
    log_weights = torch.tensor([0.5, 0.5, 0.0], dtype=DOUBLE).log().requires_grad_()
    arguments = (log_weights, locs, scales)
    z = torch.randn(4, 2, dtype=DOUBLE)
    results = conditional_cdf(z, *arguments)
    rest = conditional_cdf(z, *(x[:2] for x in arguments))
    for actual, expected in zip(results, rest, strict=True):
        torch.testing.assert_close(actual, expected)
        values = torch.autograd.grad(actual.sum(), arguments, retain_graph=True)
        exact = torch.autograd.grad(expected.sum(), arguments, retain_graph=True)
        torch.testing.assert_close(values[1:], exact[1:])
        torch.testing.assert_close(values[0][:2], exact[0][:2])
        assert values[0].isfinite().all()
