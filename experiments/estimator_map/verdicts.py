"""Who wins in a cell, and how far blending is from that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.logit_gradients.moments import Moments, best

SINGLE = (
    "score",
    "displacement",
    "telescoping",
    "implicit",
    "paper",
    "clustered",
    "blended",
)
"""Unbiased, with one evaluation of the cost, and nothing to be trained."""

TIE = 1.05
"""An estimator wins over later ones of the list unless they have so much less variance."""

OF_BEST, OF_SCORE = 1.3, 1.1
"""What blending's variance should not exceed."""


def singles(cell: Mapping[str, Any]) -> dict[str, Moments]:
    """The estimators that compete."""
    return {name: cell["moments"][name] for name in SINGLE}


def winner(cell: Mapping[str, Any], times: Mapping[str, float] | None = None) -> str:
    """Of least variance, or of least variance times time."""
    found = singles(cell)
    if times is not None:
        found = {name: each.times(times[name]) for name, each in found.items()}
    return best(found, TIE)


def excess(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Blending's variance relative to the best one's and to the score function's."""
    found = singles(cell)
    name = best(found)
    blended = found["blended"]
    of_best = blended.variance / found[name].variance
    of_score = blended.variance / found["score"].variance
    meets = blended.reliable and of_best <= OF_BEST and of_score <= OF_SCORE
    return {"best": name, "of_best": of_best, "of_score": of_score, "meets": meets}


def reason(cell: Mapping[str, Any]) -> str:
    """Why blending is not the best."""
    found = singles(cell)
    name = excess(cell)["best"]
    if not found["blended"].reliable:
        return "blending's own mean is off"
    if name == "clustered":
        return "its smaller groups are better"
    if name == "score":
        return "the share is learned from heavy tails"
    if cell["chains"] > 1:
        return "groups cut what a field still bridges"
    if found["displacement"].variance > OF_BEST * found[name].variance:
        return "another field than displacement is better"
    return "the share is learned from heavy tails"


def shares(cells: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Parts of the cells that meet the targets."""
    found = [excess(cell) for cell in cells]
    return {
        "cells": len(found),
        "within 1.3 of the best": sum(each["of_best"] <= OF_BEST for each in found) / len(found),
        "within 1.1 of the score function": sum(each["of_score"] <= OF_SCORE for each in found)
        / len(found),
        "both": sum(each["meets"] for each in found) / len(found),
    }


def missed(cells: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The cells in which blending misses a target, the farthest first."""
    found = [cell for cell in cells if not excess(cell)["meets"]]
    return sorted(found, key=lambda cell: -excess(cell)["of_best"])


def verdict(cell: Mapping[str, Any], again: Mapping[str, Any]) -> dict[str, Any]:
    """A missed cell, what a second look at it says, and whether the miss stands.

    Args:
        cell: with all estimators.
        again: with those of :data:`SINGLE` that were looked at again.
    """
    first = excess(cell)
    found = again["moments"]
    blended, best_one, score = found["blended"], found[first["best"]], found["score"]
    of_best, of_score = blended.variance / best_one.variance, blended.variance / score.variance
    too_far = best_one.reliable and of_best > OF_BEST
    return {
        "K": cell["components"],
        "D": cell["dim"],
        "separation": cell["separation"],
        "logits' std": cell["imbalance"],
        "scales' std": cell["spread"],
        "cost": cell["cost"],
        "groups": cell["chains"],
        "best": first["best"],
        "of best": first["of_best"],
        "of score": first["of_score"],
        "again: of best": of_best,
        "of score again": of_score,
        "z of best": best_one.rms_z,
        "stands": too_far or of_score > OF_SCORE or not blended.reliable,
        "reason": reason(cell),
    }
