"""Groups of overlapping components, and those of many components that outlive a distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.components import Components
from pyro_mixtures.numerics.linkage import (
    MANY,
    complete_linkage,
    linkage_cut,
    pair_distance,
    single_linkage,
)
from pyro_mixtures.numerics.precision import is_transformed, records_graph

PATIENCE = 20
"""Groups serve one time for so many components: to find them takes a time of the order K^2."""

NEAR = 0.2
"""How far a component may move before the groups are found anew, in sizes of a group."""


class Grouping:
    """The groups of components, found when they are first asked for.

    Any grouping is unbiased that does not depend on the sample, so one that was kept while the
    parameters moved on is, too.

    Args:
        components: to be grouped.
        chained: let groups be chains of overlapping components.
        kept: groups of earlier parameters.

    Attributes:
        found: the labels, once they were asked for.
    """

    def __init__(
        self, components: Components, chained: bool = False, kept: KeptGroups | None = None
    ) -> None:
        self.components, self.chained, self.kept = components, chained, kept
        self.found: Tensor | None = None

    @property
    def labels(self) -> Tensor:
        """For each component the number of the first one in its group, ``(*B, K)``."""
        if self.found is None:
            if torch.compiler.is_compiling():  # which knows no inference mode to leave
                self.found = self._find()
            else:
                with torch.inference_mode(False):
                    self.found = self._find()
        return self.found

    def _find(self) -> Tensor:
        linkage = single_linkage if self.chained else complete_linkage
        components, chained = self.components, self.chained

        def find() -> Tensor:
            cut = linkage_cut(components.event_shape.numel())
            compiled = components.compiled() if components.num_components < MANY else None
            labels = None if compiled is None else compiled.groups(cut, chained)
            return linkage(components.distances(), cut) if labels is None else labels

        with torch.no_grad():
            if self.kept is None or components.num_components < MANY:
                return find()
            try:
                places = components.spread()
            except NotImplementedError:  # how far they moved is not known
                return find()
            return self.kept.labels(linkage.__name__, *places, find)


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
        ...     q.kept_groups = kept
        ...     print(len(q.groups.unique()))
        100
        100
        200
    """

    def __init__(self) -> None:
        self._found: dict[str, _Kept] = {}

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
        if records_graph() or is_transformed():
            return find()
        kept = self._found.get(linkage)
        if kept is None or not kept.serves(locs, stddev):
            kept = _Kept(find(), locs.clone(), stddev.clone())
        self._found[linkage] = kept._replace(uses=kept.uses + 1)
        return kept.labels


class _Kept(NamedTuple):
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
