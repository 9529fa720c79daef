"""What ``python -m experiments gaussian-process`` does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from experiments.gaussian_process import choice, figures, fits, noise
from experiments.gaussian_process.data import MONTHS, source
from experiments.gaussian_process.figures import Curve
from experiments.gaussian_process.fits import Setting
from experiments.gaussian_process.model import Regression
from experiments.lab.run import Run, atomic_write
from experiments.lab.sweep import Diverged, sweep
from experiments.lab.timing import medians

REFERENCE = "RT"


@dataclass
class GaussianProcess:
    """A Gaussian process for the CO2 over Mauna Loa by RT, OMT and AVF gradients."""

    seeds: int = 5
    """Fits of each combination of Adam's settings, and as many further ones of the best."""
    steps: int = 500
    """Steps of each fit (one sample a step)."""
    scheduler: str | None = None
    """Address of a dask scheduler; by default all cores of this machine."""
    quick: bool = False
    """A few steps of everything on two years: seconds, no result."""
    out: Path = Path("results")
    """Folder for the results."""
    resume: bool = False
    """Go on with an unfinished run of the same settings."""

    def __post_init__(self) -> None:
        for name in ("seeds", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"Expected {name} >= 1, but got {getattr(self, name)}")
            if self.quick and getattr(self, name) != getattr(GaussianProcess, name):
                raise ValueError(f"Expected no {name} of your own with quick")
        self.months = MONTHS
        self.grid = choice.grid()
        if self.quick:
            self.seeds, self.steps, self.months = 2, 20, 24
            self.grid = [Setting("RT", 0.01), Setting("OMT", 0.01)]
            adaptive = [name for name, m in fits.NUM_ROTATIONS.items() if m]
            self.grid += [Setting(name, 0.01, 0.9, 0.1, 0.5) for name in adaptive]

    def run(self) -> None:
        """Run all stages, or those that an unfinished run has left."""
        torch.set_num_threads(1)
        regression = fits.load(self.months)  # tells of a missing file before any work is done
        told = {"seeds": self.seeds, "steps": self.steps, "months": self.months, "data": source()}
        told["grid"] = [dataclasses.asdict(setting) for setting in self.grid]
        run = Run(self.out, "gaussian_process" + "-quick" * self.quick, told, resume=self.resume)
        ranking, chosen = self._choose(run)
        curves = self._curves(run, chosen)
        bound = run.stage("evidence", regression.largest_log_evidence)
        steps = {name: step(regression, setting) for name, setting in chosen.items()}
        seconds = run.stage("seconds", lambda: medians(steps, 3 if self.quick else 201))
        rows = table_rows(chosen, curves, seconds)
        noises = self._noise(run, chosen["AVF, M = 5"])
        text = f"{table(rows)}\n\n{noise.table(noises)}"
        print(text)
        atomic_write(run.folder / "table.md", lambda file: file.write(text.encode() + b"\n"))
        figures.plot_elbo(run.folder / "elbo.png", curves, seconds, bound)
        figures.plot_sweep(run.folder / "sweep.png", ranking)
        summary = {"table": rows, "noise": noises, "sweep": ranking}
        run.finish({**summary, "largest_log_evidence": bound})
        print(f"Largest log evidence over the hyperparameters: {bound:.1f}.")
        print(f"Table, figures (PNG), metrics and settings: {run.folder}")

    def _choose(self, run: Run) -> tuple[choice.Rows, dict[str, Setting]]:
        """All settings, ranked, and the best of each estimator."""
        seeds = range(self.seeds)
        results = self._sweep(run, self.grid, seeds, log_every=self.steps)
        ranking = choice.rank(self.grid, seeds, results)
        return ranking, choice.best(self.grid, ranking)

    def _curves(self, run: Run, chosen: Mapping[str, Setting]) -> dict[str, Curve]:
        """The ELBO of further fits with the best settings, by estimators."""
        seeds = range(self.seeds, 2 * self.seeds)
        log_every = max(1, self.steps // 100)
        results = self._sweep(run, list(chosen.values()), seeds, log_every)
        curves: dict[str, Curve] = {}
        for name, setting in chosen.items():
            found = choice.fits_of(setting, seeds, results)
            if not found:
                raise FloatingPointError(f"all fits with {setting.name} diverged")
            run.log([row for rows in found for row in rows])
            steps = numpy.array([row["step"] for row in found[0]], float)
            elbos = numpy.array([[row["elbo"] for row in rows] for rows in found])  # (S, T)
            curves[name] = {"step": steps, "elbo": elbos}
        return curves

    def _noise(self, run: Run, setting: Setting) -> choice.Rows:
        """Ratios of noise along a fit."""
        job = {"setting": setting, "seed": self.seeds, "steps": self.steps, "months": self.months}
        job["draws"] = 10 if self.quick else 100
        rows = sweep(run, noise.noise, {"noise": job}, scheduler=self.scheduler)["noise"]
        if isinstance(rows, Diverged):
            raise FloatingPointError(f"the fit with {setting.name} diverged: {rows.message}")
        return rows

    def _sweep(
        self, run: Run, settings: Sequence[Setting], seeds: Sequence[int], log_every: int
    ) -> dict[str, Any]:
        common = {"steps": self.steps, "months": self.months, "log_every": log_every}
        jobs = {
            choice.job_name(setting, seed): {"setting": setting, "seed": seed, **common}
            for setting in settings
            for seed in seeds
        }
        return sweep(run, fits.fit, jobs, scheduler=self.scheduler)


def step(regression: Regression, setting: Setting) -> Callable[[], None]:
    """An iteration of a fit, to be timed."""
    fit = fits.Fit(regression, setting.estimator)
    optimizer = torch.optim.Adam(fit.groups(setting), lr=setting.learning_rate)

    def iteration() -> None:
        optimizer.zero_grad()
        fit.loss().backward()
        optimizer.step()

    return iteration


def table_rows(
    chosen: Mapping[str, Setting], curves: Mapping[str, Curve], seconds: Mapping[str, float]
) -> list[dict[str, Any]]:
    """The figures of each estimator's row; the goal is where the plain estimator ends."""
    goal = curves[REFERENCE]["elbo"][:, -1].mean()
    rows = []
    for name, setting in chosen.items():
        elbo, iterations = curves[name]["elbo"], curves[name]["step"]
        there = iterations[elbo.mean(0) >= goal]
        arrival = float(there[0]) if len(there) else None
        rows.append(
            {
                **dataclasses.asdict(setting),
                "fits": len(elbo),
                "elbo": float(elbo[:, -1].mean()),
                "elbo_std": float(elbo[:, -1].std(ddof=1)) if len(elbo) > 1 else 0.0,
                "elbo_halfway": float(elbo[:, len(iterations) // 2].mean()),
                "iterations_to_goal": arrival,
                "seconds_to_goal": None if arrival is None else arrival * seconds[name],
                "seconds_per_iteration": seconds[name],
                "relative_cost": seconds[name] / seconds[REFERENCE],
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| estimator | ELBO halfway | final ELBO, ± std over seeds | iterations to RT's final ELBO"
        " | seconds to it | ms an iteration | relative to RT |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        arrived = row["iterations_to_goal"] is not None
        goal = (
            f"{row['iterations_to_goal']:.0f} | {row['seconds_to_goal']:.1f}"
            if arrived
            else "- | -"
        )
        lines.append(
            f"| {row['estimator']} | {row['elbo_halfway']:.0f}"
            f" | {row['elbo']:.0f} ± {row['elbo_std']:.0f} | {goal}"
            f" | {1e3 * row['seconds_per_iteration']:.1f} | {row['relative_cost']:.2f} |"
        )
    return "\n".join(lines)
