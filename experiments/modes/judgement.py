"""What a contender has found of a target: modes, bounds, weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from experiments.modes.targets import Target
from pyro_mixtures.diagnostics import Evaluation

SHARE = 0.2
"""Of a mode's true mass that a contender has to have in its region."""

SMALLEST = 1e-3
"""Modes of less mass are not asked for."""


@dataclass(frozen=True)
class State:
    """What a contender has at some time.

    Args:
        evaluations: points at which the density was evaluated until then.
        draw: ``count -> (count, D)``.
        log_density: of what ``draw`` has just returned, ``(S,)``; None where there is none.
        components: of a mixture that are alive, or None.
    """

    evaluations: int
    draw: Callable[[int], Tensor]
    log_density: Callable[[Tensor], Tensor] | None
    components: int | None = None


@torch.no_grad()
def judge(target: Target, state: State, *, draws: int) -> dict[str, Any]:
    """The figures of a row.

    Args:
        target: the truth.
        state: of the contender.
        draws: points and importance weights, from which all is.
    """
    z = state.draw(draws)
    values = torch.cat([target.log_density(part) for part in z.split(1000)])
    values = torch.where(values.isnan(), -math.inf, values)
    found_in = target.found_in(z, values)
    row: dict[str, Any] = {
        "evaluations": state.evaluations,
        "components": state.components,
        **modes(target, found_in),
    }
    if state.log_density is None:
        return row
    log_q = state.log_density(z)
    log_weights = values - log_q
    row["without_mass"] = int((log_weights == -math.inf).sum())
    if row["without_mass"]:
        return row  # the bound is -inf
    found = Evaluation.from_log_weights(log_weights)
    return {
        **row,
        "elbo": found.elbo.item(),
        "elbo_error": found.elbo_error.item(),
        "evidence": found.iw_bound.item(),
        "evidence_error": found.iw_bound_error.item(),
        "khat": found.khat.item(),
        "effective_sample_size": found.effective_sample_size.item(),
        "gap": target.evidence.value - found.elbo.item(),
        "mended_distance": modes(target, found_in, log_weights.softmax(0))["weight_distance"],
    }


def modes(target: Target, found: Tensor, weights: Tensor | None = None) -> dict[str, Any]:
    """How many modes points cover, of how many, and the distance of the masses from the truth.

    The distance is that of total variation; points near to no mode are a class of their own.

    Args:
        target: the truth.
        found: the modes of points, ``(S,)``, -1 for none.
        weights: of the points, by default equal ones.
    """
    if weights is None:
        weights = torch.full(found.shape, 1 / len(found), dtype=target.mode_weights.dtype)
    inside = found >= 0
    masses = torch.zeros_like(target.mode_weights).index_add(0, found[inside], weights[inside])
    asked = target.mode_weights >= SMALLEST
    covered = asked & (masses > SHARE * target.mode_weights)
    outside = 1 - masses.sum()
    distance = 0.5 * ((masses - target.mode_weights).abs().sum() + outside)
    return {
        "modes": int(covered.sum()),
        "of": int(asked.sum()),
        "weight_distance": distance.item(),
    }
