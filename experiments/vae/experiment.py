"""What ``python -m experiments vae`` does."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from experiments.lab.run import Run, atomic_write, on_device
from experiments.lab.sweep import Diverged, sweep
from experiments.vae import fits
from experiments.vae.studies import STUDIES, Job, quick
from pyro_mixtures.numerics.validation import check_choice

Result = dict[str, Any] | Diverged


@dataclass
class VAE:
    """Variational autoencoders of MNIST with mixtures as posteriors and priors."""

    studies: tuple[str, ...] = tuple(STUDIES)
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
            check_choice("studies", name, tuple(STUDIES))
        on_device(self.device)  # tells of a missing one before any work is done

    def run(self) -> None:
        """Run the studies, or what an unfinished run has left of them."""
        torch.set_num_threads(1)
        for name in self.studies:
            self._study(name)

    def _study(self, name: str) -> None:
        study = STUDIES[name]
        jobs = study.jobs(self.seeds or (1 if self.quick else study.seeds))
        num_samples = 30 if self.quick else study.num_samples
        jobs = [quick(job) for job in jobs] if self.quick else jobs
        told = {
            "jobs": [dataclasses.asdict(job) for job in jobs],
            "device": self.device,
            "num_samples": num_samples,
        }
        out = self.out / ("vae" + "-quick" * self.quick)
        run = Run(out, name, told, resume=self.resume)
        names = {f"{place:02d}-{job.training.seed}": job for place, job in enumerate(jobs)}
        arguments = {
            key: {
                "folder": run.folder / "fits" / key,
                "candidate": job.candidate,
                "training": job.training,
                "num_images": 100 if self.quick else None,
                "num_samples": num_samples,
                "device": self.device,
                "resume": self.resume,
                "progress": False,
            }
            for key, job in names.items()
        }
        found = sweep(run, fits.fit, arguments, scheduler=self.scheduler)
        results = [(job, found[key]) for key, job in names.items()]
        rows = table_rows(results)
        text = table(study.title, rows)
        print(text)
        atomic_write(run.folder / "table.md", lambda file: file.write(text.encode() + b"\n"))
        run.finish({"table": rows})


def table_rows(results: Sequence[tuple[Job, Result]]) -> list[dict[str, Any]]:
    """The figures of each row: means over its fits, and two standard errors.

    That over the seeds is of the means; that over data of the differences from the first row, of
    which the same images are judged.
    """
    by_name: dict[str, list[Result]] = {}
    for job, result in results:
        by_name.setdefault(job.name, []).append(result)
    rows = []
    for name, each in by_name.items():
        good = [result for result in each if not isinstance(result, Diverged)]
        row: dict[str, Any] = {
            "row": name,
            "fits": len(good),
            "diverged": len(each) - len(good),
        }
        for bound in ("elbo", "iw_bound"):
            means = [result[bound].mean().item() for result in good]
            row[bound] = statistics.mean(means) if good else math.nan
            row[f"{bound}_se"] = standard_error(means)
        rows.append(row)
    return rows


def standard_error(values: Sequence[float]) -> float:
    """Of the mean, NaN for a single value."""
    if len(values) < 2:
        return math.nan
    return statistics.stdev(values) / math.sqrt(len(values))


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        f"| {title} | fits, diverged | test ELBO | importance weighted bound |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['row']} | {row['fits']}, {row['diverged']}"
        f" | {row['elbo']:.2f} ± {row['elbo_se']:.2f}"
        f" | {row['iw_bound']:.2f} ± {row['iw_bound_se']:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)
