"""Options of the command line."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Part = Literal["speed", "memory", "growth", "limits", "elliptical"]


def thread_counts() -> tuple[int, ...]:
    """One, the headline, and all that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return tuple(dict.fromkeys((1, usable or 1)))


@dataclass
class Settings:
    """Speed and memory of the distributions, beside torch's log density and Pyro's classes."""

    parts: tuple[Part, ...] = ("speed", "memory", "growth", "limits", "elliptical")
    """What to measure."""
    out: Path = Path("benchmarks/results")
    """Folder of the JSON files."""
    page: Path | None = None
    """Page whose tables are replaced: docs/benchmarks.md; of a quick run a copy in ``out``."""
    threads: tuple[int, ...] = field(default_factory=thread_counts)
    """Numbers of threads of torch, for speed; the other parts are measured with one."""
    seconds: float = 1.0
    """Time for each contender of a case, unless 11 rounds take longer."""
    compiled: bool = True
    """Measure under ``torch.compile``, too."""
    quick: bool = False
    """Tiny sizes, each run 11 times and not compiled: only to see that everything works."""
