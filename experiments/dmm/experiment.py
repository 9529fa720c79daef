"""What ``python -m experiments dmm`` does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from experiments.dmm import figures, fits, tables
from experiments.dmm.chorales import Batches
from experiments.dmm.studies import QUICK, STUDIES, quick
from experiments.lab.comparison import Job, by_row, training_rows
from experiments.lab.run import Run, atomic_write, on_device
from experiments.lab.sweep import sweep, workers
from experiments.lab.timing import medians
from pyro_mixtures.numerics.validation import check_choice


@dataclass
class DMM:
    """Deep Markov models of chorales with mixtures at each time step."""

    studies: tuple[str, ...] = tuple(STUDIES)
    """Which tables to make, in this order."""
    seeds: int | None = None
    """Fits of each row; by default those of the study."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    scheduler: str | None = None
    """Address of a dask scheduler; by default all cores of this machine."""
    quick: bool = False
    """Two epochs of everything on a few short sequences: seconds, no result."""
    out: Path = Path("results")
    """Folder for the results."""
    resume: bool = False
    """Go on with an unfinished run of the same settings."""

    def __post_init__(self) -> None:
        if self.seeds is not None and self.seeds < 1:
            raise ValueError(f"Expected seeds >= 1, but got {self.seeds}")
        for name in self.studies:
            check_choice("studies", name, tuple(STUDIES))
        on_device(self.device)  # tells of a missing one before any work is done

    def run(self) -> None:
        """Run the studies, or what an unfinished run has left of them."""
        torch.set_num_threads(1)
        with workers(self.scheduler) as address:  # one cluster for all
            for name in self.studies:
                self._study(name, address)

    def _study(self, name: str, scheduler: str) -> None:
        """Fit all rows of a study, and write its table and figures."""
        study = STUDIES[name]
        jobs = study.jobs(self.seeds or (1 if self.quick else study.seeds))
        budget = study.budget
        if self.quick:
            budget = dataclasses.replace(QUICK, gradients=2 if budget.gradients else 0)
            jobs = [quick(job) for job in jobs]
        data = fits.data_of(budget)  # tells of a missing file before any work is done
        told = {
            "jobs": [dataclasses.asdict(job) for job in jobs],
            "budget": dataclasses.asdict(budget),
            "device": self.device,
        }
        run = Run(self.out / ("dmm" + "-quick" * self.quick), name, told, resume=self.resume)
        names = {f"{place:02d}-{job.training.seed}": job for place, job in enumerate(jobs)}
        arguments = {
            key: {
                "folder": run.folder / "fits" / key,
                "candidate": job.candidate,
                "training": job.training,
                "budget": budget,
                "device": self.device,
                "resume": self.resume,
                "progress": False,
            }
            for key, job in names.items()
        }
        found = sweep(run, fits.fit, arguments, scheduler=scheduler)
        results = by_row((job, found[key]) for key, job in names.items())
        run.log(training_rows(results))
        firsts = {row: each[0][0] for row, each in results.items()}
        batches = Batches(data.train, fits.BATCH, 1, 0)
        middle = batches[[len(batches) // 2]]
        seconds = run.stage("seconds", lambda: self._seconds(firsts, *middle))
        rows = tables.rows(results, seconds)
        text = tables.table(study.title, rows)
        print(text)
        atomic_write(run.folder / "table.md", lambda file: file.write(text.encode() + b"\n"))
        for figure, plot in figures.FIGURES[name].items():
            plot(run.folder / f"{figure}.png", results, data)
        run.finish({"table": rows})

    def _seconds(
        self, jobs: Mapping[str, Job], rolls: torch.Tensor, lengths: torch.Tensor
    ) -> dict[str, float]:
        """Of a step of each row, all in turn on one core, on a batch of middle length."""
        steps = {name: fits.step(job.candidate, rolls, lengths) for name, job in jobs.items()}
        return medians(steps, 1 if self.quick else 11)
