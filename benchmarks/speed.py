"""Times of the ELBO steps, in floors."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.cases import Case
from benchmarks.contenders import GROUPS, NOT_MEASURED, Contender
from benchmarks.processes import KEEP, in_fresh_process
from benchmarks.report import milliseconds, table
from benchmarks.settings import Settings
from benchmarks.steps import Step
from experiments.lab.timing import times

Row = dict[str, Any]


def measure(settings: Settings) -> list[Row]:
    """A row for each number of threads, group and case."""
    rows = []
    for count in settings.threads:
        compiled = settings.compiled and count == settings.threads[0]
        for index, group in enumerate(GROUPS):
            for case in group.quick_cases if settings.quick else group.cases:
                arguments = (index, case, count, settings.seconds, compiled)
                rows.append(in_fresh_process(measure_case, *arguments, allocator=KEEP))
                print(f"speed, {count} threads, {group.name}, {case}", flush=True)
    return rows


def measure_case(index: int, case: Case, count: int, seconds: float, compiled: bool) -> Row:
    """Medians of the contenders of a group, each of which alternates with the floor."""
    logging.getLogger("torch._dynamo").setLevel(logging.CRITICAL)  # graph breaks are expected
    torch.set_num_threads(count)
    torch.manual_seed(0)
    group = GROUPS[index]
    floor = group.floor_step(case)
    results: dict[str, Any] = {}
    absent: dict[str, str] = {}
    for contender in group.contenders:
        reason = absence(contender, case, compiled)
        if reason is None:
            step = contender.step(case)
            reason = failure(contender, step)
        if reason is None:
            results[contender.name] = pair(step, contender.floor_step(case) or floor, seconds)
        else:
            absent[contender.name] = reason
    return {
        "group": group.name,
        "case": vars(case),
        "label": str(case),
        "threads": count,
        "contenders": results,
        "absent": absent,
    }


def absence(contender: Contender, case: Case, compiled: bool) -> str | None:
    """Why a contender is not tried, or None."""
    if contender.compiled and not compiled:
        return NOT_MEASURED
    return contender.absent(case)


def pair(step: Step, floor: Step, seconds: float) -> Row:
    """Medians of a step and the floor, and of their ratio.

    The ratio is taken round by round: what slows the machine slows the floor as well.
    """
    steps = {"step": step, "floor": floor}
    taken = times(steps, rounds_within(seconds, steps))
    ratios = [a / b for a, b in zip(taken["step"], taken["floor"], strict=True)]
    lower, median, upper = statistics.quantiles(ratios)
    return {
        "rounds": len(ratios),
        "median_seconds": statistics.median(taken["step"]),
        "median_seconds_floor": statistics.median(taken["floor"]),
        "fastest_seconds": min(taken["step"]),
        "fastest_seconds_floor": min(taken["floor"]),
        "median_floors": median,
        "quartiles_floors": [lower, upper],
    }


def failure(contender: Contender, step: Step) -> str | None:
    """The error of the first run, for those that the compiler may refuse."""
    if not contender.compiled:
        step()
        return None
    try:
        step()
    except Exception as error:  # a result, too
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:100]}"
    return None


def rounds_within(seconds: float, steps: Mapping[str, Step]) -> int:
    """How often all steps run in about so many seconds: 11 to 301 times."""
    times(steps, 1)
    began = time.perf_counter()
    times(steps, 1)
    return min(301, max(11, round(seconds / (time.perf_counter() - began))))


def render(rows: list[Row]) -> str:
    """A table for each number of threads and group."""
    parts = []
    for count in dict.fromkeys(row["threads"] for row in rows):
        for group in GROUPS:
            chosen = [r for r in rows if r["threads"] == count and r["group"] == group.name]
            if not chosen:
                continue
            title = f"### {group.name}, {'one thread' if count == 1 else f'{count} threads'}"
            parts.append(f"{title}\n\n{speed_table(chosen)}")
    return "\n\n".join(parts)


def speed_table(rows: list[Row]) -> str:
    """Rows of cases, columns of contenders, in floors."""
    names = list(dict.fromkeys(name for row in rows for name in row["contenders"]))
    targets = any(row["case"]["target"] for row in rows)
    header = ["S x K x D", "floor, ms", *(["target"] if targets else []), *names]
    lines = []
    for row in rows:
        least = [result["median_seconds_floor"] for result in row["contenders"].values()]
        line = [row["label"], milliseconds(least[0])]
        line += [str(row["case"]["target"])] if targets else []
        lines.append(line + [cell(name, row) for name in names])
    return table(header, lines)


def cell(name: str, row: Row) -> str:
    """Floors of a contender, or why there are none."""
    if name in row["contenders"]:
        return f"{row['contenders'][name]['median_floors']:.2f}"
    reason = row["absent"][name]
    return "" if reason == NOT_MEASURED else reason
