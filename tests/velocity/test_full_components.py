"""Distances of Normals with covariances of their own."""

import math

import pytest
import torch

from pyro_mixtures.numerics.linkage import MANY, complete_linkage, linkage_cut, single_linkage
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cut", [math.inf, 2.0])
@pytest.mark.parametrize("kind", ["long", "zero", "nan", "infinite"])
def test_distances_of_others_survive_a_dead_component(kind, cut, dtype):
    """One without density, or so ill-conditioned that no covariance has a Cholesky factor."""
    torch.manual_seed(0)
    K = MANY if cut < math.inf else 5
    locs = 0.1 * torch.randn(2, K, 20, dtype=dtype)
    scale_tril = 0.3 * torch.randn(2, K, 20, 20, dtype=dtype).tril(-1) + torch.eye(20, dtype=dtype)
    if kind == "long":
        scale_tril[:, 1].diagonal(dim1=-2, dim2=-1).copy_(torch.logspace(-10, 10, 20))
    else:
        scale_tril[:, 1] *= {"zero": 0.0, "nan": math.nan, "infinite": math.inf}[kind]
    kept = [k for k in range(K) if k != 1]
    found = bhattacharyya_normal(locs, scale_tril, cut)
    expected = bhattacharyya_normal(locs[:, kept], scale_tril[:, kept], cut)
    torch.testing.assert_close(found[:, kept][:, :, kept], expected, rtol=1e-3, atol=1e-3)
    assert not (found[:, 1, kept] < linkage_cut(20)).any()
    for linkage in (complete_linkage, single_linkage):
        labels, others = linkage(found, 3.0), linkage(expected, 3.0)
        assert (labels == 1).sum(-1).tolist() == [1, 1]  # alone
        assert torch.equal(labels[:, kept], torch.tensor(kept)[others])


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
