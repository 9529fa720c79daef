"""Peak extra memory of one step, each in a process of its own.

Before the step, one of a tiny mixture loads the libraries. The allocator hands freed arrays back
at once: then the growth of the resident memory repeats to a few hundred kilobytes, and equals the
sum of the arrays that torch's profiler finds alive together. ``ru_maxrss`` would not do, for a
process inherits it from the one that starts it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import Case
from benchmarks.contenders import GROUPS, Group
from benchmarks.processes import RETURN, in_fresh_process
from benchmarks.report import table
from benchmarks.settings import Settings
from benchmarks.steps import Step, without_loops

STATUS = Path("/proc/self/status")
TINY = Case(2, 3, 4)
LARGE = Case(1000, 20, 100)

Row = dict[str, Any]


def measure(settings: Settings) -> list[Row]:
    """A row for each group: bytes by contender."""
    if not STATUS.exists():
        print(f"memory is not measured: {STATUS} is missing, which Linux has")
        return []
    case = Case(200, 5, 20) if settings.quick else LARGE
    rows = []
    for index, group in enumerate(GROUPS[:1] if settings.quick else GROUPS):
        if group.whole_floor:  # of small mixtures
            continue
        names = [c.name for c in group.contenders if not c.compiled and not c.absent(case)]
        names = ["floor", *(names[:1] if settings.quick else names)]
        grown = {
            name: in_fresh_process(growth, index, name, case, allocator=RETURN) for name in names
        }
        rows.append({"group": group.name, "case": vars(case), "bytes": grown})
        print(f"memory, {group.name}", flush=True)
    return rows


def growth(index: int, name: str, case: Case) -> int:
    """Bytes by which this process grows during one step, at the step's peak."""
    torch.set_num_threads(1)
    tiny = build(GROUPS[index], name, TINY)
    for load in (tiny, without_loops(tiny)):  # a large step may go another way than a tiny one
        load()
        load()
    step = build(GROUPS[index], name, case)
    before = resident("VmRSS")
    step()
    return max(0, resident("VmHWM") - before)


def build(group: Group, name: str, case: Case) -> Step:
    """The step of a contender or of the floor."""
    if name == "floor":
        return group.floor_step(case)
    return next(c for c in group.contenders if c.name == name).step(case)


def resident(field: str) -> int:
    """Resident bytes of this process: ``VmRSS`` now, ``VmHWM`` at the highest."""
    match = re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text())
    if match is None:
        raise RuntimeError(f"Expected {field} in {STATUS}")
    return 1024 * int(match[1])


def render(rows: list[Row]) -> str:
    """One table of all groups."""
    lines = [
        [row["group"], name, f"{grown / 1e6:.0f}" if grown > 2e7 else f"{grown / 1e6:.1f}"]
        for row in rows
        for name, grown in row["bytes"].items()
    ]
    return table(["", "contender", "peak extra memory, MB"], lines)
