"""The continuity equation of every elliptical law, with the divergence taken by autograd."""

import pytest
import torch
from torch.func import jacrev, vmap

from tests.elliptical import each_adaptive_law, each_law
from tests.pairwise import in_pairs
from tests.registry import gradients, leaves

# of tril_, which works in place; the backward pass itself is never under vmap
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")

TOLERANCE = 1e-8
POINTS = 16

each_setting = pytest.mark.parametrize(
    ("D", "scales"), [(1, (0.5, 0.5)), (2, (0.2, 5.0)), (3, (0.2, 5.0)), (5, (0.7, 1.4))]
)
each_path = pytest.mark.parametrize("samples", [1, 2])


def divergence(law, parameters, z, velocity):
    """``div(q v)``, ``(N, D, D)`` for fields ``z -> (D, D, D)`` with the coordinate first."""
    reference = law.reference(parameters)

    def current(z):
        return reference.log_prob(z).exp() * velocity(z)

    return vmap(jacrev(current))(z).diagonal(dim1=1, dim2=-1).sum(-1)


def constants(parameters):
    return {name: value.detach() for name, value in parameters.items()}


@in_pairs
@each_law
@each_setting
@each_path
def test_velocity(law, D, scales, samples):
    """``div(q v) = -dq/dL`` for every entry of L, relative to q at each point."""
    parameters = law.parameters(D=D, scales=scales, seed=D)
    z = law.build(parameters).sample((POINTS,))
    known = constants(parameters)
    inflow = divergence(law, known, z, lambda z: law.velocity(known, z, samples))
    each_point = leaves({name: x.expand(POINTS, *x.shape) for name, x in parameters.items()})
    density = law.reference(each_point).log_prob(z).exp()
    change = gradients(density, each_point)["scale_tril"]
    residual = (inflow + change).tril() * scales[0] / density[:, None, None]  # L's smallest unit
    assert residual.abs().max() < TOLERANCE


@in_pairs
@each_adaptive_law
@each_setting
@each_path
def test_rotations_leave_the_law_as_it_is(law, D, scales, samples):
    """``div(q v) = 0`` for what any ``control_var`` adds to the velocity of another one."""
    parameters = constants(law.parameters(D=D, scales=scales, seed=D))
    others = {**parameters, "control_var": torch.randn_like(parameters["control_var"])}
    z = law.build(parameters).sample((POINTS,))

    def null(z):
        one, other = (law.velocity(p, z, samples) for p in (parameters, others))
        return one - other

    density = law.reference(parameters).log_prob(z).exp()
    residual = divergence(law, parameters, z, null) / density[:, None, None]
    assert residual.abs().max() < TOLERANCE
    size = vmap(null)(z).abs().amax((0, 1))
    assert (size[torch.ones(D, D).tril(-1).bool()] > 0.1 * scales[0]).all()
