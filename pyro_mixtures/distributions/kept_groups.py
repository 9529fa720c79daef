"""Groups of many components that outlive a distribution, while their components stay near."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.velocity.clustering import linkage_cut, pair_distance
from pyro_mixtures.velocity.precision import records_graph

PATIENCE = 20
"""Groups serve one time for so many components: to find them takes a time of the order K^2."""

NEAR = 0.2
"""How far a component may move before the groups are found anew, in sizes of a group."""


class KeptGroups:
    """Groups of those mixtures, one after another, whose parameters are being learned.

    A grouping is unbiased if it does not depend on the current sample, and those of earlier
    parameters do not. Its variance is low as long as the groups are of overlapping components:
    they are found anew after K / ``PATIENCE`` uses, and at once if a component has gone farther
    than ``NEAR`` or the shapes, the dtype or the device are others. Mixtures of few
    components do not ask: their groups are found each time.

    Example:
        >>> from pyro_mixtures.distributions import MixtureOfDiagNormals
        >>> kept, scales, logits = KeptGroups(), torch.ones(200, 1), torch.zeros(200)
        >>> locs = torch.arange(200.0).unsqueeze(-1)
        >>> for place in (locs, locs + 0.1, 3 * locs):
        ...     q = MixtureOfDiagNormals(place, scales, logits)
        ...     q._kept_groups = kept
        ...     print(len(q._groups.unique()))
        100
        100
        200
    """

    def __init__(self) -> None:
        self._found: dict[str, _Grouping] = {}

    def labels(
        self, linkage: str, locs: Tensor, stddev: Tensor, find: Callable[[], Tensor]
    ) -> Tensor:
        """Labels of groups, ``(*B, K)``.

        Args:
            linkage: the kind of groups: each is kept by itself.
            locs: of the components, ``(*B, K, D)``.
            stddev: of their coordinates, ``(*B, K, D)``.
            find: finds the groups.
        """
        if records_graph() or torch._C._functorch.peek_interpreter_stack() is not None:
            return find()
        kept = self._found.get(linkage)
        if kept is None or not kept.serves(locs, stddev):
            kept = _Grouping(find(), locs.clone(), stddev.clone())
        self._found[linkage] = kept._replace(uses=kept.uses + 1)
        return kept.labels


class _Grouping(NamedTuple):
    """Groups, and the components that they were found for."""

    labels: Tensor
    locs: Tensor
    stddev: Tensor
    uses: int = 0

    def serves(self, locs: Tensor, stddev: Tensor) -> bool:
        """Whether the groups may be those of other parameters."""
        for mine, other in ((self.locs, locs), (self.stddev, stddev)):
            if (mine.shape, mine.dtype, mine.device) != (other.shape, other.dtype, other.device):
                return False
        if self.uses >= locs.shape[-2] // PATIENCE:
            return False
        moved = pair_distance(locs, stddev, self.locs, self.stddev).amax()
        return bool(moved < NEAR * linkage_cut(locs.shape[-1]))  # not if it is NaN
