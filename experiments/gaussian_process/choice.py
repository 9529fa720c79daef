"""The grid of Adam's settings, and which of them is best for each estimator (section E.2)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from experiments.gaussian_process.fits import NUM_ROTATIONS, ROWS, Setting
from experiments.lab.sweep import Diverged

ADAM = ((0.004, 0.9), (0.008, 0.9), (0.008, 0.97), (0.016, 0.9), (0.016, 0.97), (0.032, 0.9))
"""Learning rates and first betas of all estimators."""

CONTROL_ADAM = ((0.01, 0.9), (0.03, 0.9), (0.3, 0.5))
"""Those of the control variate, each with each of :data:`ADAM`."""

CONTROL_ADAM_ROWS = ((0.003, 0.9), (0.01, 0.9))
"""The same for planes of rows, which larger ones upset."""

Rows = list[dict[str, Any]]


def grid() -> list[Setting]:
    """The settings of the sweep."""
    controls: dict[str, Sequence[tuple[float, ...]]] = {
        name: CONTROL_ADAM if rotations else [()] for name, rotations in NUM_ROTATIONS.items()
    }
    controls[ROWS] = CONTROL_ADAM_ROWS
    return [
        Setting(estimator, *adam, *control)
        for estimator, choices in controls.items()
        for adam in ADAM
        for control in choices
    ]


def job_name(setting: Setting, seed: int) -> str:
    """The name of a fit's stage."""
    return f"{setting.name}, seed {seed}"


def fits_of(
    setting: Setting, seeds: Sequence[int], results: Mapping[str, Rows | Diverged]
) -> list[Rows]:
    """The rows of those fits of a setting that did not diverge."""
    found = [results[job_name(setting, seed)] for seed in seeds]
    kept = [rows for rows in found if not isinstance(rows, Diverged)]
    return [rows for rows in kept if math.isfinite(rows[-1]["elbo"])]


def rank(
    settings: Sequence[Setting], seeds: Sequence[int], results: Mapping[str, Rows | Diverged]
) -> Rows:
    """A row for each setting with the last ELBO of its fits, the best setting first.

    A setting of which a fit diverged comes after all of which none did.
    """
    rows = []
    for setting in settings:
        elbos = [fit[-1]["elbo"] for fit in fits_of(setting, seeds, results)]
        mean = statistics.fmean(elbos) if elbos else -math.inf
        diverged = len(seeds) - len(elbos)
        rows.append({"name": setting.name, **asdict(setting), "elbo": mean, "elbos": elbos})
        rows[-1]["diverged"] = diverged
    return sorted(rows, key=lambda row: (row["diverged"], -row["elbo"]))


def best(settings: Sequence[Setting], ranking: Rows) -> dict[str, Setting]:
    """The best setting of each estimator.

    Raises:
        FloatingPointError: when an estimator has none of which all fits ended.
    """
    named = {setting.name: setting for setting in settings}
    chosen = {}
    for estimator in NUM_ROTATIONS:
        first = next(row for row in ranking if row["estimator"] == estimator)
        if first["diverged"]:
            raise FloatingPointError(f"of each setting of {estimator} a fit diverged")
        chosen[estimator] = named[first["name"]]
    return chosen
