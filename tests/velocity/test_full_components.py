"""Distances of Normals with covariances of their own."""

import pytest
import torch

from pyro_mixtures.numerics.linkage import MANY, linkage_cut
from pyro_mixtures.velocity.full_components import bhattacharyya_normal


@pytest.mark.parametrize("width", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_distances_up_to_a_cut(batch, width):
    """Below it they are exact, and above they are lower bounds that are not below the cut."""
    D, K = 3, MANY
    cut = linkage_cut(D)
    locs = 4 * torch.rand(*batch, K, D, dtype=torch.float64)
    noise = torch.randn(*batch, K, D, D, dtype=torch.float64).tril(-1)
    scale_tril = width * (torch.eye(D) + 0.5 * noise)
    exact = bhattacharyya_normal(locs, scale_tril)
    bounded = bhattacharyya_normal(locs, scale_tril, cut)
    assert torch.equal(bounded, bounded.mT)
    assert torch.equal(bounded < cut, exact < cut)
    near = exact < cut
    torch.testing.assert_close(bounded[near], exact[near])
    assert (bounded <= exact + 1e-9).all()
    assert (bounded < exact - 1e-9).any()
