"""What ``python -m experiments gradient-variance-avf`` does."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from tqdm import tqdm

from experiments.gradient_variance_avf import estimators, figures
from experiments.gradient_variance_avf.estimators import (
    REPARAMETERIZATION,
    Family,
    mean_below_diagonal,
)
from experiments.gradient_variance_avf.problem import COSTS, Problem
from experiments.lab.full_batch import Schedule
from experiments.lab.run import Run, atomic_write


@dataclass
class GradientVarianceAVF:
    """Variance of the gradient of a 50-dimensional Normal's Cholesky factor (Fig. 1a)."""

    seeds: int = 10
    """Random pairs of a cost's matrix Q and of the off-diagonal part of L."""
    steps: int = 1500
    """Steps of Adam for each control variate."""
    samples: int = 32
    """Samples a step."""
    floor_samples: int = 50_000
    """Samples from which the best W is computed."""
    draws: int = 2000
    """Single-sample gradients in each measurement."""
    radii: tuple[float, ...] = (0.0, 0.05, 0.1, 0.25, 0.5, 1.0)
    """Values of r."""
    seed: int = 0
    """Random seed."""
    quick: bool = False
    """A few steps of everything: seconds, no result."""
    out: Path = Path("results")
    """Folder for the results."""
    resume: bool = False
    """Go on with an unfinished run of the same settings."""

    def __post_init__(self) -> None:
        least = {"seeds": 2, "steps": 1, "samples": 1, "floor_samples": 1, "draws": 2}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"Expected {name} >= {bound}, but got {getattr(self, name)}")
        if not self.radii or min(self.radii) < 0:
            raise ValueError(f"Expected radii >= 0, but got {self.radii}")
        if self.quick:
            for name in (*least, "radii"):
                if getattr(self, name) != getattr(GradientVarianceAVF, name):
                    raise ValueError(f"Expected no {name} of your own with quick")
            self.seeds, self.steps, self.samples, self.floor_samples = 2, 10, 8, 500
            self.draws, self.radii = 50, (0.0, 1.0)

    def run(self) -> None:
        """Run all stages, or those that an unfinished run has left."""
        torch.set_num_threads(1)
        settings = dataclasses.asdict(self)
        settings = {key: settings[key] for key in settings.keys() - {"out", "resume"}}
        name = f"gradient_variance_avf{'-quick' if self.quick else ''}"
        run = Run(self.out, name, settings, resume=self.resume)
        problem = Problem.draw(self.radii, self.seeds, self._stream(0))
        rows, ratios = [], {}
        for cost in COSTS:
            found = self._measurements(run, problem, cost)
            reference = found[REPARAMETERIZATION]["variance"]
            for estimator in figures.STYLES:
                ratios[cost, estimator] = (found[estimator]["variance"] / reference).numpy()
            for estimator, result in found.items():
                z_scores = {key: result[key] for key in ("rms_z", "largest_z")}
                rows.append({"cost": cost, "estimator": estimator, **z_scores})
        text = table(self.radii, ratios)
        print(text)
        atomic_write(run.folder / "table.md", lambda file: file.write(text.encode() + b"\n"))
        figures.plot_ratios(run.folder / "ratios.png", self.radii, ratios)
        run.finish({"table": ratio_rows(self.radii, ratios), "means": rows})
        largest = max(rows, key=lambda row: row["largest_z"])
        print(
            f"Means against exact gradients: z-scores of root mean square"
            f" {min(row['rms_z'] for row in rows):.3f} to {max(row['rms_z'] for row in rows):.3f},"
            f" at most {largest['largest_z']:.2f} ({largest['cost']}, {largest['estimator']})."
        )
        print(f"Table, figure (PNG), metrics and settings: {run.folder}")

    def _measurements(self, run: Run, problem: Problem, cost: str) -> dict[str, dict[str, Any]]:
        """For each estimator the mean variance ``(R, seeds)`` and the z-scores of the mean."""
        schedule = Schedule(self.steps, 0.01, 0.02, max(5, self.steps // 15))
        families = estimators.families(
            run, problem, cost, schedule, self.samples, self.floor_samples, self._stream(1)
        )
        found = {}
        progress = tqdm(families.items(), f"{cost}, measuring")
        for name, family in progress:
            progress.set_postfix(estimator=name)
            compute = partial(judge, family, problem, cost, self.draws, self._stream(2))
            found[name] = run.stage(f"{cost}, {name}, measured", compute)
        return found

    def _stream(self, number: int) -> int:
        """A seed for one of three independent streams of random numbers."""
        return 3 * self.seed + number


def judge(family: Family, problem: Problem, cost: str, draws: int, seed: int) -> dict[str, Any]:
    """Mean variance below the diagonal, ``(R, seeds)``, and z-scores of the mean gradient."""
    found = estimators.measure(family, problem, cost, draws, seed)
    scores = (found.mean - problem.exact_gradient(cost)) / found.mean_error
    return {
        "variance": mean_below_diagonal(found.variance),
        "rms_z": mean_below_diagonal(scores.square()).mean().sqrt().item(),
        "largest_z": scores.tril(-1).abs().max().item(),
    }


def ratio_rows(radii: tuple[float, ...], ratios: figures.Ratios) -> list[dict[str, Any]]:
    """Mean ratio over the seeds, its standard error and the standard deviation over the seeds."""
    return [
        {
            "cost": cost,
            "estimator": estimator,
            "r": radius,
            "ratio": values.mean(),
            "ratio_se": values.std(ddof=1) / len(values) ** 0.5,
            "ratio_std": values.std(ddof=1),
        }
        for (cost, estimator), all_values in ratios.items()
        for radius, values in zip(radii, all_values, strict=True)
    ]


def table(radii: tuple[float, ...], ratios: figures.Ratios) -> str:
    """The ratios as a Markdown table."""
    lines = [
        "| cost | estimator | " + " | ".join(f"r = {radius:g}" for radius in radii) + " |",
        "| --- | --- |" + " --- |" * len(radii),
    ]
    for (cost, estimator), values in ratios.items():
        errors = values.std(-1, ddof=1) / numpy.sqrt(values.shape[-1])
        cells = [f"{m:.3f} ± {e:.3f}" for m, e in zip(values.mean(-1), errors, strict=True)]
        lines.append(f"| {cost} | {estimator} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
