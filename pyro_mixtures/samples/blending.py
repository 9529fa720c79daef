"""Blending of transport and score function within the groups of a mixture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_mixtures.numerics.precision import double
from pyro_mixtures.samples.shapes import unfolded
from pyro_mixtures.samples.weights import group_sums

PRIOR_DRAWS = 10
"""So many draws have as much weight as the starting point, the transport alone."""


class Blending:
    r"""Shares of transport and score function within each group, learned from earlier draws.

    Within a group the gradients P of the transport and S of the score function estimate the same,
    so that :math:`a P + (1 - a) S` is unbiased for every share a that does not depend on the
    current draw. Its variance is least at

    .. math:: a = \frac{E[S (S - P)]}{E[(S - P)^2]},

    summed over the group's logits, for :math:`E[S - P] = 0`. Both expectations are decaying
    averages over what :meth:`learn` has found: between two calls the shares stay as they
    are. The averages are of the gradients as they come, so that those of a cost that falls by
    orders of magnitude forget its beginning only slowly.

    Args:
        decay: weight of the past in the averages at each call of :meth:`learn`, in [0, 1).

    Raises:
        ValueError: for a ``decay`` outside [0, 1).
    """

    def __init__(self, *, decay: float = 0.995) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"Expected 0 <= decay < 1, but got {decay}")
        self.decay = decay
        self.num_draws = 0
        self._moments: Tensor | None = None  # (2, K)
        self._found: list[tuple[int, Tensor]] = []

    def draws(self) -> Draws:
        """Takes the two gradients of samples that are about to be drawn."""
        return Draws(self._found, self._moments, self.num_draws)

    def shares(self, groups: Tensor) -> Tensor:
        """The transport's share a of each component's group, whose label is given, ``(*B, K)``."""
        return self.draws().shares(groups)

    def learn(self) -> None:
        """Take what backward passes have found since the last call into the averages."""
        if not self._found:
            return
        size = self._found[-1][1].shape  # other numbers of components may have been before
        found = [(count, total) for count, total in self._found if total.shape == size]
        self._found.clear()
        counts, totals = zip(*found, strict=True)
        count = sum(counts)
        new = (totals[0] if len(totals) == 1 else torch.stack(totals).sum(0)) / count
        if self._moments is None or self._moments.shape != new.shape:
            self._moments, self.num_draws = torch.zeros_like(new), 0
        # from zero: only the moments' ratio counts, and the first step weighs no more than others
        self._moments = self.decay * self._moments.to(new) + (1 - self.decay) * new
        self.num_draws += count

    def state_dict(self) -> dict[str, Any]:
        """What was learned; the decay is no part of it."""
        self.learn()
        return {"moments": self._moments, "num_draws": self.num_draws}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of :meth:`state_dict`."""
        self._found.clear()
        self._moments, self.num_draws = state["moments"], state["num_draws"]


class Draws:
    """The shares for samples, and the gradients within the groups by both ways, as they are found.

    Each sample has its own. A cost reaches the transport through the samples and the score
    function through its own factor, so that both arrive with the same scale.

    Args:
        found: gets the number of samples and the sums over them of ``S (S - P)`` and
            ``(S - P)^2``, ``(2, K)``, once both gradients are known and finite.
        moments: the averages of these that were learned before, or None.
        num_draws: of how many samples.
    """

    def __init__(
        self, found: list[tuple[int, Tensor]], moments: Tensor | None, num_draws: int
    ) -> None:
        self._found, self._moments, self._num_draws = found, moments, num_draws
        self.transport: Tensor | None = None
        self.score: Tensor | None = None
        self._known: tuple[Tensor, Tensor] | None = None  # both ways ask for those of one grouping

    def shares(self, groups: Tensor) -> Tensor:
        """The transport's share a of each component's group, whose label is given, ``(*B, K)``."""
        if self._known is None or self._known[0] is not groups:
            self._known = groups, self._shares(groups)
        return self._known[1]

    def _shares(self, groups: Tensor) -> Tensor:
        if self._moments is None or self._moments.shape[-1] != groups.shape[-1]:
            return torch.ones(groups.shape, device=groups.device)
        moments = self._moments.to(groups.device).expand(*groups.shape[:-1], 2, -1)
        covariance, variance = group_sums(moments, groups.unsqueeze(-2)).unbind(-2)
        best = torch.where(variance > 0, covariance / variance, 1).clamp(0, 1)
        return 1 + (best - 1) * (self._num_draws / (self._num_draws + PRIOR_DRAWS))

    def tell_transport(self, gradients: Tensor) -> None:
        """P, ``(*B, S, K)``."""
        self.transport = gradients
        self._compare()

    def tell_score(self, gradients: Tensor) -> None:
        """S, ``(*X, K)``, where X is the samples' shape."""
        self.score = gradients
        self._compare()

    @torch.no_grad()
    def _compare(self) -> None:
        if self.transport is None or self.score is None:
            return
        transport, score = double(self.transport, self.score)
        self.transport = self.score = None  # another backward pass has a pair of its own
        score = score.reshape(-1, score.shape[-1])  # (X, K)
        difference = score - unfolded(transport, score.shape)
        sums = (torch.stack([score, difference]) * difference).sum(1)  # (2, K)
        if bool(sums.isfinite().all()):
            self._found.append((len(score), sums))
