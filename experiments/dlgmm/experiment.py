"""What ``python -m experiments dlgmm`` does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from experiments.dlgmm import figures, fits, tables
from experiments.dlgmm.studies import STUDIES, quick
from experiments.lab.comparison import Job, by_row, training_rows
from experiments.lab.run import Run, atomic_write, on_device
from experiments.lab.sweep import sweep, workers
from experiments.lab.timing import medians
from experiments.vae import images
from pyro_mixtures.numerics.validation import check_choice


@dataclass
class DLGMM:
    """Deep latent Gaussian mixtures with stick-breaking weights, of MNIST and Omniglot."""

    studies: tuple[str, ...] = tuple(STUDIES)
    """Which tables to make, in this order."""
    seeds: int | None = None
    """Fits of each row that has several; by default those of the study."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    scheduler: str | None = None
    """Address of a dask scheduler; by default all cores of this machine."""
    quick: bool = False
    """A few steps of everything on small images: seconds, no result."""
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
        if self.quick:
            study = dataclasses.replace(study, num_samples=(25, 50), judged=50)
            jobs = [quick(job) for job in jobs]
        told = {
            "jobs": [dataclasses.asdict(job) for job in jobs],
            "device": self.device,
            "num_samples": study.num_samples,
            "judged": study.judged,
        }
        run = Run(self.out / ("dlgmm" + "-quick" * self.quick), name, told, resume=self.resume)
        names = {f"{place:02d}-{job.training.seed}": job for place, job in enumerate(jobs)}
        arguments = {
            key: {
                "folder": run.folder / "fits" / key,
                "candidate": job.candidate,
                "training": job.training,
                "num_images": 100 if self.quick else None,
                "num_samples": study.num_samples,
                "judged": study.judged,
                "device": self.device,
                "resume": self.resume,
                "progress": False,
            }
            for key, job in names.items()
        }
        found = sweep(run, fits.fit, arguments, scheduler=scheduler)
        results = by_row((job, found[key]) for key, job in names.items())
        run.log(training_rows(results))
        firsts = {name: each[0][0] for name, each in results.items()}
        seconds = run.stage("seconds", lambda: self._seconds(firsts))
        rows = tables.rows(results, seconds)
        text = tables.table(study.title, rows)
        print(text)
        atomic_write(run.folder / "table.md", lambda file: file.write(text.encode() + b"\n"))
        for figure in study.figures:
            figures.FIGURES[figure](run.folder / f"{figure}.png", results)
        run.finish({"table": rows})

    def _seconds(self, jobs: Mapping[str, Job]) -> dict[str, float]:
        """Of a step of each row, all in turn on one core."""
        data = {job.candidate.reading: images.load(job.candidate.reading) for job in jobs.values()}
        steps = {
            name: fits.step(job.candidate, data[job.candidate.reading], job.training.batch_size)
            for name, job in jobs.items()
        }
        return medians(steps, 1 if self.quick else 21)
