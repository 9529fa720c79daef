"""Weights in closed form, and a mixture without the components that it does not need."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_mixtures.infer.search.parts import Parts
from pyro_mixtures.infer.search.sample_store import SampleStore, Seen
from pyro_mixtures.normals.bounds import bhattacharyya_distances

REFITS, RATE = 60, 0.5
"""Steps of the weights, and the power by which each step mends them."""

SAME = 0.03
"""Bhattacharyya distance below which two components are the same, for each ten dimensions: their
means and covariances are noisy in each of them."""

HALF = 0.5
"""Of a component's samples, for which others have to be responsible beside it."""

COST, ALL_COSTS = 2e-4, 1e-3
"""Nats that a component, and all together, may cost that are left out: less than a rare mode."""


def refitted(parts: Parts, seen: Seen) -> Parts:
    r"""With the best weights for the components as they are.

    At the optimum all :math:`E_k[\log p - \log q]` agree; each step moves the logarithm of a
    weight by half of that. The samples stay the same, so that it needs no evaluation.
    """
    log_weights = parts.log_weights
    for _ in range(REFITS):
        gains = seen.gains(seen.log_q(log_weights))
        log_weights = (log_weights + RATE * (seen.weights.mT @ gains)).log_softmax(0)
    return parts.weighted(log_weights)


def ended(parts: Parts, store: SampleStore, *, fixed: bool) -> Parts | None:
    """The mixture at the end of a search, by the samples in store.

    Args:
        parts: the mixture as it is.
        store: samples.
        fixed: whether all components stay.

    Returns:
        None if one that has to stay is not known by any sample.
    """
    drawn = parts.ages > 0
    if not bool(drawn.all()):  # interrupted after it grew: no sample knows the new ones
        if fixed:
            return None
        parts = parts.chosen(drawn)
    parts = refitted(parts, store.seen(parts))
    if not fixed:
        parts = without_doubles(parts)
        parts = without_dead(parts, min_weight=dead_below(len(parts)), min_age=0)
        parts = refitted(parts, store.seen(parts))
    return parts


def dead_below(count: int) -> float:
    """Weight below which one of so many components is of no use."""
    return min(1e-3, 0.02 / count)


def without_dead(parts: Parts, *, min_weight: float, min_age: int) -> Parts:
    """The mixture without components that have had time and have next to no weight."""
    dead = (parts.log_weights.exp() < min_weight) & (parts.ages >= min_age)
    return parts if not bool(dead.any()) or bool(dead.all()) else parts.chosen(~dead)


def without_doubles(parts: Parts) -> Parts:
    """The mixture without components that nearly coincide with heavier ones, which get theirs."""
    locs, factor = parts.normals.locs, parts.normals.factor
    distances = bhattacharyya_distances(locs, factor, locs, factor)
    double = distances < SAME * max(1.0, locs.shape[-1] / 10)
    weights = parts.log_weights.exp()
    kept = torch.ones(len(parts), dtype=torch.bool)
    for index in weights.argsort(descending=True, stable=True).tolist():
        if kept[index]:
            others = double[index] & kept  # lighter ones: the heavier have had their turn
            others[index] = False
            weights[index] += weights[others].sum()
            kept &= ~others
    return parts if bool(kept.all()) else parts.weighted(weights.log()).chosen(kept)


def without_needless(parts: Parts, seen: Seen) -> Parts:
    """The mixture without components that cost next to nothing to leave out.

    The cost is the loss of ELBO, by the samples in store, when the others take over the weight:
    each as much as it is responsible for the component's samples. One after another goes, as long
    as the next one is cheap and all together are.
    """
    weights = parts.log_weights.exp()
    left = ALL_COSTS
    kept = torch.ones(len(parts), dtype=torch.bool)
    while int(kept.sum()) > 1:
        costs, without = _costs(weights, seen)
        costs = costs.masked_fill(~kept, torch.inf)
        cheapest = int(costs.argmin())
        if not costs[cheapest] <= min(left, COST):
            break
        left -= max(float(costs[cheapest]), 0.0)
        kept[cheapest], weights = False, without[cheapest]
    return parts if bool(kept.all()) else parts.weighted(weights.log()).chosen(kept)


def _costs(weights: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
    """Loss of ELBO without each component, ``(K,)``, and the weights then, ``(K, K)``."""
    parts = seen.scaled * weights
    q = parts.sum(-1, keepdim=True)  # over the largest density at each sample, (S, 1)
    shares = (seen.weights / (q - parts).clamp(min=1e-300)).mT @ parts  # of j without k, (K, K)
    shares = shares.fill_diagonal_(0.0)
    total = shares.sum(-1, keepdim=True)
    without = weights + weights.unsqueeze(-1) * shares / total.clamp(min=1e-300)
    without = without.fill_diagonal_(0.0)
    every = torch.cat([q, seen.scaled @ without.mT], -1).clamp(min=1e-300)  # (S, 1 + K)
    gains = seen.gains(seen.largest.unsqueeze(-1) + every.log())
    drawn = every * seen.ratios.unsqueeze(-1)
    elbos = (drawn * gains).sum(0) / drawn.sum(0)
    taken_over = total.squeeze(-1) > HALF  # else no sample says what would be in its place
    return (elbos[0] - elbos[1:]).masked_fill(~taken_over, torch.inf), without
