"""The continuity equation of every field, with the divergence taken by autograd."""

import pytest
import torch
from torch import Tensor

from pyro_mixtures.distributions import (
    MixtureOfDiagNormalsSharedCovariance,
    MixtureOfNormalsSharedCovariance,
)
from tests.pairwise import in_pairs
from tests.registry import each_family, each_transport, gradients, leaves

TOLERANCE = 1e-8
POINTS = 32
LABELS = {"one": [0, 0, 0, 0], "two": [0, 1, 1, 0]}
PROJECTED = (MixtureOfDiagNormalsSharedCovariance, MixtureOfNormalsSharedCovariance)


def divergence(field: list[Tensor], z: Tensor) -> Tensor:
    r"""``sum_i d field_i / d z_i``, point by point.

    Args:
        field: for each coordinate i an array of ``(N, M)``, a function of ``z``.
        z: ``(N, ..., D)``; point n affects only row n of the field.

    Returns:
        ``(N, M)``.
    """
    columns = []
    for column in range(field[0].shape[1]):
        parts = [
            torch.autograd.grad(component[:, column].sum(), z, retain_graph=True)[0][..., i]
            for i, component in enumerate(field)
        ]
        columns.append(sum(parts).reshape(len(z)))
    return torch.stack(columns, -1)


def points_near(reference, count=POINTS) -> Tensor:
    """Points about every component: where the narrow ones dominate and where the wide ones do."""
    component = reference.component_distribution
    return component.sample((count,)).flatten(0, 1).detach().requires_grad_()


def group_weights(logits: Tensor, groups: str) -> Tensor:
    """Of each component's group, ``(K, K)``, or ``(1, K)`` when there is one."""
    labels = torch.tensor(LABELS[groups])
    within = logits.masked_fill(labels.unsqueeze(-1) != labels, -torch.inf).softmax(-1)
    return within[:1] if groups == "one" else within


def largest_density(reference, z: Tensor) -> Tensor:
    """The scale of the error at each point: the densities there differ by many orders."""
    return reference.component_distribution.log_prob(z.unsqueeze(-2)).amax(-1).exp().detach()


@in_pairs
@each_transport
@pytest.mark.parametrize("groups", ["one", "two"])
@pytest.mark.parametrize("scales", [(0.7, 1.4), (0.2, 5.0)])
@pytest.mark.parametrize("D", [1, 2, 3, 5])
def test_weights_current(family, transport, groups, scales, D):
    """``div w^j + q_j`` is the same density for all j of a group: the hub."""
    parameters = family.parameters(K=4, D=D, scales=scales, seed=D)
    *components, logits = (value.detach() for value in parameters.values())
    reference = family.reference(parameters)
    z = points_near(reference)
    labels = torch.tensor(LABELS[groups])
    within = group_weights(logits, groups)

    log_prob = reference.log_prob(z).unsqueeze(-1)
    field = [
        log_prob.exp()
        * family.distribution.transports[transport](
            z, unit.expand_as(z), log_prob, within, *components, precision=torch.float64
        )
        for unit in torch.eye(D, dtype=torch.float64)
    ]
    densities = reference.component_distribution.log_prob(z.unsqueeze(-2)).exp()  # (N, K)
    hub = (divergence(field, z) + densities) / largest_density(reference, z).unsqueeze(-1)
    for label in labels.unique():
        members = hub[:, labels == label]
        assert (members.amax(-1) - members.amin(-1)).max() < TOLERANCE


@in_pairs
@each_transport
@pytest.mark.parametrize("groups", ["one", "two"])
@pytest.mark.parametrize("D", [1, 3])
def test_field_at_one_sample(family, transport, groups, D):
    """A sample of each of many mixtures takes another path through the code, to the same field."""
    if transport == "displacement" and family.distribution in PROJECTED and D > 1:
        pytest.skip("one sample is not projected on the axes of the means: test_spherical.py")
    parameters = family.parameters(K=4, D=D, scales=(0.2, 5.0))
    *components, logits = (value.detach() for value in parameters.values())
    reference = family.reference(parameters)
    z = points_near(reference).detach()
    values = (z, torch.randn_like(z), reference.log_prob(z).unsqueeze(-1).detach())
    within = group_weights(logits, groups)
    field = family.distribution.transports[transport]
    together = field(*values, within, *components, precision=torch.float64)
    each = (x.expand(len(z), *x.shape) for x in (within, *components))
    alone = field(*(x.unsqueeze(-2) for x in values), *each, precision=torch.float64)
    torch.testing.assert_close(alone.squeeze(-2), together, rtol=1e-9, atol=1e-10)


@in_pairs
@each_family
@pytest.mark.parametrize("scales", [(0.7, 1.4), (0.2, 5.0)])
@pytest.mark.parametrize("D", [1, 2, 3, 5])
def test_component_velocity(family, scales, D):
    """Eq. 12: ``div(q v) = -dq/dtheta`` for every entry of every component parameter."""
    parameters = family.parameters(K=3, D=D, scales=scales, seed=D)
    z = points_near(family.reference(parameters), count=8)
    each_point = leaves({name: x.expand(len(z), *x.shape) for name, x in parameters.items()})
    reference = family.reference(each_point)  # one mixture for each point
    density = reference.log_prob(z).exp()
    joint = each_point["component_logits"] + reference.component_distribution.log_prob(
        z.unsqueeze(-2)
    )
    responsibilities = joint.softmax(-1).unsqueeze(-2)  # (N, 1, K)
    own = family.build(each_point).components
    expected = list(gradients(density, each_point).values())[:-1]

    velocities = [
        own.scale.vjp(
            z.unsqueeze(-2),
            unit.expand(len(z), 1, D),
            responsibilities,
            *own.scale.parameters(own.locs),
        )
        for unit in torch.eye(D, dtype=torch.float64)
    ]
    if "control_var" in parameters:  # no sample moves with it
        assert not expected.pop().any()
    for parameter, change in enumerate(expected):
        field = [density.unsqueeze(-1) * v[parameter].flatten(1) for v in velocities]
        # the parameter's unit is the smallest scale
        residual = (divergence(field, z) + change.flatten(1)) * scales[0]
        error = residual / largest_density(reference, z).unsqueeze(-1)
        assert error.abs().max() < TOLERANCE
