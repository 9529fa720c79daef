"""Groups of overlapping components: transport within them, the score function between them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy
import torch
from torch import Tensor

from pyro_mixtures.numerics.chunks import CACHED, map_chunks
from pyro_mixtures.numerics.precision import is_transformed, records_graph

MANY = 100
"""Components from which on it does not pay to treat all groups at once."""


def bhattacharyya_diag_normal(locs: Tensor, scales: Tensor) -> Tensor:
    r"""Bhattacharyya distances between all pairs of diagonal Normals.

    .. math::
        \sum_i \frac{(\mu_{ji} - \mu_{ki})^2}{4 (\sigma_{ji}^2 + \sigma_{ki}^2)}
        + \frac12 \log \frac{\sigma_{ji}^2 + \sigma_{ki}^2}{2 \sigma_{ji} \sigma_{ki}}

    Args:
        locs: ``(*B, K, D)``.
        scales: ``(*B, K, D)``.

    Returns:
        ``(*B, K, K)``.
    """
    others = locs.unsqueeze(-3), scales.unsqueeze(-3)  # (*B, 1, K, D)

    def rows(loc: Tensor, scale: Tensor) -> Tensor:
        return pair_distance(loc.unsqueeze(-2), scale.unsqueeze(-2), *others)  # (*B, R, K)

    return map_chunks(rows, (locs, scales), locs.numel(), CACHED)


def pair_distance(loc: Tensor, scale: Tensor, other_loc: Tensor, other_scale: Tensor) -> Tensor:
    """Bhattacharyya distances of diagonal Normals from others, ``(..., D) -> (...)``."""
    variance = scale.square() + other_scale.square()
    separation = ((loc - other_loc).square() / variance).sum(-1)
    # the factors are at least 1: a product that overflows is of a pair far apart
    spread = (variance / (2 * scale * other_scale)).prod(-1).log()
    return separation / 4 + spread / 2


def linkage_cut(dim: int) -> float:
    """The largest Bhattacharyya distance within a group.

    The score function's variance grows with the dimension and the velocity field's does not, so
    groups may be wider in higher dimension.
    """
    return 0.5 + 0.7 * math.log(dim)


def complete_linkage(distance: Tensor, cut: float) -> Tensor:
    """Agglomerative clustering with complete linkage, batched.

    Each step merges all pairs of groups that are each other's nearest neighbours. Complete linkage
    is reducible, so that order does not change the groups.

    Args:
        distance: symmetric distances, ``(*B, K, K)``.
        cut: groups are merged while the largest distance within the union is below this.

    Returns:
        Labels ``(*B, K)``: for each component the number of the first one in its group.

    Example:
        >>> points = torch.tensor([0.0, 1.0, 10.0, 11.5])
        >>> complete_linkage((points - points[:, None]).abs(), cut=2.0)
        tensor([0, 0, 2, 2])
    """
    if records_graph():
        return _opaque_complete_linkage(distance, cut)
    return plainly(_complete_linkage, distance, cut)


def single_linkage(distance: Tensor, cut: float) -> Tensor:
    """Clustering with single linkage: chains of components that are near each other.

    Arguments and result are those of :func:`complete_linkage`.

    Example:
        >>> points = torch.tensor([0.0, 1.0, 2.0, 5.0])
        >>> single_linkage((points - points[:, None]).abs(), cut=1.5)
        tensor([0, 0, 0, 3])
    """
    if records_graph():
        return _opaque_single_linkage(distance, cut)
    return plainly(_single_linkage, distance, cut)


def _single_linkage(distance: Tensor, cut: float) -> Tensor:
    """Each component takes the least label of its neighbours, until none changes."""
    size = distance.shape[-1]
    index = torch.arange(size, device=distance.device)
    linked = (distance < cut) | (index == index.unsqueeze(-1))
    labels = index.expand(distance.shape[:-1])
    if bool(linked.all()):
        return torch.zeros_like(labels)
    while True:
        least = torch.where(linked, labels.unsqueeze(-2), size).amin(-1)  # (*B, K)
        # also the one that gave its label away, and what all of them point at: chains are halved
        new = labels.scatter_reduce(-1, labels, least, "amin").minimum(least)
        new = new.gather(-1, new)
        if torch.equal(new, labels):
            return labels
        labels = new


def _complete_linkage(distance: Tensor, cut: float) -> Tensor:
    index = torch.arange(distance.shape[-1], device=distance.device)
    labels = index.expand(distance.shape[:-1])
    near = distance < cut
    if bool(near.all()):
        return torch.zeros_like(labels)
    if len(index) >= MANY:
        each = distance.reshape(-1, len(index), len(index)).unbind()
        return torch.stack([_nearest_neighbour_chain(one, cut) for one in each]).view(labels.shape)
    # a pair beyond the cut, and so any union that holds it, is never merged
    distance = distance.masked_fill(~near | (index == index.unsqueeze(-1)), math.inf)
    while True:
        closest, nearest = distance.min(-1)  # (*B, K)
        merge = (nearest.take_along_dim(nearest, -1) == index) & (closest < math.inf)
        if not bool(merge.any()):
            return labels
        partner = torch.where(merge, nearest, index)
        distance = torch.maximum(distance, distance.take_along_dim(partner.unsqueeze(-1), -2))
        distance = torch.maximum(distance, distance.take_along_dim(partner.unsqueeze(-2), -1))
        gone = partner < index  # the group goes on under the lower index of the two
        distance = distance.masked_fill(gone.unsqueeze(-1) | gone.unsqueeze(-2), math.inf)
        labels = torch.minimum(partner, index).take_along_dim(labels, -1)


def _nearest_neighbour_chain(distance: Tensor, cut: float) -> Tensor:
    """Complete linkage of one mixture, ``(K, K) -> (K,)``, with K^2 operations.

    A chain goes from a group to its nearest neighbour, and to that one's, until two are each
    other's: they are merged, and the chain goes on from before them.

    Reference:
        Murtagh, *A survey of recent advances in hierarchical clustering algorithms*, The Computer
        Journal 26(4), 1983.
    """
    near = (distance < cut).fill_diagonal_(False)
    members = near.any(-1).nonzero().squeeze(-1)  # of groups that may have several
    near = near[members][:, members]
    between = distance[members][:, members].masked_fill_(~near, math.inf).cpu().numpy()
    groups = numpy.arange(len(between))
    for start in range(len(between)):
        chain = [start]
        while True:
            last = chain[-1]
            nearest = int(between[last].argmin())
            if between[last, nearest] == math.inf:  # merged with all that it may be
                break
            if len(chain) == 1 or between[last, nearest] < between[last, chain[-2]]:
                chain.append(nearest)
                continue
            kept, gone = sorted(chain[-2:])
            between[kept] = between[:, kept] = numpy.maximum(between[kept], between[gone])
            between[gone] = between[:, gone] = math.inf
            groups[groups == gone] = kept
            chain = chain[:-2] or [kept]
    labels = torch.arange(len(distance), device=distance.device)
    labels[members] = members[torch.from_numpy(groups).to(members.device)]
    return labels


def plainly(function: Callable[..., Tensor], *arguments: Tensor | float) -> Tensor:
    """Call a function without derivatives that looks at values, which ``vmap`` would hide.

    Args:
        function: of tensors with any batch shape on the left, which its result has, too.
        arguments: of the function.
    """
    if torch.compiler.is_compiling() or not is_transformed():
        return function(*arguments)
    return _Plain.apply(function, *arguments)


class _Plain(torch.autograd.Function):
    """``vmap`` hands plain tensors to its rule."""

    @staticmethod
    def forward(function, *arguments):
        return function(*arguments)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info, in_dims, function, *arguments):
        def batched(x, dim):
            if dim is not None:
                return x.movedim(dim, 0)
            return x.expand(info.batch_size, *x.shape) if isinstance(x, Tensor) else x

        return _Plain.apply(function, *map(batched, arguments, in_dims[1:])), 0


def _opaque(linkage: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, float], Tensor]:
    """As one operator of recorded graphs, for it looks at values."""
    operator = torch.library.custom_op(
        f"pyro_mixtures::{linkage.__name__.lstrip('_')}",
        # not to return a view of the index
        lambda distance, cut: linkage(distance, cut).contiguous(),
        mutates_args=(),
        schema="(Tensor distance, float cut) -> Tensor",
    )

    @operator.register_fake
    def _(distance: Tensor, cut: float) -> Tensor:
        return distance.new_empty(distance.shape[:-1], dtype=torch.int64)

    return operator


_opaque_complete_linkage = _opaque(_complete_linkage)
_opaque_single_linkage = _opaque(_single_linkage)
