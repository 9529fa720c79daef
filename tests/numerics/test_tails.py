"""Fields far out, where densities underflow and distribution functions are 1 to rounding."""

import pytest
import torch

from tests.registry import FAMILIES, each_family, each_transport

DISTANCES = torch.tensor(
    [3.0, 8.0, 20.0, 35.0], dtype=torch.float64
)  # beyond 35 is 1e-268; no sample gets there, and beyond 38 there is no number for it


def contributions(family, transport, parameters, z):
    """``A_j`` relative to their average, in which the hub, a choice of the transport, cancels."""
    *components, logits = (value.detach() for value in parameters.values())
    weights = logits.softmax(-1)
    log_prob = family.reference(parameters).log_prob(z).detach().unsqueeze(-1)
    field = family.distribution.transports[transport](
        z, torch.ones_like(z), log_prob, weights[None], *components, precision=torch.float64
    )
    return field - (field @ weights).unsqueeze(-1)


@each_family
@pytest.mark.parametrize("side", [-1, 1])
def test_transports_agree_in_one_dimension(family, side):
    """Where the solution is unique. (Not farther out: there the hub of displacement outweighs the
    mixture by many orders, and what is left of it after the average is rounding.)"""
    parameters = family.parameters(K=3, D=1, scales=(0.9, 1.1), spread=0.5, shift=0.0)
    z = side * DISTANCES[:2].unsqueeze(-1)
    fields = [
        contributions(family, transport, parameters, z)
        for transport in family.distribution.transports
    ]
    for field in fields:
        assert field.isfinite().all()
        assert (field.abs() > 1e-3).any(-1).all()
        torch.testing.assert_close(field, fields[0], rtol=1e-6, atol=1e-9)


@each_transport
@pytest.mark.parametrize("D", [1, 2, 4])
def test_reflection(family, transport, D):
    """Both tails are equally precise: a mirrored mixture has the mirrored field. The order of
    coordinates is averaged over, so nothing else tells left from right."""
    parameters = family.parameters(K=3, D=D, scales=(0.8, 1.2), spread=0.5, shift=0.0)
    mirrored = {name: -x if name == "locs" else x for name, x in parameters.items()}
    if "control_var" in parameters:  # the hub's place and scale
        place, scale = parameters["control_var"].unbind(-3)
        mirrored["control_var"] = torch.stack([-place, scale], -3)
    # correlated coordinates are so much farther out that the hub's share overflows at 45
    distances = DISTANCES[:3] if family.has_full_factors else DISTANCES
    z = distances.unsqueeze(-1) * torch.linspace(1, 0.5, D, dtype=torch.float64)
    right = contributions(family, transport, parameters, z)
    left = -contributions(family, transport, mirrored, -z)
    torch.testing.assert_close(right, left, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("transport", FAMILIES["diag_normals"].distribution.transports)
def test_a_coordinate_that_all_components_share(transport):
    """It adds nothing, though its density, a factor of every current, may underflow."""
    family = FAMILIES["diag_normals"]
    alone = family.parameters(K=3, D=1, scales=(0.9, 1.1), spread=0.5, shift=0.0)
    rest = torch.zeros(3, 1).double()
    joined = {
        **alone,
        "locs": torch.cat([alone["locs"], rest], -1),
        "coord_scale": torch.cat([alone["coord_scale"], rest + 1], -1),
    }
    near = torch.full((4, 1), 0.3, dtype=torch.float64)
    both = torch.cat([near, DISTANCES.unsqueeze(-1)], -1)
    expected = contributions(family, transport, alone, near)
    actual = contributions(family, transport, joined, both)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
