"""Distances of Normals with covariances of their own."""

import math

import pytest
import torch

from pyro_mixtures.numerics.linkage import MANY, linkage_cut
from pyro_mixtures.velocity import full_components
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


@pytest.mark.parametrize("D", [2, 30])
def test_sizes_of_terms_bound_what_is_lost(D):
    """In single precision, of each sample however many others there are."""
    z, locs = 20 + torch.randn(7, D), 20 + torch.randn(3, D)
    scale_tril = 0.01 * torch.eye(D).expand(3, D, D)
    log_weights = torch.zeros(3).log_softmax(-1)
    single, terms = full_components._products(z, log_weights, locs, scale_tril)
    _, of_one = full_components._products(z[:1], log_weights, locs, scale_tril)
    torch.testing.assert_close(of_one, terms[:1])
    standard = (z.unsqueeze(-2) - locs) / 0.01  # (S, K, D)
    center = locs.mean(0)
    largest = ((z - center).abs().amax(-1) / 0.01).unsqueeze(-1)  # (S, 1)
    assert (terms >= 2 * largest).all()
    expected = 2 * D**0.5 * 100 * torch.linalg.vector_norm(z - center, dim=-1, keepdim=True)
    torch.testing.assert_close(terms, expected.expand(7, 3), rtol=1e-4, atol=0.0)
    exact = standard.double().square().sum(-1) * -0.5
    exact = exact - D * math.log(0.01 * math.sqrt(2 * math.pi))
    error = (single.double() - exact).abs()
    assert (error <= torch.finfo(torch.float32).eps * terms * standard.abs().sum(-1)).all()
