"""Samples of the last steps, which serve every component."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_mixtures.infer.search.evaluations import Evaluations
from pyro_mixtures.infer.search.natural_normals import FullNormals
from pyro_mixtures.infer.search.parts import Parts

NO_MASS = 10.0
"""Nats by which a sample without mass is worse than others."""

LOWEST = 1000.0
"""Nats by which a sample counts as worse than others at most."""


@dataclass(frozen=True)
class Batch:
    """What was drawn in one step.

    Args:
        z: ``(S, D)``.
        values: of the log density, ``(S,)``.
        gradients: of the log density, ``(S, D)``.
        normals: from which it was drawn.
        counts: how many from each of them, ``(K,)``.
    """

    z: Tensor
    values: Tensor
    gradients: Tensor
    normals: FullNormals
    counts: Tensor

    def proposal(self, z: Tensor) -> Tensor:
        """Log of the density that it was drawn with, times how many it drew, at other points."""
        log_prob = self.normals.log_prob(self.normals.whiten(z, self.normals.inverse()))
        return (log_prob + self.counts.to(z).log()).logsumexp(-1)


@dataclass(frozen=True)
class Seen:
    """All samples in store as the present components see them.

    Args:
        z: ``(S, D)``.
        values: of the log density, ``(S,)``; zero for those without mass.
        gradients: of the log density, ``(S, D)``.
        with_mass: which samples have any, ``(S,)``.
        whitened: ``(S, K, D)``.
        inverse: of the factors of the Normals.
        scaled: densities of the components, over the largest at each sample, ``(S, K)``.
        largest: logarithms of those, ``(S,)``.
        ratios: of the largest density at each sample to the density that it was drawn with,
            ``(S,)``.
        weights: that make the samples draws of each component, ``(S, K)``, summing to one.
    """

    z: Tensor
    values: Tensor
    gradients: Tensor
    with_mass: Tensor
    whitened: Tensor
    inverse: Tensor
    scaled: Tensor
    largest: Tensor
    ratios: Tensor
    weights: Tensor

    def log_q(self, log_weights: Tensor) -> Tensor:
        """Of the mixture with these weights, ``(S,)``."""
        return self.largest + (self.scaled @ log_weights.exp()).clamp(min=1e-300).log()

    @functools.cached_property
    def middle(self) -> Tensor:
        """The median of log p - log q at samples with mass, for equal weights."""
        gains = self.values - self.largest - self.scaled.mean(-1).log()
        return gains[self.with_mass].median()

    @property
    def jumps(self) -> Tensor | None:
        """The loss at samples without mass, ``(S,)``, or None where all have mass."""
        if bool(self.with_mass.all()):
            return None
        return torch.where(self.with_mass, 0.0, -NO_MASS).to(self.values)

    def gains(self, log_q: Tensor) -> Tensor:
        """Log p - log q of some densities at all samples, ``(S, ...)``.

        Samples without mass have a low value instead of an infinite one, and others no value so
        low that it alone would make up the mean.
        """
        shape = (-1,) + (1,) * (log_q.dim() - 1)
        gains = self.values.view(shape) - log_q
        if not bool(self.with_mass.any()):
            return torch.full_like(gains, -LOWEST)
        with_mass, middle = self.with_mass.view(shape), self.middle
        return torch.where(with_mass, gains.clamp(min=middle - LOWEST), middle - NO_MASS)


class SampleStore:
    r"""The samples of the last steps, weighted by all the mixtures that they were drawn from.

    A sample x counts for the component k by :math:`q_k(x) / \sum_i n_i q_i(x)`, over the
    components i of all batches in store, of which each drew :math:`n_i` samples. A component draws
    only what it needs beside the samples that others and earlier steps have left in its place.

    Args:
        size: how many batches are kept.
        wanted: effective number of samples for each component, even.
        batches: those in store, the oldest first.
        proposals: logarithms of their densities times their numbers at all samples in store,
            one ``(S, batches)`` for each of them.
    """

    def __init__(
        self, size: int, wanted: int, batches: list[Batch], proposals: list[Tensor]
    ) -> None:
        self.size, self.wanted = size, wanted
        self.batches, self.proposals = batches, proposals

    def draw(self, evaluations: Evaluations, parts: Parts, generator: torch.Generator) -> Seen:
        """Draw and evaluate a new batch; all samples in store, as the components see them."""
        first = max(0, len(self.batches) + 1 - self.size)
        old = self.batches[first:]
        proposals = [each[:, first:] for each in self.proposals[first:]]
        normals, inverse = parts.normals, parts.normals.inverse()
        counts = torch.full((len(parts),), self.wanted, dtype=torch.long)
        whitened = log_prob = None
        if old:
            whitened = normals.whiten(torch.cat([batch.z for batch in old]), inverse)
            log_prob = normals.log_prob(whitened)
            counts = self._needed(log_prob, torch.cat(proposals).logsumexp(-1))
        z = _antithetic(parts, counts, generator)
        new = Batch(z, *evaluations.values_and_gradients(z), normals, counts)
        of_new = normals.whiten(z, inverse)
        whitened = of_new if whitened is None else torch.cat([whitened, of_new])
        of_new = normals.log_prob(of_new)
        log_prob = of_new if log_prob is None else torch.cat([log_prob, of_new])
        largest = log_prob.amax(-1)
        scaled = (log_prob - largest.unsqueeze(-1)).exp()
        column = largest + (scaled @ counts.to(z)).log()
        columns = column.split([len(batch.z) for batch in [*old, new]])
        rows = [*proposals, torch.stack([batch.proposal(z) for batch in old], -1) if old else None]
        proposals = [
            last.unsqueeze(-1) if first is None else torch.cat([first, last.unsqueeze(-1)], -1)
            for first, last in zip(rows, columns, strict=True)
        ]
        # in one line: Ctrl-C between two would leave samples without their proposals
        self.batches, self.proposals = [*old, new], proposals
        return self._seen(whitened, inverse, scaled, largest)

    def seen(self, parts: Parts) -> Seen:
        """What is in store, as other components see it."""
        inverse = parts.normals.inverse()
        whitened = parts.normals.whiten(torch.cat([batch.z for batch in self.batches]), inverse)
        log_prob = parts.normals.log_prob(whitened)
        largest = log_prob.amax(-1)
        return self._seen(whitened, inverse, (log_prob - largest.unsqueeze(-1)).exp(), largest)

    def _needed(self, log_prob: Tensor, log_proposal: Tensor) -> Tensor:
        """How many samples each component lacks, even and at least two, ``(K,)``."""
        weights = (log_prob - log_proposal.unsqueeze(-1)).exp()
        total = weights.sum(0)  # about one where the samples cover a component
        effective = total.square() / weights.square().sum(0).clamp(min=1e-300)
        pairs = ((self.wanted - total.clamp(max=1) * effective) / 2).ceil()
        return 2 * pairs.clamp(1, self.wanted // 2).long()

    def _seen(self, whitened: Tensor, inverse: Tensor, scaled: Tensor, largest: Tensor) -> Seen:
        z, values, gradients = (
            torch.cat([getattr(batch, name) for batch in self.batches])
            for name in ("z", "values", "gradients")
        )
        with_mass = values.isfinite()
        log_proposal = torch.cat(self.proposals).logsumexp(-1)
        ratios = (largest - log_proposal).exp()
        weights = scaled * ratios.unsqueeze(-1)
        weights = weights / weights.sum(0).clamp(min=1e-300)
        values = torch.where(with_mass, values, 0.0)
        return Seen(
            z, values, gradients, with_mass, whitened, inverse, scaled, largest, ratios, weights
        )


def _antithetic(parts: Parts, counts: Tensor, generator: torch.Generator) -> Tensor:
    """Draws of each component in pairs about its mean, ``(S, D)``."""
    own = torch.arange(len(parts)).repeat_interleave(counts // 2)
    locs = parts.normals.locs[own]
    noise = torch.randn(locs.shape, generator=generator, dtype=locs.dtype)
    offset = parts.normals.spread(own, noise)
    return torch.cat([locs + offset, locs - offset])
