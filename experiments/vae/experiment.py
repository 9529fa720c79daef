"""What ``python -m experiments vae`` does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from experiments.lab.comparison import Job, by_row, training_rows
from experiments.lab.run import Run, atomic_write, on_device
from experiments.lab.sweep import sweep, workers
from experiments.lab.timing import medians
from experiments.vae import figures, fits, images, occlusion, tables
from experiments.vae.studies import STUDIES, quick
from pyro_mixtures.numerics.validation import check_choice


@dataclass
class VAE:
    """Variational autoencoders of MNIST with mixtures as posteriors and priors."""

    studies: tuple[str, ...] = (*STUDIES, *occlusion.LATENTS)
    """Which tables to make, in this order."""
    seeds: int | None = None
    """Fits of each row; by default those of the study."""
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
            check_choice("studies", name, (*STUDIES, *occlusion.LATENTS))
        on_device(self.device)  # tells of a missing one before any work is done

    def run(self) -> None:
        """Run the studies, or what an unfinished run has left of them."""
        torch.set_num_threads(1)
        with workers(self.scheduler) as address:  # one cluster for all
            for name in self.studies:
                self._study(name, address)

    def _study(self, name: str, scheduler: str) -> None:
        """Fit all rows of a study, and write its table and figure."""
        out = self.out / ("vae" + "-quick" * self.quick)
        if name in occlusion.LATENTS:
            occlusion.run(
                name,
                out,
                seeds=self.seeds,
                device=self.device,
                scheduler=scheduler,
                small=self.quick,
                resume=self.resume,
            )
            return
        study = STUDIES[name]
        jobs = study.jobs(self.seeds or (1 if self.quick else study.seeds))
        if self.quick:
            study = dataclasses.replace(study, num_samples=30, watched=study.watched and 20)
            jobs = [quick(job) for job in jobs]
        told = {
            "jobs": [dataclasses.asdict(job) for job in jobs],
            "device": self.device,
            "num_samples": study.num_samples,
            "judged": study.judged,
        }
        run = Run(out, name, told, resume=self.resume)
        names = {f"{place:02d}-{job.training.seed}": job for place, job in enumerate(jobs)}
        arguments = {
            key: {
                "folder": run.folder / "fits" / key,
                "candidate": job.candidate,
                "training": job.training,
                "num_images": 100 if self.quick else None,
                "num_samples": study.num_samples,
                "judged": study.judged,
                "watched": study.watched,
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
        if name in figures.FIGURES:
            figures.FIGURES[name](run.folder / f"{name}.png", results)
        run.finish({"table": rows})

    def _seconds(self, jobs: Mapping[str, Job]) -> dict[str, float]:
        """Of a step of each row, all in turn on one core."""
        data = {job.candidate.reading: images.load(job.candidate.reading) for job in jobs.values()}
        steps = {
            name: fits.step(job.candidate, data[job.candidate.reading], job.training.batch_size)
            for name, job in jobs.items()
        }
        return medians(steps, 1 if self.quick else 21)
