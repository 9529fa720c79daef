"""Corners: one component, coinciding ones, none of weight, one dimension, nothing at all."""

import pytest
import torch

from tests.pairwise import in_pairs
from tests.registry import (
    each_component,
    each_transport,
    gradients,
    leaves,
    relative_error,
    sample_at,
)

TOLERANCE = 1e-10
each_weight_gradient = pytest.mark.parametrize(
    "weight_gradient", ["pathwise", "clustered", "hybrid"]
)
each_dimension = pytest.mark.parametrize("D", [1, 3])


def outputs(family, parameters, points, **options):
    """Log densities, their gradients, and those of samples there with the score term."""
    mixture = family.build(parameters, **options)
    parts = mixture.score_parts(points)
    score = (torch.as_tensor(parts.score_function) * points.sum(-1)).sum()
    surrogate = (sample_at(mixture, points) * points.cos()).sum() + score
    log_prob = parts.log_prob
    return log_prob, gradients(log_prob, parameters), gradients(surrogate, parameters)


def select(family, parameters, members):
    """The mixture of some of the components."""
    letters = family.distribution._parameter_shapes()
    chosen = {
        name: value.index_select(letters[name].index("K") - len(letters[name]), members)
        if "K" in letters[name]
        else value
        for name, value in parameters.items()
    }
    return leaves(chosen)


@in_pairs
@each_transport
@each_weight_gradient
@each_dimension
def test_one_component(family, transport, weight_gradient, D):
    """A Normal, reparameterized as torch does."""
    parameters = family.parameters((2,), K=1, D=D)
    q = family.build(parameters, transport=transport, weight_gradient=weight_gradient)
    component = family.reference(parameters).component_distribution
    direct = component.rsample((5,)).squeeze(-2)
    points = direct.detach()
    torch.testing.assert_close(
        q.log_prob(points), component.log_prob(direct[..., None, :])[..., 0]
    )
    actual = gradients(sample_at(q, points), parameters, points.cos())
    assert relative_error(actual, gradients(direct, parameters, points.cos())) < TOLERANCE
    assert (actual["component_logits"] == 0).all()


@in_pairs
@each_transport
@each_weight_gradient
@each_dimension
def test_coinciding_components(family, transport, weight_gradient, D):
    """The gradients of one component, shared out by weight, and none for the weights."""
    one = family.parameters((2,), K=1, D=D)
    one["component_logits"].data.zero_()
    parameters = select(family, one, torch.zeros(3, dtype=torch.long))
    parameters["component_logits"].data.copy_(torch.tensor([0.5, -1.0, 0.0]))
    points = family.build(one).sample((5,))
    options = {"transport": transport, "weight_gradient": weight_gradient}
    log_prob, *single = outputs(family, one, points, **options)
    shared_log_prob, *shared = outputs(family, parameters, points, **options)
    torch.testing.assert_close(shared_log_prob, log_prob)
    weights = parameters["component_logits"].softmax(-1)
    for actual, expected in zip(shared, single, strict=True):
        for name in each_component(family, parameters):
            share = weights.reshape(2, 3, *(1,) * (expected[name].dim() - 2))
            expected[name] = share * expected[name]
        expected["component_logits"] = torch.zeros_like(weights)
        size = float(points.cos().abs().sum())
        assert relative_error(actual, expected, size) < 1e-8  # their path is not quite of length 0


@in_pairs
@each_transport
@each_weight_gradient
@each_dimension
def test_components_without_weight(family, transport, weight_gradient, D):
    """The mixture without them. Their places may change the groups and, in several dimensions,
    the field: of the weights' gradients only zeros are compared there."""
    parameters = family.parameters((2,), K=4, D=D)
    alive = torch.tensor([1, 3])
    parameters["component_logits"].data[:, [0, 2]] = -torch.inf
    rest = select(family, parameters, alive)
    points = family.build(rest).sample((5,))
    options = {"transport": transport, "weight_gradient": weight_gradient}
    log_prob, *actual = outputs(family, parameters, points, **options)
    expected_log_prob, *expected = outputs(family, rest, points, **options)
    torch.testing.assert_close(log_prob, expected_log_prob)
    for what, values, exact in zip(("density", "sample"), actual, expected, strict=True):
        for name in (*each_component(family, parameters), "component_logits"):
            assert (values[name][:, [0, 2]] == 0).all()
        live = select(family, values, alive)
        if what == "sample" and (D > 1 or weight_gradient == "clustered"):
            for name in ("component_logits", "control_var"):
                live.pop(name, None)
                exact.pop(name, None)
        assert relative_error(live, exact) < TOLERANCE


@in_pairs
@each_transport
@each_weight_gradient
@pytest.mark.parametrize(
    ("dtype", "logit"),
    [
        (torch.float32, -torch.inf),
        (torch.float32, -1e4),
        (torch.float32, -80.0),
        (torch.float64, -torch.inf),
        (torch.float64, -800.0),
    ],
)
def test_negligible_weights_stay_finite(family, transport, weight_gradient, dtype, logit):
    """Also where two of them are far away together, a group of no weight."""
    parameters = family.parameters(K=4, D=2, dtype=dtype)
    parameters["component_logits"].data[:2] = logit
    family.move_away(parameters, slice(2), 1e3)
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


@in_pairs
@each_transport
@pytest.mark.parametrize("weight_gradient", ["pathwise", "clustered"])
@pytest.mark.parametrize("validate_args", [True, False])
@pytest.mark.parametrize(
    ("batch_shape", "sample_shape"), [((), (0,)), ((2,), (0, 3)), ((0,), ()), ((2, 0), (3,))]
)
def test_nothing(family, transport, weight_gradient, batch_shape, sample_shape, validate_args):
    """No samples, or no mixtures: every result is empty, and gradients are zero."""
    parameters = family.parameters(batch_shape, K=3, D=2)
    options = {"transport": transport, "weight_gradient": weight_gradient}
    q = family.build(parameters, validate_args=validate_args, **options)
    for mixture in (q, q.expand((2, *batch_shape))):
        shape = (*sample_shape, *mixture.batch_shape)
        z = mixture.rsample(sample_shape)
        assert z.shape == (*shape, 2)
        parts = mixture.score_parts(z)
        assert parts.log_prob.shape == shape
        assert mixture.responsibilities(z).shape == (*shape, 3)
        surrogate = (parts.log_prob + torch.as_tensor(parts.score_function)).sum() + z.sum()
        assert all((value == 0).all() for value in gradients(surrogate, parameters).values())
