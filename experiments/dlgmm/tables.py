"""The figures of each row of a study, as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from experiments.dlgmm.judgement import CLUSTERS, NEIGHBOURS
from experiments.lab.comparison import Results, good, mean, standard_error

BOUNDS = ("elbo", "iw_bound", "long_bound", "further")
"""Of the test images; ``long_bound`` and its gain ``further`` are of some of them."""
MEANS = ("weights_kl", "each", "all", "distinct", "information")


def rows(results: Results, seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    """The figures of each row: means and standard errors over the fits that did not diverge.

    ``validation_elbo`` is the best until the last epoch that all fits have had, for a comparison
    at equal steps.
    """
    equal = min(
        (result["rows"][-1]["epoch"] for fits in results.values() for result in good(fits)),
        default=0,
    )
    return [
        {
            "row": name,
            "fits": len(good(fits)),
            "diverged": len(fits) - len(good(fits)),
            "seconds_per_step": seconds[name],
            "equal_epochs": equal,
            **_figures(good(fits), equal),
        }
        for name, fits in results.items()
    ]


def _figures(each: Sequence[dict[str, Any]], equal: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "epochs": max((result["rows"][-1]["epoch"] for result in each), default=0)
    }
    values = {name: [result[name].mean().item() for result in each] for name in BOUNDS}
    values["validation_elbo"] = [
        max(row["validation_elbo"] for row in result["rows"] if row["epoch"] <= equal)
        for result in each
    ]
    for k in NEIGHBOURS:  # none where the digits are not known
        known = [result["neighbours"] for result in each if result["neighbours"]]
        values[f"neighbours_{k}"] = [errors[k] for errors in known]
    for name, numbers in values.items():
        found[name], found[f"{name}_se"] = mean(numbers), standard_error(numbers)
    for name in BOUNDS:
        found[f"{name}_over_data_se"] = mean([_error_over_data(result[name]) for result in each])
    for name in MEANS:
        found[name] = mean([result[name] for result in each])
    for count in CLUSTERS:
        known = [result["clusters"] for result in each if result["clusters"]]
        found[f"clusters_{count}"] = mean([informations[count] for informations in known])
    return found


def _error_over_data(bound: torch.Tensor) -> float:
    return bound.std().item() / math.sqrt(len(bound))


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown tables: of bounds, and of the latent space where digits are known."""
    equal = rows[0]["equal_epochs"]
    lines = [
        f"| {title} | fits, diverged | epochs | validation ELBO, {equal} epochs | test ELBO"
        " | 50 samples | gain of 1,000 | KL of weights | weights, of an image | of all"
        " | distinct components | ms a step |",
        "| --- " * 12 + "|",
    ]
    lines += [
        f"| {row['row']} | {row['fits']}, {row['diverged']} | {row['epochs']}"
        f" | {_told(row, 'validation_elbo')} | {_told(row, 'elbo')} | {_told(row, 'iw_bound')}"
        f" | {_told(row, 'further')} | {row['weights_kl']:.2f} | {row['each']:.2f}"
        f" | {row['all']:.2f} | {row['distinct']:.2f} | {1e3 * row['seconds_per_step']:.1f} |"
        for row in rows
    ]
    if all(math.isnan(row[f"neighbours_{k}"]) for row in rows for k in NEIGHBOURS):
        return "\n".join(lines)
    heads = [f"kNN error (%), k = {k}" for k in NEIGHBOURS]
    heads += ["NMI of the component", *(f"of {count} clusters" for count in CLUSTERS)]
    lines += ["", f"| {title} | {' | '.join(heads)} |", "| --- " * (1 + len(heads)) + "|"]
    for row in rows:
        told = [_told(row, f"neighbours_{k}", 100) for k in NEIGHBOURS]
        names = ["information", *(f"clusters_{count}" for count in CLUSTERS)]
        told += [f"{row[name]:.3f}" for name in names]
        lines.append(f"| {row['row']} | {' | '.join(told)} |")
    return "\n".join(lines)


def _told(row: Mapping[str, Any], name: str, factor: float = 1.0) -> str:
    error = row[f"{name}_se"]
    told = f"{factor * row[name]:.2f}"
    return told if math.isnan(error) else f"{told} ± {factor * error:.2f}"
