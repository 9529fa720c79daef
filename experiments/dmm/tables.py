"""The figures of each row of a study, as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.dmm.fits import per_step
from experiments.lab.comparison import Job, Result, Results, good, mean, standard_error


def rows(results: Results, seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    """The figures of each row: means and standard errors over the fits that did not diverge.

    ``truncated`` counts the fits that had all their epochs, and might have gone on: those whose
    patience was not used up.
    """
    return [_row(name, fits, seconds[name]) for name, fits in results.items()]


def _row(name: str, fits: Sequence[tuple[Job, Result]], seconds: float) -> dict[str, Any]:
    each = good(fits)
    epochs = [result["rows"][-1]["epoch"] for result in each]
    row: dict[str, Any] = {
        "row": name,
        "fits": len(each),
        "diverged": len(fits) - len(each),
        "truncated": sum(epoch == fits[0][0].training.epochs for epoch in epochs),
        "epochs": max(epochs, default=0),
        "seconds_per_step": seconds,
    }
    for bound in ("elbo", "iw_bound"):
        averages = [per_step(result[bound], result["lengths"]) for result in each]
        for average in ("per_step", "ratios", "per_sequence"):
            values = [found[average] for found in averages]
            row[f"{bound}_{average}"] = mean(values)
            row[f"{bound}_{average}_se"] = standard_error(values)
    return row


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table; bounds in nats a time step, or a sequence."""
    lines = [
        f"| {title} | fits, diverged | epochs | test ELBO | mean of ratios | a sequence"
        " | importance weighted bound | mean of ratios | ms a step |",
        "| --- " * 9 + "|",
    ]
    for row in rows:
        told = [
            _told(row, name, digits)
            for name, digits in (
                ("elbo_per_step", 3),
                ("elbo_ratios", 3),
                ("elbo_per_sequence", 1),
                ("iw_bound_per_step", 3),
                ("iw_bound_ratios", 3),
            )
        ]
        epochs = f"{row['epochs']}" + (", truncated" if row["truncated"] else "")
        cells = [
            row["row"],
            f"{row['fits']}, {row['diverged']}",
            epochs,
            *told,
            f"{1e3 * row['seconds_per_step']:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _told(row: Mapping[str, Any], name: str, digits: int) -> str:
    error = row[f"{name}_se"]
    told = f"{row[name]:.{digits}f}"
    return told if math.isnan(error) else f"{told} ± {error:.{digits}f}"
