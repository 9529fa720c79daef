"""The mixtures of the map, and what is measured in each of its cells."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from experiments.logit_gradients import estimators
from experiments.logit_gradients.costs import COSTS, Cost, exact_gradient
from experiments.logit_gradients.draws import Draws, mean_cost
from experiments.logit_gradients.moments import Moments, moments
from experiments.logit_gradients.paper import PaperMixtureOfDiagNormals
from experiments.logit_gradients.seconds import places

STRATA = 10
"""Samples that share their strata."""

LOOK = 10
"""So many times the samples for a second look."""

GUMBEL_SEPARATIONS = (1.0, 4.0)
TEMPERATURES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Row:
    """The mixtures of one size and kind, at all separations.

    Args:
        components: K.
        dim: D.
        imbalance: standard deviation of the logits.
        spread: standard deviation of the logarithms of the scales.
    """

    components: int
    dim: int
    imbalance: float = 0.5
    spread: float = 0.1

    def mixture(self, separation: float) -> PaperMixtureOfDiagNormals:
        """The places are those of one random draw, which the separation magnifies.

        Args:
            separation: root mean square of the distances between two means. The scales are about
                one.
        """
        generator = torch.Generator().manual_seed(1000 * self.components + self.dim)
        size = (self.components, self.dim)
        locs = places(*size, separation, generator)
        log_scales = self.spread * torch.randn(size, dtype=torch.float64, generator=generator)
        normal = torch.randn(self.components, dtype=torch.float64, generator=generator)
        return PaperMixtureOfDiagNormals(locs, log_scales.exp(), self.imbalance * normal)


def slices(dims: Sequence[int], counts: Sequence[int]) -> dict[str, dict[int, Row]]:
    """The rows of each slice through the regimes, by what changes from row to row."""
    return {
        "D": {dim: Row(10, dim) for dim in dims},
        "K": {count: Row(count, 10) for count in counts},
        "D, uneven weights": {dim: Row(10, dim, imbalance=2.0) for dim in dims},
        "D, uneven scales": {dim: Row(10, dim, spread=0.4) for dim in dims},
    }


@dataclass(frozen=True)
class Sizes:
    """Of the measurements: estimates, samples to learn from, and steps of learning a hub."""

    draws: int
    pilot: int
    hub_steps: int


def measure_row(
    row: Row, separations: Sequence[float], sizes: Sizes, seed: int, *, with_hub: bool
) -> list[dict[str, Any]]:
    """A cell for each separation and cost."""
    cells = []
    for number, (separation, name) in enumerate(itertools.product(separations, COSTS)):
        torch.manual_seed(1000 * seed + number)
        mixture = row.mixture(separation)
        found = measure(mixture, COSTS[name](mixture), sizes, with_hub=with_hub)
        cells.append(
            {
                **asdict(row),
                "separation": separation,
                "cost": name,
                "groups": _count(mixture.groups),
                "chains": _count(estimators.chained(mixture)),
                "moments": found,
            }
        )
    return cells


def _count(groups: torch.Tensor) -> int:
    return len(groups.unique())


def measure(
    mixture: PaperMixtureOfDiagNormals, cost: Cost, sizes: Sizes, *, with_hub: bool
) -> dict[str, Moments]:
    """Moments by all estimators; of the stratified one for a single sample."""
    baseline = mean_cost(mixture, cost, sizes.pilot)
    trial = Draws.draw(mixture, cost, sizes.pilot, baseline)
    found = Draws.draw(mixture, cost, sizes.draws, baseline)
    exact = exact_gradient(mixture, cost)
    every = estimators.single(found, trial)
    if with_hub:
        hub = estimators.learned_hub(mixture, cost, sizes.hub_steps, samples=100)
        every["learned hub"] = estimators.by_learned_hub(found, hub)
    result = {name: moments(values, exact) for name, values in every.items()}
    count = max(2, sizes.draws // STRATA)
    strata = estimators.stratified(mixture, cost, count, STRATA)
    result["stratified"] = moments(strata, exact).times(STRATA)
    components = estimators.marginalized(mixture, cost, max(2, sizes.draws // 4))
    result["marginalized"] = moments(components, exact)
    return result


def look_again(cell: dict[str, Any], names: Sequence[str], sizes: Sizes, seed: int) -> Any:
    """A cell with some estimators alone, by other samples, ``LOOK`` times as many."""
    torch.manual_seed(seed)
    row = Row(*(cell[name] for name in ("components", "dim", "imbalance", "spread")))
    mixture = row.mixture(cell["separation"])
    cost = COSTS[cell["cost"]](mixture)
    baseline = mean_cost(mixture, cost, sizes.pilot)
    trial = Draws.draw(mixture, cost, sizes.pilot, baseline)
    found = Draws.draw(mixture, cost, LOOK * sizes.draws, baseline)
    exact = exact_gradient(mixture, cost)
    values = {name: estimators.estimate(name, found, trial) for name in dict.fromkeys(names)}
    return {**cell, "moments": {name: moments(each, exact) for name, each in values.items()}}


def measure_gumbel(row: Row, sizes: Sizes, seed: int) -> Iterator[dict[str, Any]]:
    """Squared bias and variance of the relaxed estimators, beside the score function's."""
    jobs = itertools.product(GUMBEL_SEPARATIONS, COSTS)
    for number, (separation, name) in enumerate(jobs):
        torch.manual_seed(1000 * seed + number)
        mixture = row.mixture(separation)
        cost = COSTS[name](mixture)
        baseline = mean_cost(mixture, cost, sizes.pilot)
        found = Draws.draw(mixture, cost, sizes.draws, baseline)
        exact = exact_gradient(mixture, cost)
        score = moments(estimators.score(found), exact).variance
        for kind, temperature in itertools.product(("gumbel_soft", "gumbel_hard"), TEMPERATURES):
            values = estimators.gumbel(mixture, cost, sizes.draws, temperature, kind)
            each = moments(values, exact)
            yield {
                "separation": separation,
                "cost": name,
                "kind": kind,
                "temperature": temperature,
                "variance": each.variance / score,
                "square_bias": each.square_bias / score,
                "square_gradient": exact.gradient.square().sum().item() / score,
                "noise": each.variance / len(values) / score,
            }
