"""The search for the modes of a density: one class, one step at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import torch
from torch import Tensor

from pyro_mixtures.distributions import (
    MixtureDistribution,
    MixtureOfDiagNormals,
    MixtureOfNormals,
)
from pyro_mixtures.infer.search.elbo_record import ElboRecord
from pyro_mixtures.infer.search.evaluations import Evaluations
from pyro_mixtures.infer.search.growing import DEPTHS, Candidates, grown
from pyro_mixtures.infer.search.improving import GROWN_UP, endless, improved
from pyro_mixtures.infer.search.natural_normals import DiagonalNormals, FullNormals
from pyro_mixtures.infer.search.sample_store import SampleStore
from pyro_mixtures.infer.search.search_state import restore, state_of
from pyro_mixtures.infer.search.simplifying import (
    dead_below,
    ended,
    refitted,
    without_dead,
    without_doubles,
    without_needless,
)
from pyro_mixtures.infer.search.starts import check_starts, prior_scale, started
from pyro_mixtures.numerics.validation import check_at_least, check_choice

KINDS = {"full": FullNormals, "diagonal": DiagonalNormals}
"""Normals by the name of their covariances."""

LARGEST_FULL = 100
"""Dimensions of Normals that have full covariances by default."""

EVALUATIONS, PLAIN_DIMENSION = 100_000, 20
"""The default budget, which grows with the dimension from there."""

LEAST_ASCENT, ENOUGH = 10, 200
"""Evaluations for each start at least, and by default."""

MAX_COMPONENTS = 200

FIRST_COMPONENTS = 60
"""Laplace approximations at most among the first components."""

BATCHES, LAST_BATCHES = 3, 8
"""Whose samples are kept while the mixture grows, and while it settles."""

EVERY, PAUSE = 4, 24
"""Steps after which the mixture grows, and in many dimensions, where components are dear: there
the last ones have grown up before there are others."""

CYCLE = EVERY * len(DEPTHS)

SETTLING = 60
"""Steps at the end, in which nothing is added and step sizes fall."""


class ModeSearch:
    r"""A mixture of Normals that is fitted to a density and grows until it has all of its mass.

    The lower level of :func:`~pyro_mixtures.infer.fit`, for densities that are no Pyro models.
    A first call of :meth:`step` finds the first components: ascents from all starts at once,
    Laplace approximations at their ends, and local fits of single Normals. Each further step draws
    samples of the components, moves all components and weights along natural gradients of

    .. math:: \text{ELBO} = E_q[\log p - \log q], \qquad q = \sum_k \pi_k N(\mu_k, L_k L_k^T),

    and now and then adds components where q lacks mass and leaves out those without use. When the
    ELBO is flat, or the evaluations are nearly used up, the mixture settles with smaller steps.

    Args:
        log_density: from points ``(S, D)`` to log densities ``(S,)``, float64, differentiable,
            each row on its own. It need not be normalized.
        starts: points ``(B, D)`` from which to ascend, best draws of the prior: their spread is
            taken for the scale of the coordinates.
        num_components: K, if it shall be fixed; else found, up to 200.
        covariance: of the components, ``"full"`` or ``"diagonal"``; by default full up to 100
            dimensions.
        max_evaluations: of the log density with its gradient, at least 10 for each start; by
            default 100,000, or 5,000 for each dimension from 20 to 100, and 200 for each start
            if that is more. The last steps of a large mixture may take some more.
        seed: of the random numbers. The same seed gives the same result.
        executor: of ``concurrent.futures``, to spread the evaluations over machines.

    Attributes:
        evaluations: counts them (:class:`~pyro_mixtures.infer.search.evaluations.Evaluations`).
        optima: what the ascents have found.
        converged: share of the ascents that have ended at an optimum.
        improper: coordinates along which the density has no end, as it seems.
        log: what was added and left out, and when.
        stopped: ``None`` while it grows, and then why that has ended: ``"flat"``, ``"budget"``,
            ``"interrupted"`` or ``"improper"``.

    Raises:
        ValueError: for ``starts`` that are not finite, have no two rows or are all the same in
            a coordinate, ``num_components`` or ``max_evaluations`` that are too small, or (in the
            first step) starts without mass.

    Reference:
        Arenz, Zhong and Neumann, *Trust-region variational inference with Gaussian mixture
        models* (JMLR 2020), https://arxiv.org/abs/1907.04710; Arenz, Dahlinger, Ye, Volpp and
        Neumann, *A unified perspective on natural gradient variational inference with Gaussian
        mixture models* (TMLR 2023), https://arxiv.org/abs/2209.11533.

    Example:
        >>> def log_density(z):  # two modes, at -3 and 3
        ...     return -((z.abs() - 3.0) ** 2).sum(-1) / 2
        >>> starts = 5.0 * torch.randn(100, 1, generator=torch.Generator().manual_seed(0))
        >>> search = ModeSearch(log_density, starts, max_evaluations=10_000)
        >>> mixture = search.run()
        >>> mixture.component_logits.softmax(-1)  # doctest: +SKIP
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """

    def __init__(
        self,
        log_density: Callable[[Tensor], Tensor],
        starts: Tensor,
        *,
        num_components: int | None = None,
        covariance: str | None = None,
        max_evaluations: int | None = None,
        seed: int = 0,
        executor: Executor | None = None,
    ) -> None:
        check_starts(starts)
        if max_evaluations is None:
            dimension = min(starts.shape[-1], LARGEST_FULL)
            max_evaluations = int(EVALUATIONS * max(1.0, dimension / PLAIN_DIMENSION))
            max_evaluations = max(max_evaluations, ENOUGH * len(starts))
        if covariance is None:
            covariance = "full" if starts.shape[-1] <= LARGEST_FULL else "diagonal"
        check_choice("covariance", covariance, tuple(KINDS))
        if num_components is not None:
            check_at_least(1, num_components=num_components)
        check_at_least(LEAST_ASCENT * len(starts), max_evaluations=max_evaluations)
        self.evaluations = Evaluations(log_density, executor=executor)
        self.starts = starts.detach().to(torch.float64)
        self.scale = prior_scale(self.starts)
        self.num_components, self.max_evaluations = num_components, max_evaluations
        self.covariance, self.seed = covariance, seed
        self.kind = KINDS[covariance]
        self.generator = torch.Generator().manual_seed(seed)
        self.store = SampleStore(BATCHES, self._wanted(), [], [])
        self.record = ElboRecord()
        self.counts: list[int] = []
        self.log: list[str] = []
        self.improper: list[int] = []
        self.stopped: str | None = None
        self.settling = SETTLING
        self.parts: Any = None
        self.candidates: Any = None
        self.optima: Any = None
        self.converged = 0.0

    @property
    def elbos(self) -> list[float]:
        """In each step, by its samples."""
        return self.record.elbos

    @property
    def done(self) -> bool:
        """Whether the mixture has settled."""
        return self.settling == 0

    @property
    def mixture(self) -> MixtureDistribution:
        """The mixture as it is, over vectors of D numbers, in float64.

        Raises:
            ValueError: before the first step.
        """
        if self.parts is None:
            raise ValueError("Expected mixture to be read after the first step, but got none yet")
        normals, logits = self.parts.normals, self.parts.log_weights
        made = MixtureOfNormals if self.kind is FullNormals else MixtureOfDiagNormals
        return made(normals.locs, normals.factor, logits)

    @property
    def at_cap(self) -> bool:
        """Whether there are as many components as there may be."""
        return len(self.parts) >= self._cap

    def _wanted(self) -> int:
        """Samples of each component in a step: of a Hessian D unknowns a row, or one."""
        unknowns = self.starts.shape[-1] if self.kind is FullNormals else 1
        return max(8 if self.kind is FullNormals else 16, 2 * math.ceil(unknowns / 2))

    @property
    def _many_dimensions(self) -> bool:
        return self.starts.shape[-1] > PLAIN_DIMENSION

    @property
    def _every(self) -> int:
        """Steps between two growths."""
        return PAUSE if self._many_dimensions else EVERY

    @property
    def _cap(self) -> int:
        return self.num_components or MAX_COMPONENTS

    def run(self) -> MixtureDistribution:
        """All steps that are left; the mixture."""
        while not self.done:
            self.step()
        return self.mixture

    def step(self) -> None:
        """The starts, or one step of all components; nothing after the last."""
        if self.done:
            return
        if self.parts is None:
            self._start()
            return
        before, cost = self.evaluations.count, self.counts[-1] if self.counts else 0
        if self.stopped is not None and before + cost > self.max_evaluations:
            self.settling = 0
            self._finish()
            return
        self._improve(self.settling / SETTLING)
        self.counts.append(self.evaluations.count - before)
        if self.stopped is None:
            self._tidy()
            if len(self.elbos) % EVERY == 0:
                self._grow_or_stop()
        else:
            self.settling -= 1
            if self.settling == SETTLING // 2 and self.num_components is None:
                self._simplify()  # early enough for the others to take over
        if self.done:
            self._finish()

    def state_dict(self) -> dict[str, Any]:
        """All that the search knows, to be saved: a search goes on from it to the same numbers."""
        return state_of(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where a search of the same settings was.

        Args:
            state: of :meth:`state_dict`.

        Raises:
            ValueError: for a state of a search with other settings, or of another density.
        """
        restore(self, state)

    def interrupt(self) -> None:
        """End the search now, with the mixture as it is."""
        self.stopped, self.settling = "interrupted", 0
        self._finish()

    def settle(self, why: str) -> None:
        """End the growth: what follows are the last steps, which settle the mixture.

        Args:
            why: for :attr:`stopped`.
        """
        if self.stopped is None:
            self.stopped = why
            self.store.size = LAST_BATCHES
            self._note(f"{why}: the mixture settles")

    def _start(self) -> None:
        start = started(
            self.evaluations,
            self.starts,
            self.generator,
            kind=self.kind,
            wanted=self.store.wanted,
            max_parts=min(FIRST_COMPONENTS, self._cap),
            max_count=self.max_evaluations,
        )
        self.optima, self.converged = start.optima, start.converged
        self.candidates = Candidates(start.points, start.values)
        parts = without_doubles(start.parts)
        if len(parts) > self._cap:
            parts = parts.chosen(parts.log_weights.topk(self._cap).indices)
        self.parts = parts
        self._note(f"{len(self.optima.points)} optima from {len(self.starts)} starts")

    def _improve(self, share: float) -> None:
        """A natural gradient step of all components and of the weights."""
        seen = self.store.draw(self.evaluations, self.parts, self.generator)
        newest = self.store.batches[-1]
        self.candidates.add(newest.z, newest.values)
        self.parts, elbo, spread = improved(self.parts, seen, share)
        self.record.add(elbo, spread)

    def _tidy(self) -> None:
        before = len(self.parts)
        self.parts = without_dead(self.parts, min_weight=dead_below(before), min_age=GROWN_UP)
        if len(self.parts) < before:
            self._note(f"{before - len(self.parts)} without weight left out")

    def _grow_or_stop(self) -> None:
        self.improper = endless(self.parts, self.scale)
        if self.improper:
            self.settle("improper")
            return
        recent = sum(self.counts[-EVERY:]) / EVERY
        if self.evaluations.count + SETTLING * recent > self.max_evaluations:
            self.settle("budget")
        elif self.record.is_flat(CYCLE, many_dimensions=self._many_dimensions):
            self.settle("flat")
        due = self.stopped is None and len(self.record) % self._every == 0
        if due or (self.stopped is not None and self.num_components is not None):
            self._grow()
        if self.stopped is not None and self.num_components is None:
            self._simplify()

    def _simplify(self) -> None:
        before = len(self.parts)
        seen = self.store.seen(self.parts)
        self.parts = without_needless(refitted(self.parts, seen), seen)
        self._note(f"{before - len(self.parts)} needless left out")

    def _grow(self) -> None:
        before = len(self.parts)
        self.parts = parts = without_doubles(self.parts)
        if len(parts) < before:
            self._note(f"{before - len(parts)} doubles left out")
        turn = len(self.elbos) // self._every - 1
        room = self._cap - len(parts)
        share = len(parts) * self._every // (20 * EVERY)
        count = room if self.stopped is not None else min(room, 2 + share)
        if count > 0:
            depth = DEPTHS[turn % len(DEPTHS)]
            parts = grown(
                parts,
                self.candidates,
                self.evaluations,
                self.scale,
                self.generator,
                count=count,
                depth=depth,
                climbing=turn % 2 == 0,
            )
            added, self.parts = len(parts) - len(self.parts), parts
            self._note(f"{added} added within {depth:g} nats of the top")

    def _finish(self) -> None:
        if not self.store.batches:  # interrupted before the first step
            return
        parts = ended(self.parts, self.store, fixed=self.num_components is not None)
        if parts is None:
            return
        before, self.parts = len(self.parts), parts
        if len(parts) < before:
            self._note(f"{before - len(parts)} needless left out")
        self._note("done")

    def _note(self, event: str) -> None:
        self.log.append(
            f"step {len(self.elbos)}, K = {len(self.parts)},"
            f" {self.evaluations.count} evaluations: {event}"
        )
