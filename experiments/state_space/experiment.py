"""What ``python -m experiments state-space`` does."""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from experiments.lab.run import Run, atomic_write, on_device
from experiments.lab.sweep import Diverged, sweep
from experiments.lab.timing import medians
from experiments.lab.trainer_settings import Training
from experiments.state_space import figures, fits, smoother
from experiments.state_space.model import datasets

Result = dict[str, Any] | Diverged
TIMES = (4, 5, 6)
"""Of the figure of the posterior, as in the paper; the first time is 1."""


@dataclass
class StateSpace:
    """A state space model by mixtures of 1, 2 and 3 Normals and four gradient estimators.

    The fits are spread over the cores. Under ``torchrun`` or ``fabric run`` they come one after
    another, and each is shared by all processes.
    """

    seeds: int = 5
    """Fits of each guide."""
    epochs: int = 300
    """Passes over the 800 sequences."""
    batch_size: int = 100
    """Sequences of a step, over all processes."""
    particles: int = 5000
    """Particles of the filter and trajectories of the smoother that is the reference."""
    seed: int = 0
    """Random seed of the first fit."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; the reference is computed on the CPU."""
    scheduler: str | None = None
    """Address of a dask scheduler; by default all cores of this machine."""
    quick: bool = False
    """A few steps of everything: seconds, no result."""
    out: Path = Path("results")
    """Folder for the results."""
    resume: bool = False
    """Go on with an unfinished run of the same settings."""

    def __post_init__(self) -> None:
        for name in ("seeds", "epochs", "batch_size", "particles"):
            if getattr(self, name) < 1:
                raise ValueError(f"Expected {name} >= 1, but got {getattr(self, name)}")
            if self.quick and getattr(self, name) != getattr(StateSpace, name):
                raise ValueError(f"Expected no {name} of your own with quick")
        on_device(self.device)  # tells of a missing one before any work is done
        self.num_sequences = 800
        if self.quick:
            self.seeds, self.epochs, self.batch_size, self.particles = 2, 2, 20, 200
            self.num_sequences = 40

    def training(self, seed: int) -> Training:
        """Settings of a fit."""
        return Training(
            self.epochs,
            self.batch_size,
            learning_rate=1e-2,
            final_fraction=0.03,
            clip_norm=100.0,
            evaluate_every=max(1, self.epochs // 60),
            seed=self.seed + seed,
        )

    def run(self) -> None:
        """Run all stages, or those that an unfinished run has left."""
        torch.set_num_threads(1)
        told = dataclasses.asdict(self)
        told = {key: told[key] for key in told.keys() - {"out", "resume", "scheduler"}}
        run = Run(self.out, "state_space" + "-quick" * self.quick, told, resume=self.resume)
        results = self._fits(run)
        if int(os.environ.get("RANK", 0)) > 0:
            return
        found: dict[str, list[Result]] = {
            candidate.name: [results[job_name(candidate, seed)] for seed in range(self.seeds)]
            for candidate in fits.CANDIDATES
        }
        run.log(
            [
                {"guide": name, "seed": self.seed + seed, **row}
                for name, each in found.items()
                for seed, result in enumerate(each)
                if not isinstance(result, Diverged)
                for row in result["rows"]
            ]
        )
        data = datasets()
        test = data.test[: self.num_sequences]
        evidence = run.stage("evidence", lambda: self._evidence(test))
        steps = {
            candidate.name: fits.step(candidate, self.training(0)) for candidate in fits.CANDIDATES
        }
        seconds = run.stage("seconds", lambda: medians(steps, 3 if self.quick else 101))
        rows = table_rows(found, evidence["mean"], seconds)
        text = table(rows)
        print(text)
        atomic_write(run.folder / "table.md", lambda file: file.write(text.encode() + b"\n"))
        self._marginals(run, found, test)
        validation = data.validation[: self.num_sequences]
        others = run.stage("validation_evidence", lambda: self._evidence(validation))
        figures.plot_elbos(run.folder / "elbo.png", panels(found), others["mean"])
        run.finish({"table": rows, "log_evidence": evidence})
        print(
            f"log p(x) by the particle filter: {evidence['mean']:.3f}"
            f" ± {evidence['standard_error']:.3f} nats a sequence."
        )
        print(f"Table, figures (PNG), metrics and settings: {run.folder}")

    def _fits(self, run: Run) -> dict[str, Result]:
        """The results of all fits by their names."""
        together = "RANK" in os.environ  # of several processes
        jobs: dict[str, dict[str, Any]] = {
            job_name(candidate, seed): {
                "folder": run.folder / "fits" / job_name(candidate, seed),
                "candidate": candidate,
                "training": self.training(seed),
                "num_sequences": self.num_sequences,
                "device": self.device,
                "resume": self.resume,
                "progress": together,
            }
            for seed in range(self.seeds)
            for candidate in fits.CANDIDATES
        }
        if together:
            return {name: self._shared(run, name, job) for name, job in jobs.items()}
        return sweep(run, fits.fit, jobs, scheduler=self.scheduler)

    def _shared(self, run: Run, name: str, job: dict[str, Any]) -> Result:
        """The result of a fit of all processes, kept by the first of them."""
        result = run.load(name)
        if result is None:
            result = fits.fit(**job)
            if os.environ["RANK"] == "0":
                run.save(name, result)
        return result

    def _evidence(self, observations: Tensor) -> dict[str, float]:
        """The mean log p(x) of the sequences, by four filters."""
        each = [
            smoother.log_likelihood(observations, self.particles, seed=seed).mean().item()
            for seed in range(4)
        ]
        return {"mean": statistics.mean(each), "standard_error": standard_error(each)}

    def _marginals(self, run: Run, found: Mapping[str, Sequence[Result]], test: Tensor) -> None:
        """The posterior of a test sequence, as in Fig. 4."""
        chosen = run.stage(
            "sequence", lambda: 0 if self.quick else smoother.first_with_two_modes(test)
        )
        reference = run.stage(
            "smoother", lambda: smoother.smooth(test[chosen], self.particles, self.particles)
        )
        torch.manual_seed(self.seed)
        guides = {}
        for candidate in fits.CANDIDATES[:2]:
            good = [each for each in found[candidate.name] if not isinstance(each, Diverged)]
            if not good:
                continue
            guide = fits.trained(candidate, good[0]["parameters"])
            states, _ = guide.sample(test[chosen : chosen + 1], 20_000)
            guides[f"K = {candidate.num_components}"] = states[:, 0]
        figures.plot_marginals(
            run.folder / "marginals.png", reference, guides, test[chosen], TIMES
        )


def job_name(candidate: fits.Candidate, seed: int) -> str:
    """Of a fit, for files."""
    return f"{candidate.num_components}-{candidate.estimator}-{seed}"


def standard_error(values: Sequence[float]) -> float:
    """Of the mean, NaN for a single value."""
    if len(values) < 2:
        return math.nan
    return statistics.stdev(values) / math.sqrt(len(values))


def panels(found: Mapping[str, Sequence[Result]]) -> dict[str, dict[str, Any]]:
    """Epochs and validation ELBOs of all fits, as the figure has them."""
    by_size: dict[str, Any] = {}
    by_estimator: dict[str, Any] = {}
    for candidate in fits.CANDIDATES:
        rows = [each["rows"] for each in found[candidate.name] if not isinstance(each, Diverged)]
        if not rows:
            continue
        epochs = [row["epoch"] for row in rows[0]]
        curve = epochs, [[row["validation_elbo"] for row in each] for each in rows]
        if candidate.estimator == "clustered" or candidate.num_components == 1:
            by_size[f"K = {candidate.num_components}"] = curve
        if candidate.num_components == 2:
            by_estimator[candidate.estimator] = curve
    return {"number of components": by_size, "estimator, K = 2": by_estimator}


def table_rows(
    found: Mapping[str, Sequence[Result]], log_evidence: float, seconds: Mapping[str, float]
) -> list[dict[str, Any]]:
    """The figures of each guide: means and standard errors over the fits that did not diverge."""
    rows = []
    for name, results in found.items():
        bounds = [each["bounds"] for each in results if not isinstance(each, Diverged)]
        row: dict[str, Any] = {
            "guide": name,
            "fits": len(bounds),
            "diverged": len(results) - len(bounds),
            "seconds_per_step": seconds[name],
        }
        for bound in ("elbo", "iw_bound"):
            each = [values[bound] for values in bounds]
            row[bound] = statistics.mean(each) if each else math.nan
            row[f"{bound}_se"] = standard_error(each)
        row["divergence"] = log_evidence - row["elbo"]
        rows.append(row)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| guide | fits, diverged | test ELBO | 200-sample bound | divergence from the posterior"
        " | ms a step |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['guide']} | {row['fits']}, {row['diverged']}"
        f" | {row['elbo']:.3f} ± {row['elbo_se']:.3f}"
        f" | {row['iw_bound']:.3f} ± {row['iw_bound_se']:.3f} | {row['divergence']:.3f}"
        f" | {1e3 * row['seconds_per_step']:.1f} |"
        for row in rows
    ]
    return "\n".join(lines)
