"""Which components of a mixture of Normals belong to one mode of a density."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_mixtures.distributions import MixtureOfDiagNormals, MixtureOfNormals
from pyro_mixtures.normals.bounds import bhattacharyya_distances

NormalMixture = MixtureOfNormals | MixtureOfDiagNormals

FALL = math.log(2)
"""The density between two modes is at most half of that at the lower of their peaks."""

POINTS = 7
"""On the way between two means at which the density is looked at."""

NEIGHBOURS = 10
"""Of each component, to which ways are looked at in the mixture's own density."""

PAIRS = 10
"""Of components, the nearest of two groups, between which ways are looked at in the density."""

FARTHEST = 10.0
"""Bhattacharyya distance beyond which no ways are looked at in the density: two equal Normals are
9 standard deviations apart."""

MOST_PAIRS = 300
"""Between which ways are looked at in the density, the nearest ones: it may be dear."""

CHUNK = 500
"""Points at which the mixture is evaluated, or pairs of which ways are made, at once."""

ROWS = 10
"""Components whose distances from all others are computed at once."""


def mode_groups(mixture: NormalMixture, values: Callable[[Tensor], Tensor]) -> list[Tensor]:
    r"""Groups of components, one for each mode, the heaviest first.

    Two components belong to one mode where, on a way from one mean to the other, the density is
    above half of that at the lower end; and so do chains of components, where it is above half of
    the lower of the peaks that the chain connects. (A component in a valley joins one of the modes
    beside it, and does not connect them. Two equal Normals are two modes from 3.3 standard
    deviations on.) The way is the ridgeline

    .. math::
        z(s) = [(1 - s) P_a + s P_b]^{-1} [(1 - s) P_a \mu_a + s P_b \mu_b], \qquad 0 < s < 1,

    of the precisions P, on which all peaks and saddles of two Normals lie. It follows a curved
    ridge, which the straight line leaves. The mixture's own density is looked at first, which
    costs no evaluations, and then, between the groups that this makes, the density that it stands
    for: a mixture has dents between its components that the density has not.

    Args:
        mixture: of Normals, without batch shape.
        values: log densities ``(S, D) -> (S,)``, ``-inf`` where there is no mass.

    Returns:
        Indices of components, each ascending, ``(K_m,)``.

    Reference:
        Ray and Lindsay, *The topography of multivariate normal mixtures*, Annals of Statistics
        33(5), 2005, https://arxiv.org/abs/math/0602238. Hennig, *Methods for merging Gaussian
        mixture components*, Advances in Data Analysis and Classification 4, 2010.

    Example:
        >>> locs = torch.tensor([[0.0], [9.0], [1.0]], dtype=torch.float64)
        >>> q = MixtureOfNormals(locs, torch.ones_like(locs)[..., None], torch.zeros(3).double())
        >>> mode_groups(q, q.log_prob)
        [tensor([0, 2]), tensor([1])]
    """
    distances = component_distances(mixture)
    labels = _joined_by_mixture(mixture, distances)
    labels = _joined_by_density(mixture, distances, labels, values)
    weights = mixture.log_weights.detach().exp()
    groups = [(labels == label).nonzero()[:, 0] for label in labels.unique()]
    return sorted(groups, key=lambda group: -float(weights[group].sum()))


def normal_scales(mixture: NormalMixture) -> Tensor:
    """Standard deviations ``(K, D)`` or factors ``(K, D, D)``."""
    diagonal = isinstance(mixture, MixtureOfDiagNormals)
    return (mixture.coord_scale if diagonal else mixture.scale_tril).detach()


def component_distances(mixture: NormalMixture) -> Tensor:
    """Bhattacharyya distances of all pairs of components, ``(K, K)``."""
    locs, scales = mixture.locs.detach(), normal_scales(mixture)
    rows = zip(locs.split(ROWS), scales.split(ROWS), strict=True)
    return torch.cat([bhattacharyya_distances(*each, locs, scales) for each in rows])


def _joined_by_mixture(mixture: NormalMixture, distances: Tensor) -> Tensor:
    count = len(distances)
    near = distances.argsort(-1)[:, 1 : NEIGHBOURS + 1]  # (K, N), without itself
    pairs = torch.stack([torch.arange(count).unsqueeze(-1).expand_as(near), near]).flatten(1)
    first, second = pairs.sort(0).values.unique(dim=1)

    def values(z: Tensor) -> Tensor:
        return torch.cat([mixture.log_prob(each) for each in z.split(CHUNK)])

    peaks = values(mixture.locs.detach())
    return _joined(
        torch.arange(count), peaks, first, second, _lowest(mixture, values, first, second)
    )


