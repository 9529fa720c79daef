"""Rows and Markdown tables of what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy

from experiments.logit_gradients.styles import label

RING = ("implicit", "displacement", "telescoping", "pairwise", "clustered", "blended")


def family_rows(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each seed, and one with seed None for their geometric mean."""
    rows = []
    keys = list(dict.fromkeys((each["family"], each["D"]) for each in found))
    for family, dim in keys:
        same = [each for each in found if (each["family"], each["D"]) == (family, dim)]
        for name in same[0]["estimators"]:
            results = [each["estimators"][name] for each in same]
            cell = {"family": family, "D": dim, "estimator": name}
            for each, result in zip(same, results, strict=True):
                rows.append({**cell, "seed": each["seed"], **result})
            logs = numpy.log([result["ratio"] for result in results])
            mean = math.exp(logs.mean())
            rows.append(
                {
                    **cell,
                    "seed": None,
                    "ratio": mean,
                    "ratio_error": mean * logs.std(ddof=1) / math.sqrt(len(logs)),
                    "reliable": all(result["reliable"] for result in results),
                }
            )
    return rows


def number(value: float) -> str:
    """Two to three digits."""
    return f"{value:.3f}" if value < 1 else f"{value:.3g}"


def family_table(rows: Sequence[dict[str, Any]], dims: Sequence[int]) -> str:
    """Geometric means over the seeds, ± one standard error."""
    lines = [
        "| family | estimator | " + " | ".join(f"D = {dim}" for dim in dims) + " |",
        "| --- | --- |" + " --- |" * len(dims),
    ]
    for family, name in dict.fromkeys((row["family"], row["estimator"]) for row in rows):
        if name == "score":
            continue
        cells = [
            f"{number(row['ratio'])} ± {number(row['ratio_error'])}"
            + ("" if row["reliable"] else " (!)")
            for row in rows
            if (row["family"], row["estimator"]) == (family, name)
        ]
        lines.append(f"| {family} | {label(name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ring_table(rings: Sequence[dict[str, Any]], sigmas: Sequence[float]) -> str:
    """Variances by samples, relative to the score function."""
    lines = [
        "| K | estimator | " + " | ".join(f"sigma = {sigma:g}" for sigma in sigmas) + " |",
        "| --- | --- |" + " --- |" * len(sigmas),
    ]
    for count in dict.fromkeys(ring["K"] for ring in rings):
        same = [ring for ring in rings if ring["K"] == count]
        for name in RING:
            cells = [_ring_cell(ring, name) for ring in same]
            lines.append(f"| {count} | {label(name)} | " + " | ".join(cells) + " |")
            if name in same[0]["grid"]:
                exact = [ring["grid"][name] / ring["grid"]["score"] for ring in same]
                cells = [number(value) if value < 1e4 else f"{value:.0e}" for value in exact]
                lines.append(f"| {count} | the same by the grid | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _ring_cell(ring: dict[str, Any], name: str) -> str:
    found = ring["samples"]
    ratio = found[name]["variance"] / found["score"]["variance"]
    return number(ratio) + ("" if found[name]["reliable"] else " (!)")


def time_table(times: Sequence[dict[str, Any]]) -> str:
    """Milliseconds of a step."""
    lines = [
        "| estimator | " + " | ".join(f"ms, D = {each['D']}" for each in times) + " |",
        "| --- |" + " --- |" * len(times),
    ]
    for name in times[0]["seconds"]:
        cells = [f"{1e3 * each['seconds'][name]:.2f}" for each in times]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
