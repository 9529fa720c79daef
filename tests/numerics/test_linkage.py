"""Groups of components against direct computations."""

import pytest
import torch

from pyro_mixtures.numerics import linkage
from pyro_mixtures.numerics.linkage import (
    MANY,
    bhattacharyya_diag_normal,
    complete_linkage,
    linkage_cut,
    single_linkage,
)


def groups_of(labels):
    return {tuple((labels == label).nonzero().flatten().tolist()) for label in labels.unique()}


def brute_force(distance, cut):
    """Merge the two groups whose farthest members are closest, again and again."""
    groups = [(k,) for k in range(len(distance))]
    while len(groups) > 1:
        farthest, first, second = min(
            (float(max(distance[a, b] for a in one for b in other)), one, other)
            for i, one in enumerate(groups)
            for other in groups[:i]
        )
        if farthest >= cut:
            break
        groups = [group for group in groups if group not in (first, second)] + [first + second]
    return {tuple(sorted(group)) for group in groups}


def random_distances(*shape):
    points = torch.randn(*shape, 2, dtype=torch.float64)
    return torch.cdist(points, points)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 15])
@pytest.mark.parametrize("cut", [0.0, 0.5, 1.5, 3.0, 100.0])
def test_complete_linkage(size, cut):
    distance = random_distances(6, size)
    labels = complete_linkage(distance, cut)
    assert labels.shape == (6, size)
    assert ((labels >= 0) & (labels < size)).all()
    for b in range(6):
        assert groups_of(labels[b]) == brute_force(distance[b], cut)
        assert torch.equal(
            groups_as_pairs(labels[b]), groups_as_pairs(complete_linkage(distance[b], cut))
        )


def groups_as_pairs(labels):
    return labels.unsqueeze(-1) == labels


@pytest.mark.parametrize("cut", [0.05, 0.3, 1.0, 3.0, 100.0])
def test_many_components(monkeypatch, cut):
    """One pair of groups after another: the groups are those of many pairs at once."""
    distance = random_distances(2, 3, MANY)
    labels = complete_linkage(distance, cut)
    monkeypatch.setattr(linkage, "MANY", MANY + 1)
    assert torch.equal(labels, complete_linkage(distance, cut))
    for few in distance[..., :15, :15].flatten(0, 1):
        assert groups_of(linkage._nearest_neighbour_chain(few, cut)) == brute_force(few, cut)


def test_batches_of_any_shape():
    distance = random_distances(2, 3, 7)
    labels = complete_linkage(distance, 1.5)
    for b in range(2):
        for c in range(3):
            alone = complete_linkage(distance[b, c], 1.5)
            assert torch.equal(groups_as_pairs(labels[b, c]), groups_as_pairs(alone))


def test_chains_are_not_groups():
    """Complete linkage bounds the diameter: single linkage would join all of these."""
    points = torch.arange(6.0)
    labels = complete_linkage((points - points.unsqueeze(-1)).abs(), 1.5)
    assert max(len(group) for group in groups_of(labels)) == 2


@pytest.mark.parametrize("size", [1, 2, 3, 8, 15, 40])
@pytest.mark.parametrize("cut", [0.0, 0.5, 1.0, 100.0])
def test_single_linkage(size, cut):
    distance = random_distances(6, size)
    labels = single_linkage(distance, cut)
    assert labels.shape == (6, size)
    for b in range(6):
        groups = {frozenset({k}) for k in range(size)}
        for i, j in (distance[b] < cut).nonzero().tolist():
            joined = [group for group in groups if i in group or j in group]
            groups = groups.difference(joined) | {frozenset().union(*joined)}
        assert groups_of(labels[b]) == {tuple(sorted(group)) for group in groups}


@pytest.mark.parametrize("size", [2, 3, 5, 9, 17, 33, 500])
def test_single_linkage_follows_chains_of_any_length(size):
    points = torch.arange(float(size))[torch.randperm(size)]
    assert (single_linkage((points - points.unsqueeze(-1)).abs(), 1.5) == 0).all()


def test_bhattacharyya_is_the_overlap():
    locs = torch.tensor([[0.3], [-1.0], [2.5], [0.3]], dtype=torch.float64)
    scales = torch.tensor([[0.5], [1.5], [1.0], [0.5]], dtype=torch.float64)
    z = torch.arange(-20, 20, 0.02, dtype=torch.float64)
    root = torch.distributions.Normal(locs, scales).log_prob(z).div(2).exp()  # (K, Z)
    expected = -(root @ root.mT * 0.02).log()
    actual = bhattacharyya_diag_normal(locs, scales)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def test_bhattacharyya_adds_over_coordinates_and_batches():
    locs, scales = torch.randn(2, 4, 3), torch.rand(2, 4, 3) + 0.5
    parts = [
        bhattacharyya_diag_normal(locs[..., i : i + 1], scales[..., i : i + 1]) for i in range(3)
    ]
    total = bhattacharyya_diag_normal(locs, scales)
    assert total.shape == (2, 4, 4)
    torch.testing.assert_close(total, sum(parts))


def test_cut_grows_with_the_dimension():
    """0.5 + 0.7 ln D: wider groups in higher dimension."""
    assert linkage_cut(1) == 0.5
    assert linkage_cut(100) == pytest.approx(3.7236, abs=1e-4)