def _joined_by_density(
    mixture: NormalMixture,
    distances: Tensor,
    labels: Tensor,
    values: Callable[[Tensor], Tensor],
) -> Tensor:
    known = labels.unique()
    chosen = []
    for place, one in enumerate(known):
        for other in known[:place]:
            first, second = (labels == one).nonzero()[:, 0], (labels == other).nonzero()[:, 0]
            between = distances[first][:, second].flatten()
            nearest = between.argsort()[:PAIRS]
            nearest = nearest[between[nearest] <= FARTHEST]
            chosen.append(
                torch.stack([first[nearest // len(second)], second[nearest % len(second)]])
            )
    pairs = torch.cat(chosen, 1) if chosen else labels.new_empty(2, 0)
    if not pairs.numel():
        return labels
    order = distances[pairs[0], pairs[1]].argsort(stable=True)[:MOST_PAIRS]
    first, second = pairs[:, order]
    peaks = values(mixture.locs.detach())
    return _joined(labels, peaks, first, second, _lowest(mixture, values, first, second))


def _lowest(
    mixture: NormalMixture, values: Callable[[Tensor], Tensor], first: Tensor, second: Tensor
) -> Tensor:
    """Of the log density on the ways of pairs, ``(N,)``."""
    locs, scales = mixture.locs.detach(), normal_scales(mixture)
    pairs = zip(first.split(CHUNK), second.split(CHUNK), strict=True)
    ways = torch.cat([ridgelines(locs, scales, *each) for each in pairs])
    return values(ways.flatten(0, 1)).view(len(first), POINTS).amin(1)


def ridgelines(locs: Tensor, scales: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Points between the means of pairs of Normals, ``(N, POINTS, D)``.

    Args:
        locs: ``(K, D)``.
        scales: ``(K, D)`` or ``(K, D, D)``.
        first: indices of one of each pair, ``(N,)``.
        second: of the other.
    """
    even = torch.linspace(0, 1, POINTS + 2, dtype=locs.dtype)[1:-1]  # (P,)
    offset = (locs[second] - locs[first]).unsqueeze(-2)  # (N, 1, D)
    if scales.dim() == locs.dim():
        squares = scales.square().unsqueeze(-2)
        lengths = [(offset.square() / squares[end]).sum(-1) for end in (first, second)]
        share = _shares(even, *lengths).unsqueeze(-1)  # (N, P, 1)
        there = share * squares[first]  # (N, P, D), as a share of the sum
        return locs[first].unsqueeze(-2) + offset * there / (there + (1 - share) * squares[second])
    # in units of the first, with C the covariance of the second: s [(1 - s) C + s]^-1 x
    factor = scales[first]
    whitened = [
        torch.linalg.solve_triangular(scales[end], offset.mT, upper=False)
        for end in (first, second)
    ]  # (N, D, 1)
    shares = _shares(even, *(each.square().sum(-2) for each in whitened))
    offset, ratio = whitened[0], torch.linalg.solve_triangular(factor, scales[second], upper=False)
    identity = torch.eye(ratio.shape[-1]).to(ratio)
    covariance = ratio @ ratio.mT
    points = []
    for each in shares.mT[..., None, None]:  # all at once would be much memory
        mixed = (1 - each) * covariance + each * identity
        points.append(factor @ torch.linalg.solve(mixed, each * offset))
    return locs[first].unsqueeze(-2) + torch.cat(points, -1).mT


def _shares(even: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Shares on the ridgelines that lie evenly between the means, ``(N, P)``.

    Those of a narrow Normal and a wide one would else all lie at the narrow one. Arguments are
    even shares ``(P,)``, and squared distances of the means in units of each end, ``(N, 1)``.
    """
    return even * first / (even * first + (1 - even) * second).clamp(min=1e-300)


def _joined(
    labels: Tensor, peaks: Tensor, first: Tensor, second: Tensor, lowest: Tensor
) -> Tensor:
    """Groups after those are joined between which the log density does not fall, ``(K,)``.

    Args:
        labels: of the groups before, ``(K,)``.
        peaks: log densities at the means, ``(K,)``.
        first: indices of one of each pair, ``(N,)``.
        second: of the other.
        lowest: log densities between them, ``(N,)``.
    """
    labels = labels.clone()
    saddles = torch.minimum(lowest, torch.minimum(peaks[first], peaks[second]))
    tops = {int(label): float(peaks[labels == label].amax()) for label in labels.unique()}
    for pair in saddles.argsort(descending=True, stable=True).tolist():
        one, other = int(labels[first[pair]]), int(labels[second[pair]])
        if one != other and min(tops[one], tops[other]) - float(saddles[pair]) < FALL:
            labels[labels == other] = one
            tops[one] = max(tops[one], tops[other])
    return labels
