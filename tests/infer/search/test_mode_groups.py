"""Components belong to one mode where the density between them does not fall below half."""

import math

import pytest
import torch

from pyro_mixtures.distributions import MixtureOfDiagNormals, MixtureOfNormals
from pyro_mixtures.infer.search.mode_groups import mode_groups, ridgelines
from tests.infer.search.stand_in import normals


def lists(groups):
    return [group.tolist() for group in groups]


@pytest.mark.parametrize(("distance", "modes"), [(0.1, 1), (3.0, 1), (3.6, 2), (50.0, 2)])
def test_two_normals_are_two_modes_from_a_distance_on(distance, modes):
    q = normals([[0.0, 0.0], [distance, 0.0]], [1.0, 1.0], [0.5, 0.5])
    assert len(mode_groups(q, q.log_prob)) == modes


def test_chains_are_one_mode_and_the_heaviest_comes_first():
    q = normals([[0.0], [20.0], [2.0], [4.0], [22.0]], [1.0] * 5, [0.1, 0.4, 0.1, 0.1, 0.3])
    assert lists(mode_groups(q, q.log_prob)) == [[1, 4], [0, 2, 3]]


def test_what_lies_in_a_valley_does_not_connect_the_modes_beside_it():
    q = normals([[0.0], [5.0], [10.0]], [1.0, 4.0, 1.0], [0.49, 0.02, 0.49])
    one, other = lists(mode_groups(q, q.log_prob))
    assert sorted(one + other) == [0, 1, 2]
    assert (0 in one) != (2 in one)


def arc(count, width):
    """Narrow Normals along half of a circle, and the log density of the whole arc."""
    angles = torch.linspace(0, math.pi, count, dtype=torch.float64)
    locs = torch.stack([angles.cos(), angles.sin()], -1)
    along = torch.stack([-angles.sin(), angles.cos()], -1)
    spread = math.pi / count / 3.6  # neighbours are two modes of the mixture
    covariance = (
        spread**2 * along[:, :, None] * along[:, None]
        + width**2 * locs[:, :, None] * locs[:, None]
    )
    q = MixtureOfNormals(locs, torch.linalg.cholesky(covariance), torch.zeros(count).double())

    def log_density(z):
        return -0.5 * ((z.norm(dim=-1) - 1) / width).square() + 20 * z[:, 1].clamp(max=0)

    return q, log_density


def test_dents_of_the_mixture_are_no_valleys_of_the_density():
    q, log_density = arc(12, 0.02)
    assert len(mode_groups(q, q.log_prob)) == 12
    assert len(mode_groups(q, log_density)) == 1


def test_what_is_joined_already_or_far_off_costs_no_evaluations():
    def none(z):
        raise AssertionError

    joined = normals([[0.0], [1.0], [2.0]], [1.0] * 3, [0.3, 0.3, 0.4])
    far = normals([[0.0], [100.0]], [1.0] * 2, [0.5, 0.5])
    assert lists(mode_groups(joined, none)) == [[0, 1, 2]]
    assert lists(mode_groups(far, none)) == [[0], [1]]


def test_the_neck_of_a_funnel_is_no_mode_of_its_own():
    locs = torch.zeros(3, 10, dtype=torch.float64)
    locs[:, 0] = torch.tensor([-4.0, 0.0, 4.0])
    scales = torch.tensor([0.05, 1.0, 20.0], dtype=torch.float64).unsqueeze(-1).repeat(1, 10)
    scales[:, 0] = 2.0
    q = MixtureOfNormals(locs, scales.diag_embed(), torch.zeros(3).double())
    assert lists(mode_groups(q, q.log_prob)) == [[0, 1, 2]]


def test_ways_without_mass_join_nothing():
    q = normals([[-1.9], [1.9]], [1.0, 1.0], [0.5, 0.5])

    def hole(z):
        return torch.where(z[:, 0].abs() < 1, -math.inf, 0.0)

    assert len(mode_groups(q, hole)) == 2
    assert len(mode_groups(q, lambda z: torch.zeros(len(z)).double())) == 1


def test_diagonal_and_full_normals_have_the_same_ways():
    generator = torch.Generator().manual_seed(0)
    locs = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    scales = torch.rand(4, 3, generator=generator, dtype=torch.float64) + 0.1
    first, second = torch.tensor([0, 1, 3]), torch.tensor([2, 0, 1])
    diagonal = ridgelines(locs, scales, first, second)
    full = ridgelines(locs, scales.diag_embed(), first, second)
    torch.testing.assert_close(diagonal, full)
    q = MixtureOfDiagNormals(3 * locs, scales, torch.zeros(4))
    same = MixtureOfNormals(3 * locs, scales.diag_embed(), torch.zeros(4))
    assert lists(mode_groups(q, q.log_prob)) == lists(mode_groups(same, same.log_prob))


def test_ways_are_those_of_the_formula():
    generator = torch.Generator().manual_seed(0)
    locs = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    factor = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64).tril()
    factor.diagonal(dim1=-2, dim2=-1).abs_().add_(0.2)
    (way,) = ridgelines(locs, factor, torch.tensor([0]), torch.tensor([1]))
    one, other = torch.cholesky_inverse(factor)
    offset = locs[1] - locs[0]
    lengths = [offset @ each @ offset for each in (one, other)]
    for point, even in zip(way, torch.linspace(0, 1, len(way) + 2)[1:-1].double(), strict=True):
        share = even * lengths[0] / (even * lengths[0] + (1 - even) * lengths[1])
        precision = (1 - share) * one + share * other
        moment = (1 - share) * one @ locs[0] + share * other @ locs[1]
        torch.testing.assert_close(point, torch.linalg.solve(precision, moment))


@pytest.mark.parametrize("scale", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("full", [True, False])
def test_a_narrow_mode_beside_a_wide_one_is_a_mode(scale, full):
    """Even shares of the ridgeline would all lie at the narrow end."""
    locs = torch.tensor([[0.0, 0.0], [4.1, 0.0]]).double()
    stddevs = torch.tensor([[1.0, 1.0], [scale, scale]]).double()
    logits = torch.zeros(2).double()
    if full:
        mixture = MixtureOfNormals(locs, stddevs.diag_embed(), logits)
    else:
        mixture = MixtureOfDiagNormals(locs, stddevs, logits)
    assert len(mode_groups(mixture, mixture.log_prob)) == 2
