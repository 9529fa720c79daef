"""float32 against float64 where squares, products and differences lose digits."""

import pyro.distributions
import pytest
import torch
from torch.distributions import Normal

from pyro_mixtures.distributions import MixtureOfDiagNormals
from tests.registry import FAMILIES, each_transport, gradients, leaves, relative_error, sample_at

TOLERANCE = 1e-3


def compare(family, parameters, **options):
    """Density, responsibilities and gradients in float32 and, from the same rounded numbers, in
    float64. Returns those in float64."""
    single = leaves(parameters, torch.float32)
    double = leaves(single, torch.float64)
    points = family.build(single).sample((20,))
    cost_gradient = torch.randn_like(points)
    results = []
    for p, z in ((single, points), (double, points.double())):
        mixture = family.build(p, **options)
        torch.manual_seed(1)  # the offset of the nodes of long paths is random
        pathwise = gradients(sample_at(mixture, z), p, cost_gradient.to(z))
        log_prob = mixture.log_prob(z)
        results.append((log_prob, mixture.responsibilities(z), pathwise, gradients(log_prob, p)))
    actual, expected = results
    assert actual[0].dtype == actual[1].dtype == torch.float32
    assert all(x.dtype == torch.float32 for part in actual[2:] for x in part.values())
    torch.testing.assert_close(actual[0].double(), expected[0], rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(actual[1].double(), expected[1], rtol=0, atol=TOLERANCE)
    for single_gradients, double_gradients in zip(actual[2:], expected[2:], strict=True):
        assert all(x.isfinite().all() for x in double_gradients.values())
        assert relative_error(single_gradients, double_gradients) < TOLERANCE
    # float64 itself against torch's classes, which subtract before they square
    reference = family.reference(double)
    log_prob = reference.log_prob(points.double())
    torch.testing.assert_close(expected[0], log_prob, rtol=1e-6, atol=1e-6)
    assert relative_error(expected[3], gradients(log_prob, double)) < 1e-6
    return points.double(), cost_gradient.double(), double, expected


STRESS = {
    "60 dimensions": {"D": 60, "scales": (1.0, 2.0)},
    "narrow": {"D": 5, "scales": (1e-4, 1e-4), "spread": 1e-4, "shift": 0.01},
    "wide": {"D": 5, "scales": (1e4, 1e4), "spread": 1e4},
    "narrow and far from the origin": {
        "D": 5,
        "scales": (0.01, 0.02),
        "spread": 0.01,
        "shift": 10.0,
    },
    "narrow and wide": {"D": 3, "scales": (1e-4, 1e4), "spread": 1.0},
    "far apart": {"D": 3, "scales": (1.0, 1.0), "spread": 1e4},
}


@each_transport
@pytest.mark.parametrize("stress", STRESS)
def test_stress(family, transport, stress):
    compare(family, family.parameters(K=4, **STRESS[stress]), transport=transport)


@each_transport
def test_ten_thousand_dimensions_overlapping(family, transport):
    parameters = family.parameters(
        K=10, D=10_000, scales=(0.98, 1.02), spread=0.02, dtype=torch.float32
    )
    *_, (_, responsibilities, pathwise, _) = compare(family, parameters, transport=transport)
    # some samples have several likely components: the comparison is not one of zeros and ones
    assert (responsibilities.amax(-1) < 0.9).any()
    assert pathwise["component_logits"].abs().max() > 1e-3


@each_transport
def test_ten_thousand_dimensions_separated(family, transport):
    """One component is responsible for each sample: each gets just its own samples' gradient."""
    parameters = family.parameters(K=10, D=10_000, scales=(0.9, 1.1), dtype=torch.float32)
    points, grad, double, (_, responsibilities, pathwise, _) = compare(
        family, parameters, transport=transport
    )
    assert (responsibilities.amax(-1) == 1).all()
    distance = torch.cdist(points, double["locs"].detach())
    own = torch.nn.functional.one_hot(distance.argmin(-1), 10).to(grad)
    torch.testing.assert_close(pathwise["locs"], own.mT @ grad)


def test_where_pyro_fails():
    """Sixty dimensions in float32 (STRESS has the same for this package)."""
    torch.manual_seed(0)
    parameters = FAMILIES["diag_normals"].parameters(K=4, **STRESS["60 dimensions"])
    single = leaves(parameters, torch.float32)
    z = pyro.distributions.MixtureOfDiagNormals(**single).rsample(torch.Size([20]))
    assert not gradients(z, single)["component_logits"].isfinite().all()


@each_transport
@pytest.mark.parametrize("weight_gradient", ["pathwise", "clustered", "score"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("logit", [-torch.inf, -1e4, -800.0, -80.0])
def test_negligible_weights_stay_finite(family, transport, weight_gradient, dtype, logit):
    """Also where two of them are far away together, a group of no weight."""
    parameters = family.parameters(K=4, D=2, dtype=dtype)
    with torch.no_grad():
        parameters["component_logits"][:2] = logit
        parameters["locs"][:2] += 1e3
    mixture = family.build(parameters, transport=transport, weight_gradient=weight_gradient)
    z = mixture.rsample((50,))
    parts = mixture.score_parts(z.detach())
    for output in (z, parts.log_prob, torch.as_tensor(parts.score_function).sum()):
        if not output.requires_grad:
            continue
        assert output.isfinite().all()
        values = gradients(output, parameters)
        assert all(x.isfinite().all() for x in values.values())
        assert values["component_logits"][:2].abs().max() < 1e-10


@each_transport
def test_mixed_precision(family, transport):
    """Each parameter's gradient has the parameter's dtype."""
    parameters = family.parameters(dtype=torch.float32)
    parameters["component_logits"] = parameters["component_logits"].detach().double()
    parameters = leaves(parameters)
    z = family.build(parameters, transport=transport).rsample((3,))
    for name, value in gradients(z, parameters).items():
        assert value.dtype == parameters[name].dtype


def test_results_have_the_promoted_dtype():
    q = MixtureOfDiagNormals(torch.zeros(2, 1).double(), torch.ones(2, 1), torch.zeros(2))
    assert {p.dtype for p in (q.locs, q.coord_scale, q.component_logits, q.mean, q.stddev)} == {
        torch.float64
    }
    exact = Normal(0.0, 1.0).log_prob(torch.tensor(1.0)).item()
    for dtype, expected in ((torch.int64, q.locs.dtype), (torch.float32, q.locs.dtype)):
        log_prob = q.log_prob(torch.ones(1, dtype=dtype))
        assert log_prob.dtype == expected
        assert log_prob.item() == pytest.approx(exact)


def test_half_precision_draws_every_component():
    weights = torch.tensor([1e-3, 0.997, 2e-3])
    locs = torch.tensor([[-8.0], [0.0], [8.0]])
    q = MixtureOfDiagNormals(*(x.bfloat16() for x in (locs, torch.ones(3, 1), weights.log())))
    z = q.sample((200_000,)).squeeze(-1)
    found = torch.stack([(z < -4).float().mean(), (z > 4).float().mean()])
    expected = q.component_logits.float().softmax(-1)[[0, 2]]
    assert torch.allclose(found, expected, atol=5 * (2e-3 / 200_000) ** 0.5)
