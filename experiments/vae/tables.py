"""The figures of each row of a study, as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from experiments.lab.comparison import Results, good, mean, standard_error

MEANS = ("rate", "active_units", "components")
"""Further columns, means over the fits."""


def rows(results: Results, seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    """The figures of each row: means and standard errors over the fits that did not diverge.

    ``gain`` is the mean difference from the first row in the bound that has more samples, and its
    error that over the test images, which are the same for all rows.
    """
    found: list[dict[str, Any]] = []
    first = good(next(iter(results.values())))
    for name, fits in results.items():
        each = good(fits)
        row: dict[str, Any] = {
            "row": name,
            "fits": len(each),
            "diverged": len(fits) - len(each),
            "seconds_per_step": seconds[name],
            "epochs": max((result["rows"][-1]["epoch"] for result in each), default=0),
        }
        for bound in ("elbo", "iw_bound"):
            means = [result[bound].mean().item() for result in each]
            row[bound] = mean(means)
            row[f"{bound}_se"] = standard_error(means)
        for figure in (*MEANS, "distortion", "marginal_kl", "mutual_information"):
            row[figure] = mean([result[figure] for result in each])
        if each and first and len(each[0]["elbo"]) == len(first[0]["elbo"]):
            change = torch.stack([result["elbo"] for result in each]).mean(0)
            change = change - torch.stack([result["elbo"] for result in first]).mean(0)
            row["gain"] = change.mean().item()
            row["gain_se"] = change.std().item() / math.sqrt(len(change))
        found.append(row)
    return found


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        f"| {title} | fits, diverged | epochs | test ELBO | importance weighted bound"
        " | gain of ELBO | rate | active units | components | ms a step |",
        "| --- " * 10 + "|",
    ]
    lines += [
        f"| {row['row']} | {row['fits']}, {row['diverged']} | {row['epochs']}"
        f" | {_told(row, 'elbo')} | {_told(row, 'iw_bound')} | {_told(row, 'gain')}"
        f" | {row['rate']:.1f} | {row['active_units']:.0f} | {row['components']:.2f}"
        f" | {1e3 * row['seconds_per_step']:.1f} |"
        for row in rows
    ]
    return "\n".join(lines)


def _told(row: Mapping[str, Any], name: str) -> str:
    error = row.get(f"{name}_se", math.nan)
    told = f"{row.get(name, math.nan):.2f}"
    return told if math.isnan(error) else f"{told} ± {error:.2f}"
