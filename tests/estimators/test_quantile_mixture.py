"""Implicit reparameterization, by a triangular solve and by a recursion over the coordinates."""

import pytest
import torch

from pyro_mixtures.distributions import MixtureOfDiagNormals
from pyro_mixtures.estimators import graves, implicit, pathwise
from pyro_mixtures.velocity.diagonal_implicit import conditional_cdf
from pyro_mixtures.velocity.full_implicit import full_conditional_cdf
from tests.estimators.registry import DIAGONAL, sample_at
from tests.registry import FAMILIES, gradients, leaves, randn, relative_error

each_diagonal_family = pytest.mark.parametrize("family", [FAMILIES[x] for x in DIAGONAL])


def gradient(distribution, points, slope, parameters):
    return gradients(sample_at(distribution, points), parameters, slope)


@each_diagonal_family
@pytest.mark.parametrize(("D", "batch_shape"), [(1, ()), (2, (3, 1)), (7, (2,)), (40, ())])
def test_the_same_for_each_sample(family, D, batch_shape):
    parameters = family.parameters(batch_shape, K=3, D=D, seed=D)
    mixture = family.build(parameters)
    for points in mixture.sample((3,)):
        slope = torch.randn_like(points)
        first, second = (
            gradient(f(mixture), points, slope, parameters) for f in (graves, implicit)
        )
        assert relative_error(first, second) < 1e-7


@pytest.mark.parametrize(
    ("family", "transport"),
    [
        pytest.param(family, transport, id=f"{name}-{transport}")
        for name, family in FAMILIES.items()
        for transport in ("displacement", "implicit")
        if transport in family.distribution.transports
    ],
)
def test_weights_as_by_the_transport(family, transport):
    """In one dimension there is but one field; in more it is that of ``transport='implicit'``."""
    D = 4 if transport == "implicit" else 1
    parameters = family.parameters((2,), K=3, D=D, seed=1)
    mixture = family.build(parameters, transport=transport)
    points, slope = mixture.sample((20,)), randn(20, 2, D)
    ours = gradient(implicit(mixture), points, slope, parameters)
    theirs = gradient(pathwise(mixture), points, slope, parameters)
    logits = {"component_logits": theirs["component_logits"]}
    assert relative_error(ours, logits) < 1e-7
    if D == 1:  # Eq. 12 is the one field of the components, too
        theirs.pop("control_var", None)  # its gradient is that of the variance
        assert relative_error(ours, theirs) < 1e-7


def test_transform_of_full_covariances():
    """Against the diagonal one, and its Jacobian against automatic differentiation."""
    parameters = FAMILIES["normals"].parameters((2,), K=3, D=4, seed=2)
    locs, scale_tril, logits = parameters.values()
    z = randn(2, 5, 4).requires_grad_()
    log_weights = logits.log_softmax(-1)
    cdf, jacobian = full_conditional_cdf(z, log_weights, locs, scale_tril)
    for i in range(4):
        (row,) = torch.autograd.grad(cdf[..., i].sum(), z, retain_graph=True)
        torch.testing.assert_close(jacobian[..., i, :], row)
    scales = scale_tril.diagonal(dim1=-2, dim2=-1)
    diagonal = full_conditional_cdf(z, log_weights, locs, scales.diag_embed())
    for actual, expected in zip(
        diagonal, conditional_cdf(z, log_weights, locs, scales), strict=True
    ):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("estimator", [implicit, graves])
def test_single_precision(estimator):
    """Scales from 1e-3 to 1e3 and components far from each other."""
    parameters = FAMILIES["diag_normals"].parameters(K=3, D=5, scales=(1e-3, 1e3), spread=5.0)
    points = FAMILIES["diag_normals"].build(parameters).sample((50,)).float()
    slope = torch.randn_like(points)
    single = leaves(parameters, torch.float32)
    double = leaves(single, torch.float64)
    found = gradient(estimator(MixtureOfDiagNormals(**single)), points, slope, single)
    exact = gradient(
        estimator(MixtureOfDiagNormals(**double)), points.double(), slope.double(), double
    )
    assert found["locs"].dtype == torch.float32
    assert relative_error(found, exact) < 1e-6


@pytest.mark.parametrize("estimator", [implicit, graves])
def test_slices_of_samples(estimator, monkeypatch):
    """A memory budget of a few samples at a time leaves the gradients as they are."""
    parameters = FAMILIES["diag_normals"].parameters((2,), K=3, D=4)
    mixture = FAMILIES["diag_normals"].build(parameters)
    points, slope = mixture.sample((50,)), randn(50, 2, 4)
    whole = gradient(estimator(mixture), points, slope, parameters)
    monkeypatch.setattr("pyro_mixtures.numerics.chunks.MEMORY_BUDGET", 2000)
    assert relative_error(gradient(estimator(mixture), points, slope, parameters), whole) < 1e-12


@pytest.mark.parametrize("estimator", [implicit, graves])
def test_second_derivatives_are_refused(estimator):
    parameters = FAMILIES["diag_normals"].parameters()
    z = estimator(FAMILIES["diag_normals"].build(parameters)).rsample((5,))
    locs = parameters["locs"]
    (grad,) = torch.autograd.grad(z.pow(3).sum(), locs, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        grad.sum().backward()
