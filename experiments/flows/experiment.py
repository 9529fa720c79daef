"""What ``python -m experiments flows`` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.flows import entropy, gradients, inverse, reverse, toy
from experiments.flows.part import Part, table
from experiments.lab.run import Run, atomic_write
from experiments.lab.sweep import sweep, workers
from pyro_mixtures.numerics.validation import check_choice

PARTS: dict[str, Part] = {
    "toy": toy.PART,
    "reverse": reverse.PART,
    "entropy": entropy.PART,
    "gradients": gradients.PART,
    "inverse": inverse.PART,
}
"""By name, in the order of a run."""


@dataclass
class Flows:
    """Flows on mixtures against flows on a Normal, mixtures alone, relaxed mixtures and RAD."""

    parts: tuple[str, ...] = tuple(PARTS)
    """Which tables to make, in this order."""
    seeds: int = 5
    """Fits of each row."""
    scheduler: str | None = None
    """Address of a dask scheduler; by default all cores of this machine."""
    quick: bool = False
    """A few steps of everything: seconds, no result."""
    out: Path = Path("results")
    """Folder for the results."""
    resume: bool = False
    """Go on with an unfinished run of the same settings."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"Expected seeds >= 1, but got {self.seeds}")
        for name in self.parts:
            check_choice("parts", name, tuple(PARTS))

    def run(self) -> None:
        """Run the parts, or what an unfinished run has left of them."""
        torch.set_num_threads(1)
        with workers(self.scheduler) as address:  # one cluster for all
            for name in self.parts:
                self._part(name, address)

    def _part(self, name: str, scheduler: str) -> None:
        """Fit all rows of a part, and write its table and figures."""
        part = PARTS[name]
        jobs = part.jobs(2 if self.quick else self.seeds, self.quick)
        told: dict[str, Any] = {"jobs": jobs}
        run = Run(self.out / ("flows" + "-quick" * self.quick), name, told, resume=self.resume)
        results = sweep(run, part.fit, jobs, scheduler=scheduler)
        rows = part.rows(jobs, results)
        run.log(rows)
        text = table(part.columns, rows)
        print(text)
        atomic_write(run.folder / "table.md", lambda file: file.write(text.encode() + b"\n"))
        part.plot(run.folder, jobs, results)
        run.finish({"table": rows})
        print(f"Table, figures (PNG), metrics and settings: {run.folder}")
