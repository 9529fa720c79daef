"""Markdown tables of the map."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.estimator_map import verdicts
from experiments.logit_gradients.costs import COSTS
from experiments.logit_gradients.styles import label

Cells = Sequence[Mapping[str, Any]]


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table of what is given."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def number(value: float) -> str:
    """Two to three digits."""
    if value >= 1e4:
        return f"{value:.0e}"
    return f"{value:.3f}" if value < 1 else f"{value:.3g}"


def by_separation(cells: Cells) -> str:
    """Median variance relative to the score function, and the part of unreliable cells."""
    separations = sorted({cell["separation"] for cell in cells})
    names = [name for name in cells[0]["moments"] if name != "score"]
    rows = []
    for name in names:
        row = [label(name)]
        for separation in separations:
            same = [
                cell["moments"]
                for cell in cells
                if cell["separation"] == separation and name in cell["moments"]
            ]
            median = statistics.median(
                each[name].variance / each["score"].variance for each in same
            )
            failed = sum(not each[name].reliable for each in same) / len(same)
            row.append(number(median) + (f" ({failed:.0%}!)" if failed else ""))
        rows.append(row)
    return markdown(["estimator", *(f"{value:g}" for value in separations)], rows)


def targets(cells: Cells) -> str:
    """Parts of the cells in which blending meets its targets, by cost."""
    rows = []
    for name in (*COSTS, "all"):
        same = [cell for cell in cells if name in (cell["cost"], "all")]
        found = verdicts.shares(same)
        rows.append([name, found.pop("cells"), *(f"{value:.1%}" for value in found.values())])
    head = ["cost", "cells", "<= 1.3 of the best", "<= 1.1 of the score function", "both"]
    return markdown(head, rows)


def missed(rows: Sequence[Mapping[str, Any]]) -> str:
    """Where blending misses a target, with the second look."""
    if not rows:
        return "Blending meets its targets in all cells."
    text = [[_cell(value) for value in row.values()] for row in rows]
    return markdown(list(rows[0]), text)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def reasons(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many cells miss a target, by reason, and how many still do at the second look."""
    every = Counter(row["reason"] for row in rows)
    standing = Counter(row["reason"] for row in rows if row["stands"])
    lines = [(name, count, standing[name]) for name, count in every.most_common()]
    return markdown(["reason", "cells", "at the second look"], lines)


def winners(cells: Cells, times: Mapping[tuple[int, int], Mapping[str, float]]) -> str:
    """Parts of the cells that each estimator wins."""
    by_variance = Counter(verdicts.winner(cell) for cell in cells)
    by_product = Counter(
        verdicts.winner(cell, times[cell["components"], cell["dim"]]) for cell in cells
    )
    rows = [
        [label(name), *(f"{found[name] / len(cells):.0%}" for found in (by_variance, by_product))]
        for name in verdicts.SINGLE
    ]
    return markdown(["estimator", "least variance", "least variance times time"], rows)


def seconds(times: Mapping[tuple[int, int], Mapping[str, float]]) -> str:
    """Milliseconds of a step."""
    names = list(next(iter(times.values())))
    head = ["estimator", *(f"K = {count}, D = {dim}" for count, dim in times)]
    rows = [[name, *(f"{1e3 * found[name]:.2f}" for found in times.values())] for name in names]
    return markdown(head, rows)


def gumbel(rows: Sequence[Mapping[str, Any]]) -> str:
    """Variance and squared bias, both relative to the score function's variance."""
    keys = dict.fromkeys((row["separation"], row["cost"], row["kind"]) for row in rows)
    temperatures = sorted({row["temperature"] for row in rows})
    lines = []
    for key in keys:
        same = [row for row in rows if (row["separation"], row["cost"], row["kind"]) == key]
        cells = [f"{number(row['variance'])}, {max(0, row['square_bias']):.1e}" for row in same]
        lines.append([f"{key[0]:g}", *key[1:], *cells])
    head = ["separation", "cost", "estimator", *(f"T = {value:g}" for value in temperatures)]
    return markdown(head, lines)
