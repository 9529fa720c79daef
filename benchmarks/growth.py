"""How the time of a step grows with the samples, the dimension and the components."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.cases import Case
from benchmarks.contenders import DISPLACEMENT, GROUPS, TORCH_ALONE
from benchmarks.limits import nodes
from benchmarks.processes import KEEP, in_fresh_process
from benchmarks.report import milliseconds, table
from benchmarks.settings import Settings
from benchmarks.speed import rounds_within
from experiments.lab.timing import medians

Row = dict[str, Any]

SWEEPS: dict[str, tuple[Case, ...]] = {
    "S": tuple(Case(1000 * 2**n, 20, 50) for n in range(5)),
    "D": tuple(Case(1000, 20, 50 * 2**n) for n in range(6)),
    "K": tuple(Case(1000, 8 * 2**n, 50) for n in range(7)),
    "batch": tuple(Case(1, 3, 50, batch=64 * 2**n) for n in range(7)),
}
QUICK_SWEEPS = {"S": (Case(20, 3, 4), Case(40, 3, 4))}


def measure(settings: Settings) -> list[Row]:
    """A row for each size that grows."""
    rows = []
    for size, cases in (QUICK_SWEEPS if settings.quick else SWEEPS).items():
        rows.append(in_fresh_process(sweep, size, cases, settings.seconds, allocator=KEEP))
        print(f"growth with {size}", flush=True)
    return rows


def sweep(size: str, cases: Sequence[Case], seconds: float) -> Row:
    """Median seconds of our step and of the floor, and the exponents fitted to them."""
    torch.set_num_threads(1)
    taken: dict[str, list[float]] = {"displacement": [], "floor": []}
    counts = []
    for case in cases:
        torch.manual_seed(0)
        steps = {"displacement": DISPLACEMENT.step(case), "floor": GROUPS[0].floor_step(case)}
        counts.append(nodes(TORCH_ALONE.step(case)))  # which do not hide in compiled loops
        for name, value in medians(steps, rounds_within(seconds, steps)).items():
            taken[name].append(value)
    sizes = [getattr(case, size) for case in cases]
    return {
        "size": size,
        "cases": [vars(case) for case in cases],
        "sizes": sizes,
        "nodes": counts,
        "median_seconds": taken,
        "exponents": {name: exponent(sizes, values) for name, values in taken.items()},
    }


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Slope of log time over log size, by least squares."""
    x, y = ([math.log(value) for value in values] for values in (sizes, seconds))
    return statistics.linear_regression(x, y).slope


def render(rows: list[Row]) -> str:
    """One table of all sizes."""
    lines = []
    for row in rows:
        fixed = {name: row["cases"][0][name] for name in "SKD" if name != row["size"]}
        ours = row["median_seconds"]["displacement"]
        lines.append(
            [
                f"{row['size']} = {row['sizes'][0]} ... {row['sizes'][-1]}",
                ", ".join(f"{name} = {value}" for name, value in fixed.items()),
                f"{row['exponents']['displacement']:.2f}",
                f"{row['exponents']['floor']:.2f}",
                ", ".join(milliseconds(value) for value in ours),
                ", ".join(str(count) for count in row["nodes"]),
            ]
        )
    header = ["growing", "fixed", "exponent", "floor's", "ms", "nodes T"]
    return table(header, lines)
