"""What ``python -m experiments baseball`` does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy
import torch
from torch.distributions import Distribution

from experiments.baseball import curves, figures, fits, reference
from experiments.lab.full_batch import Schedule
from experiments.lab.run import Run, atomic_write, on_device
from experiments.lab.timing import medians

PARTICLES = 32


@dataclass
class Baseball:
    """The baseball posterior by mean field, mixtures of 5 and 20 Normals, and NUTS."""

    seeds: int = 50
    """Fits of each estimator in the ELBO curves."""
    steps: int = 20_000
    """Steps of each fit of the table (32 particles a step)."""
    curve_steps: int = 10_000
    """Steps of the ELBO curves (one sample a step)."""
    draws: int = 10_000
    """Draws of each of four NUTS chains."""
    seed: int = 0
    """Random seed."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; NUTS and the judgement run on the CPU."""
    quick: bool = False
    """A few steps of everything: seconds, no result."""
    demo: bool = False
    """Mean field and K = 20 only, against the shipped NUTS reference: about a minute."""
    out: Path = Path("results")
    """Folder for the results."""
    resume: bool = False
    """Go on with an unfinished run of the same settings."""

    def __post_init__(self) -> None:
        for name in ("seeds", "steps", "curve_steps", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"Expected {name} >= 1, but got {getattr(self, name)}")
        on_device(self.device)  # tells of a missing one before any work is done
        if self.quick and self.demo:
            raise ValueError("Expected quick or demo, but got both")
        if self.quick or self.demo:
            for name in ("seeds", "steps", "curve_steps", "draws"):
                if getattr(self, name) != getattr(Baseball, name):
                    raise ValueError(f"Expected no {name} of your own with quick or demo")
        if self.quick:
            self.seeds, self.steps, self.curve_steps, self.draws = 3, 20, 20, 50
        if self.demo:
            self.steps = 8000

    @property
    def candidates(self) -> list[fits.Candidate]:
        """The rows of the table."""
        if self.demo:
            return [fits.MEAN_FIELD, fits.K20]
        return [fits.MEAN_FIELD, fits.K5, fits.K20, fits.PEER_K5, fits.PEER_K20]

    def run(self) -> None:
        """Run all stages, or those that an unfinished run has left."""
        torch.set_num_threads(1)  # a second thread only waits for tensors as small as these
        settings = dataclasses.asdict(self)
        settings = {key: settings[key] for key in settings.keys() - {"out", "resume"}}
        suffix = "-demo" if self.demo else "-quick" if self.quick else ""
        run = Run(self.out, f"baseball{suffix}", settings, resume=self.resume)
        nuts = self._reference(run)
        rows, elbos, posteriors = self._fits(run, nuts)
        text = table(rows)
        print(text)
        atomic_write(run.folder / "table.md", lambda file: file.write(text.encode() + b"\n"))
        figures.plot_sections(run.folder / "sections.png", posteriors, nuts["draws"])
        figures.plot_elbo(run.folder / "elbo.png", elbos)
        if not self.demo:
            schedule = Schedule(self.curve_steps)
            with on_device(self.device):
                traces = {
                    name: curves.curve(run, name, self.seeds, 20, schedule)
                    for name in curves.ESTIMATORS
                }
            figures.plot_curves(run.folder / "estimators.png", traces, self.seeds)
        diagnostics = {
            "largest_rhat": float(nuts["rhat"].max()),
            "smallest_ess": float(nuts["ess"].min()),
        }
        run.finish({"table": rows, "nuts": diagnostics})
        print(f"NUTS: R-hat at most {diagnostics['largest_rhat']:.4f},", end=" ")
        print(f"effective sample size at least {diagnostics['smallest_ess']:.0f}.")
        print(f"Table, figures (PNG), metrics and settings: {run.folder}")
        if self.demo:
            print(conclusion(run.folder, *rows))

    def _reference(self, run: Run) -> dict[str, Any]:
        if self.demo:
            return reference.read()
        chains, warmup = (2, 50) if self.quick else (4, 1000)
        path = run.folder / "reference.npz"
        settings = numpy.array([chains, self.draws, warmup, self.seed])
        if not path.exists() or (reference.read(path)["settings"] != settings).any():
            nuts = reference.reference(run, *settings.tolist())
            reference.write(path, {**nuts, "settings": settings})
        return reference.read(path)

    def _fits(
        self, run: Run, nuts: dict[str, Any]
    ) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, Any]]], dict[str, Distribution]]:
        """Rows of the table, ELBO curves and our posteriors, by the candidates' names."""
        rows, elbos, posteriors = [], {}, {}
        schedule = Schedule(self.steps, final_fraction=0.02, log_every=100)
        for candidate in self.candidates:
            with on_device(self.device):
                guide, elbo = fits.fit(run, candidate, schedule, PARTICLES, self.seed)
            elbos[candidate.name] = elbo
            rows.append({"guide": candidate.name, **fits.judge(guide, nuts, self.seed)})
            if not candidate.peer:
                posteriors[candidate.name] = fits.approximation(guide)
        with on_device(self.device):
            steps = {row.name: fits.step(row, PARTICLES) for row in self.candidates}
            seconds = medians(steps, 11 if self.quick else 301)
        for row in rows:
            row["steps_per_second"] = 1 / seconds[str(row["guide"])]
        return rows, elbos, posteriors


def conclusion(folder: Path, single: dict[str, Any], mixture: dict[str, Any]) -> str:
    """What the demo has found, and where to look next: two lines."""
    gain = mixture["elbo"] - single["elbo"]
    share = mixture["std_error"] / single["std_error"]
    return (
        f"Found: the {mixture['guide']}, has an ELBO {gain:.2f} nats above that of"
        f" {single['guide']}; its standard deviations are off by {share:.0%} as much.\n"
        f"Next: look at {folder / 'sections.png'}, then change one line of your guide (README.md)."
    )


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| guide | ELBO | 10,000-sample bound | PSIS k-hat | error of means | error of std"
        " | steps / s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['guide']} | {row['elbo']:.3f} ± {row['elbo_se']:.3f}"
        f" | {row['iw_bound']:.3f} ± {row['iw_bound_se']:.3f} | {row['khat']:.2f}"
        f" | {row['mean_error']:.3f} | {row['std_error']:.3f} | {row['steps_per_second']:.0f} |"
        for row in rows
    ]
    return "\n".join(lines)
