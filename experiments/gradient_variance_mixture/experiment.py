"""What ``python -m experiments gradient-variance-mixture`` does."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from experiments.gradient_variance_mixture import circle, figures, tables
from experiments.gradient_variance_mixture.families import FAMILIES, ratios
from experiments.lab.run import Run, atomic_write
from experiments.logit_gradients.seconds import seconds


@dataclass
class GradientVarianceMixture:
    """Variance of the weights' gradient of mixtures by many estimators (Fig. 1b and 1c)."""

    seeds: int = 8
    """Random mixtures of each family and dimension."""
    draws: int = 4000
    """Single-sample gradients in each measurement of Fig. 1b."""
    circle_draws: int = 50_000
    """The same of Fig. 1c."""
    pilot: int = 2000
    """Samples of their own for the baseline and for what blending learns."""
    hub_steps: int = 200
    """Steps of learning a hub, of 100 samples each."""
    repeats: int = 100
    """Of the timings."""
    components: int = 10
    """K of Fig. 1b."""
    dims: tuple[int, ...] = (2, 5, 10, 20, 30, 50, 100)
    """D of Fig. 1b."""
    circle_components: tuple[int, ...] = (3, 10)
    """K of Fig. 1c, which the paper does not tell."""
    sigmas: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.4, 2.0)
    """Standard deviations of Fig. 1c."""
    seed: int = 0
    """Random seed."""
    quick: bool = False
    """A few draws of everything: seconds, no result."""
    out: Path = Path("results")
    """Folder for the results."""
    resume: bool = False
    """Go on with an unfinished run of the same settings."""

    def __post_init__(self) -> None:
        least = {"seeds": 2, "draws": 20, "circle_draws": 20, "pilot": 2, "hub_steps": 1}
        least |= {"repeats": 1, "components": 2}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"Expected {name} >= {bound}, but got {getattr(self, name)}")
        lists = {"dims": 1, "circle_components": 2, "sigmas": 0.01}
        for name, smallest in lists.items():
            values = getattr(self, name)
            if not values or min(values) < smallest:
                raise ValueError(f"Expected {name} of {smallest} and more, but got {values}")
        if self.quick:
            for name in (*least, *lists):
                if getattr(self, name) != getattr(GradientVarianceMixture, name):
                    raise ValueError(f"Expected no {name} of your own with quick")
            self.seeds, self.draws, self.circle_draws, self.pilot = 2, 200, 200, 100
            self.hub_steps, self.repeats, self.components = 3, 2, 3
            self.dims, self.circle_components, self.sigmas = (2, 5), (3,), (0.5, 2.0)

    def run(self) -> None:
        """Run all stages, or those that an unfinished run has left."""
        torch.set_num_threads(1)
        settings = dataclasses.asdict(self)
        settings = {key: settings[key] for key in settings.keys() - {"out", "resume"}}
        name = f"gradient_variance_mixture{'-quick' if self.quick else ''}"
        run = Run(self.out, name, settings, resume=self.resume)
        families = self._families(run)
        rings = self._rings(run)
        times = self._times(run)
        rows = tables.family_rows(families)
        run.log([row for row in rows if row["seed"] is not None])
        summary = [row for row in rows if row["seed"] is None]
        text = "\n\n".join(
            [
                tables.family_table(summary, self.dims),
                tables.ring_table(rings, self.sigmas),
                tables.time_table(times),
            ]
        )
        print(text)
        atomic_write(run.folder / "table.md", lambda file: file.write(text.encode() + b"\n"))
        figures.plot_families(run.folder / "families.png", summary)
        figures.plot_rings(run.folder / "circle.png", rings)
        run.finish({"families": summary, "circle": rings, "seconds": times})
        print(f"Tables, figures (PNG), metrics and settings: {run.folder}")

    def _families(self, run: Run) -> list[dict[str, Any]]:
        """Of each family, dimension and seed the variances by all estimators."""
        found = []
        jobs = [(family, dim) for family in FAMILIES for dim in self.dims]
        progress = tqdm(jobs, "mixtures")
        for family, dim in progress:
            progress.set_postfix(family=family, D=dim)
            compute = partial(self._seeds, family, dim)
            results = run.stage(f"{family}, {dim}", compute)
            found += [
                {"family": family, "D": dim, "seed": seed, "estimators": result}
                for seed, result in enumerate(results)
            ]
        return found

    def _seeds(self, family: str, dim: int) -> list[dict[str, Any]]:
        sizes = (self.draws, self.pilot, self.hub_steps)
        seeds = range(1000 * self.seed, 1000 * self.seed + self.seeds)
        return [ratios(family, self.components, dim, seed, *sizes) for seed in seeds]

    def _rings(self, run: Run) -> list[dict[str, Any]]:
        """Of each number of components and sigma the variances by samples and by the grid."""
        found = []
        jobs = [(count, sigma) for count in self.circle_components for sigma in self.sigmas]
        for number, (count, sigma) in enumerate(tqdm(jobs, "circle")):
            seed = 1000 * self.seed + number
            compute = partial(circle.cell, count, sigma, self.circle_draws, self.pilot, seed)
            result = run.stage(f"circle, {count}, {sigma}", compute)
            found.append({"K": count, "sigma": sigma, **result})
        return found

    def _times(self, run: Run) -> list[dict[str, Any]]:
        """Seconds of a step of 10 samples, by dimension."""
        dims = tqdm((2, self.dims[-1]), "timing")
        compute = partial(seconds, self.components, samples=10, repeats=self.repeats)
        return [
            {"D": dim, "seconds": run.stage(f"times, {dim}", partial(compute, dim))}
            for dim in dims
        ]
