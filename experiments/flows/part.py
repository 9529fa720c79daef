"""What a part of the experiment consists of."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
Jobs = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Part:
    """A table of fits.

    Attributes:
        jobs: of a number of seeds, and whether the run is a quick one: arguments by name.
        fit: the function of these.
        rows: of the jobs, their results, and whether the run is a quick one: those of the table.
        columns: of the table: titles, and cells of a row.
        plot: writes the figures to a folder, of the jobs and their results.
    """

    jobs: Callable[[int, bool], dict[str, dict[str, Any]]]
    fit: Callable[..., Any]
    rows: Callable[[Jobs, Mapping[str, Any]], list[dict[str, Any]]]
    columns: Mapping[str, Callable[[Row], str]]
    plot: Callable[[Path, Jobs, Mapping[str, Any]], None]


def table(columns: Mapping[str, Callable[[Row], str]], rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    lines += [f"| {' | '.join(cell(row) for cell in columns.values())} |" for row in rows]
    return "\n".join(lines)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean of the finite values and its standard error, NaN of too few."""
    good = [value for value in values if math.isfinite(value)]
    mean = statistics.mean(good) if good else math.nan
    error = statistics.stdev(good) / math.sqrt(len(good)) if len(good) > 1 else math.nan
    return mean, error


def told(mean: float, error: float, digits: int = 3) -> str:
    """A cell, with the error if there is one."""
    if math.isnan(mean):
        return "-"
    return f"{mean:.{digits}f}" + ("" if math.isnan(error) else f" ± {error:.{digits}f}")
