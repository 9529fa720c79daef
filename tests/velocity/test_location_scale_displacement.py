"""Displacement of smooth laws other than the Normal."""

import pytest
import torch
from pyro.distributions import Logistic
from torch.distributions import Categorical, Cauchy, Gumbel, Independent, MixtureSameFamily, Normal

from pyro_mixtures.velocity import location_scale_displacement as module
from pyro_mixtures.velocity.diagonal_components import diag_normal_log_prob
from pyro_mixtures.velocity.displacement import displacement, gauss_legendre
from pyro_mixtures.velocity.location_scale_displacement import location_scale_displacement
from tests.pairwise import in_pairs
from tests.registry import FAMILIES, randn
from tests.velocity.test_continuity import (
    LABELS,
    divergence,
    group_weights,
    largest_density,
    points_near,
)

each_law = pytest.mark.parametrize("law", [Logistic, Gumbel, Cauchy])


def drawn(law, D, scales, spread=1.0):
    """Locations, scales and logits of four components, and torch's mixture of them."""
    parameters = FAMILIES["diag_normals"].parameters(
        K=4, D=D, scales=scales, spread=spread, seed=D
    )
    locs, scales, logits = (value.detach() for value in parameters.values())
    components = Independent(law(locs, scales), 1)
    return locs, scales, logits, MixtureSameFamily(Categorical(logits=logits), components)


def unit_density(law, dtype=torch.float64):
    return law(
        torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype), validate_args=False
    ).log_prob


@in_pairs
@each_law
@pytest.mark.parametrize("groups", ["one", "two"])
@pytest.mark.parametrize("scales", [(0.7, 1.4), (0.2, 5.0)])
@pytest.mark.parametrize("D", [1, 2, 3, 5])
def test_weights_current(law, groups, scales, D):
    """``div w^j + q_j`` is the same density for all j of a group: the hub."""
    locs, scale, logits, reference = drawn(law, D, scales)
    z = points_near(reference)
    log_prob = reference.log_prob(z).unsqueeze(-1)
    within = group_weights(logits, groups)
    currents = location_scale_displacement(z, log_prob, within, locs, scale, unit_density(law))
    field = (log_prob.exp().unsqueeze(-1) * currents).unbind(-1)
    densities = reference.component_distribution.log_prob(z.unsqueeze(-2)).exp()  # (N, K)
    hub = (divergence(field, z) + densities) / largest_density(reference, z).unsqueeze(-1)
    labels = torch.tensor(LABELS[groups])
    for label in labels.unique():
        members = hub[:, labels == label]
        assert (members.amax(-1) - members.amin(-1)).max() < 1e-8


@pytest.mark.parametrize("D", [1, 4])
def test_normal_law(D):
    """Of the Normal law it is the displacement of matrix products."""
    locs, scales, logits, reference = drawn(Normal, D, (0.5, 2.0))
    z, grad = points_near(reference).detach(), randn(D)
    log_prob = diag_normal_log_prob(z, logits, locs, scales)
    log_prob = (log_prob + logits.log_softmax(-1)).logsumexp(-1, keepdim=True)
    within = group_weights(logits, "one")
    currents = location_scale_displacement(z, log_prob, within, locs, scales, unit_density(Normal))
    expected = displacement(
        z, grad.expand_as(z), log_prob, within, locs, scales, precision=torch.float64
    )
    torch.testing.assert_close(currents @ grad, expected, rtol=1e-9, atol=1e-10)


@in_pairs
@each_law
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize(("D", "spread"), [(1, 1.0), (2, 4.0), (5, 4.0), (30, 1.0)])
def test_nodes_suffice(law, dtype, tolerance, D, spread, monkeypatch):
    """Against a thousand nodes in float64, relative to the largest density at each point."""
    locs, scales, logits, reference = drawn(law, D, (0.2, 5.0), spread)
    z = points_near(reference).detach()
    within = group_weights(logits, "one")
    log_prob = reference.log_prob(z).unsqueeze(-1)

    def density_of_current(dtype):
        tensors = (x.to(dtype) for x in (z, log_prob, within, locs, scales))
        currents = location_scale_displacement(*tensors, unit_density(law, dtype)).double()
        ratio = log_prob.exp() / largest_density(reference, z).unsqueeze(-1)
        return currents * ratio.unsqueeze(-1)

    actual = density_of_current(dtype)
    many = gauss_legendre(1000, torch.float64, z.device)
    monkeypatch.setattr(module, "_rule", lambda *_: [x.flatten() for x in many])
    expected = density_of_current(torch.float64)
    assert (actual - expected).abs().max() < tolerance * expected.abs().max().clamp_min(1)


def test_beyond_the_largest_number_of_nodes_the_integral_is_unbiased(monkeypatch):
    """Then the nodes have a random offset, the mean over which is exact."""
    locs, scales, logits, reference = drawn(Cauchy, 2, (0.2, 5.0))
    z = points_near(reference, count=2).detach()
    log_prob = reference.log_prob(z).unsqueeze(-1)
    arguments = (z, log_prob, group_weights(logits, "one"), locs, scales, unit_density(Cauchy))
    exact = location_scale_displacement(*arguments)
    monkeypatch.setattr(module, "MAX_NODES", 1)  # 4 nodes
    torch.manual_seed(0)
    draws = torch.stack([location_scale_displacement(*arguments) for _ in range(4000)])
    error = draws.mean(0) - exact
    standard_error = draws.std(0) / len(draws) ** 0.5
    assert (draws[0] - exact).abs().max() > 1e-3 * exact.abs().max()
    # 4.5 standard errors of some 60 entries: a false alarm for 4 seeds in 10,000
    assert (error.abs() <= 4.5 * standard_error + 1e-9 * exact.abs().max()).all()
