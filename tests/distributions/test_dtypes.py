"""Parameters of several dtypes, and of those narrower than float32."""

import pytest
import torch
from torch.distributions import Normal

from pyro_mixtures.distributions import MixtureOfDiagNormals
from tests.registry import each_family, each_transport, gradients, leaves


@each_transport
def test_mixed_precision(family, transport):
    """Each parameter's gradient has the parameter's dtype."""
    parameters = family.parameters(dtype=torch.float32)
    parameters["component_logits"] = parameters["component_logits"].detach().double()
    parameters = leaves(parameters)
    z = family.build(parameters, transport=transport).rsample((3,))
    for name, value in gradients(z, parameters).items():
        assert value.dtype == parameters[name].dtype


@each_family
def test_results_have_the_promoted_dtype(family):
    parameters = family.parameters(dtype=torch.float32)
    name = next(iter(parameters))
    q = family.build({**parameters, name: parameters[name].double()})
    results = [*(getattr(q, name) for name in parameters), q.mean, q.stddev, q.sample()]
    assert {x.dtype for x in results} == {torch.float64}
    for dtype in (torch.int64, torch.float32):
        assert q.log_prob(torch.ones(2, dtype=dtype)).dtype == torch.float64


def test_integers_have_densities():
    q = MixtureOfDiagNormals(torch.zeros(2, 1), torch.ones(2, 1), torch.zeros(2))
    exact = Normal(0.0, 1.0).log_prob(torch.tensor(1.0)).item()
    assert q.log_prob(torch.ones(1, dtype=torch.int64)).item() == pytest.approx(exact)


def test_half_precision_draws_every_component():
    weights = torch.tensor([1e-3, 0.997, 2e-3])
    locs = torch.tensor([[-8.0], [0.0], [8.0]])
    q = MixtureOfDiagNormals(*(x.bfloat16() for x in (locs, torch.ones(3, 1), weights.log())))
    z = q.sample((200_000,)).squeeze(-1)
    found = torch.stack([(z < -4).float().mean(), (z > 4).float().mean()])
    expected = q.component_logits.float().softmax(-1)[[0, 2]]
    assert torch.allclose(found, expected, atol=5 * (2e-3 / 200_000) ** 0.5)


@each_transport
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_computes_in_single(family, transport, dtype):
    """Gradients are those of float32, rounded. (Shapes of one sample and of several.)"""
    half = leaves(family.parameters(scales=(0.5, 1.0)), dtype)
    single = leaves(half, torch.float32)
    for sample_shape in ((), (5,)):
        points = family.build(half).sample(sample_shape)
        values = []
        for parameters in (half, single):
            q = family.build(parameters, transport=transport)
            value = points.to(parameters["component_logits"].dtype)
            z = q.reparameterize(value)
            values.append((q.log_prob(value), gradients(z, parameters, value.cos())))
        (log_prob, actual), (expected_log_prob, expected) = values
        rounding = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(log_prob.float(), expected_log_prob, rtol=rounding, atol=0)
        for name, value in expected.items():
            assert actual[name].dtype == dtype
            error = (actual[name].float() - value).abs().max()
            assert error < rounding * value.abs().max()
