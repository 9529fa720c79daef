"""Groups of overlapping components: transport within them, the score function between them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_mixtures.velocity.chunks import map_chunks
from pyro_mixtures.velocity.precision import records_graph


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
    other_locs, other_scales = locs.unsqueeze(-3), scales.unsqueeze(-3)  # (*B, 1, K, D)

    def rows(loc: Tensor, scale: Tensor) -> Tensor:
        loc, scale = loc.unsqueeze(-2), scale.unsqueeze(-2)  # (*B, R, 1, D)
        variance = scale.square() + other_scales.square()  # (*B, R, K, D)
        separation = (loc - other_locs).square() / (4 * variance)
        spread = (variance / (2 * scale * other_scales)).log() / 2
        return (separation + spread).sum(-1)

    return map_chunks(rows, (locs, scales), locs.numel())


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
        Integer labels in ``range(K)``, ``(*B, K)``: two components share a label when they share a
        group.

    Example:
        >>> points = torch.tensor([0.0, 1.0, 10.0, 11.5])
        >>> complete_linkage((points - points[:, None]).abs(), cut=2.0)
        tensor([0, 0, 2, 2])
    """
    if records_graph():
        return _opaque_linkage(distance, cut)
    return plainly(_complete_linkage, distance, cut)


def single_linkage(distance: Tensor, cut: float) -> Tensor:
    """Clustering with single linkage: chains of components that are near each other.

    Arguments and result are those of :func:`complete_linkage`.

    Example:
        >>> points = torch.tensor([0.0, 1.0, 2.0, 5.0])
        >>> single_linkage((points - points[:, None]).abs(), cut=1.5)
        tensor([0, 0, 0, 3])
    """
    size = distance.shape[-1]
    linked = (distance < cut) | torch.eye(size, dtype=torch.bool, device=distance.device)
    for _ in range(max(0, size - 1).bit_length()):  # each doubles the length of the chains
        linked = linked.float() @ linked.float() > 0
    return linked.byte().argmax(-1)  # the first member


def _complete_linkage(distance: Tensor, cut: float) -> Tensor:
    index = torch.arange(distance.shape[-1], device=distance.device)
    labels = index.expand(distance.shape[:-1])
    near = distance < cut
    if bool(near.all()):
        return torch.zeros_like(labels)
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


def plainly(function: Callable[..., Tensor], *arguments: Tensor | float) -> Tensor:
    """Call a function without derivatives that looks at values, which ``vmap`` would hide.

    Args:
        function: of tensors with any batch shape on the left, which its result has, too.
        arguments: of the function.
    """
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is None:
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


_opaque_linkage = torch.library.custom_op(
    "pyro_mixtures::complete_linkage",
    # not to return a view of the index
    lambda distance, cut: _complete_linkage(distance, cut).contiguous(),
    mutates_args=(),
    schema="(Tensor distance, float cut) -> Tensor",
)


@_opaque_linkage.register_fake
def _(distance: Tensor, cut: float) -> Tensor:
    return distance.new_empty(distance.shape[:-1], dtype=torch.int64)
