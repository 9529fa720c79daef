"""``python -m experiments polish``: what steps of SVI change of what ``fit`` has found."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import SVI
from pyro.optim import ClippedAdam

from experiments.lab.run import Run, atomic_write
from experiments.lab.sweep import Diverged, sweep
from experiments.modes.experiment import number
from experiments.modes.fits import double
from experiments.modes.judgement import State, judge
from experiments.modes.targets import TARGETS
from pyro_mixtures.infer import (
    SIWAE_ELBO,
    AutoMultivariateNormalMixture,
    MarginalizedMixture_ELBO,
    fit,
)

OBJECTIVES: dict[str, Callable[[], Any]] = {
    "ELBO": functools.partial(
        MarginalizedMixture_ELBO, max_plate_nesting=0, sticking_the_landing=True
    ),
    "SIWAE": functools.partial(SIWAE_ELBO, 4, max_plate_nesting=0),
}
"""By names of rows: the first as in the tutorial, the second with four draws of each component."""

FALL = 0.1
"""Of the learning rate, from the first step to the last."""


@dataclass
class Polish:
    """Gap, k-hat and modes of ``fit``'s posterior, and of a guide that goes on from it by SVI."""

    seeds: int = 3
    """Fits of each target."""
    steps: tuple[int, ...] = (500, 2_000)
    """Steps of SVI, each number from the fit on."""
    rate: float = 0.002
    """Of Adam at the start; it falls to a tenth."""
    draws: int = 20_000
    """From which all figures are."""
    targets: tuple[str, ...] = ("star", "eight_schools", "radial_velocity")
    """Names of targets, of Pyro models."""
    scheduler: str | None = None
    """Address of a dask scheduler; by default all cores of this machine."""
    out: Path = Path("results")
    """Folder for the results."""
    resume: bool = False
    """Go on with an unfinished run of the same settings."""

    def __post_init__(self) -> None:
        for name in ("seeds", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"Expected {name} >= 1, but got {getattr(self, name)}")
        if not self.steps or min(self.steps) < 1:
            raise ValueError(f"Expected steps of at least 1 each, but got {self.steps}")
        if not self.rate > 0:
            raise ValueError(f"Expected rate > 0, but got {self.rate}")
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown:
            raise ValueError(f"Expected targets among {list(TARGETS)}, but got {unknown}")

    def run(self) -> None:
        """Run all fits, or those that an unfinished run has left."""
        torch.set_num_threads(1)
        told: dict[str, Any] = {"seeds": self.seeds, "steps": self.steps, "rate": self.rate}
        told |= {"draws": self.draws, "targets": self.targets}
        run = Run(self.out, "polish", told, resume=self.resume)
        jobs = {
            f"{target}-{seed}": {
                "target": target,
                "seed": seed,
                "steps": self.steps,
                "rate": self.rate,
                "draws": self.draws,
            }
            for target in self.targets
            for seed in range(self.seeds)
        }
        results = sweep(run, polished, jobs, scheduler=self.scheduler)
        failed = {name: one.message for name, one in results.items() if isinstance(one, Diverged)}
        rows = [row for name, found in results.items() if name not in failed for row in found]
        run.log(rows)
        summary = summarize(rows)
        text = table(summary)
        print(text)
        atomic_write(run.folder / "table.md", lambda file: file.write(text.encode() + b"\n"))
        run.finish({"table": summary, "failed": failed})
        print(f"Table, metrics and settings: {run.folder}")


def polished(
    target: str, seed: int, steps: Sequence[int], *, rate: float, draws: int
) -> list[dict[str, Any]]:
    """Rows of a fit, and of what each objective makes of it in each number of steps.

    Args:
        target: its name.
        seed: of the fit, the steps, and the draws.
        steps: of SVI.
        rate: of Adam at the start.
        draws: by which all is judged.
    """
    truth = TARGETS[target]()
    model: Any = truth.model
    rows = []
    with double():
        began = time.process_time()
        posterior = fit(model, seed=seed, progress=False).posterior
        for objective, count, guide in _guides(model, posterior, seed, steps, rate):
            seconds = time.process_time() - began
            pyro.set_rng_seed(seed)
            found = posterior if guide is None else guide.get_posterior()
            state = State(count, lambda size, q=found: q.sample((size,)), found.log_prob)  # type: ignore[misc]
            row = {"target": target, "objective": objective, "seed": seed, "steps": count}
            rows.append({**row, "seconds": seconds, **judge(truth, state, draws=draws)})
            began = time.process_time()
    return rows


def _guides(
    model: Any, posterior: Any, seed: int, steps: Sequence[int], rate: float
) -> Iterator[tuple[str, int, Any]]:
    """An objective's name, a number of steps, and the guide after them; none before all."""
    yield "none", 0, None
    for objective, make in OBJECTIVES.items():
        for count in steps:
            pyro.clear_param_store()
            pyro.set_rng_seed(seed)
            guide = AutoMultivariateNormalMixture.from_mixture(model, posterior)
            optimizer = ClippedAdam({"lr": rate, "lrd": FALL ** (1 / count)})
            inference = SVI(model, guide, optimizer, make())
            for _ in range(count):
                inference.step()
            yield objective, count, guide


KEYS = ("gap", "khat", "effective_sample_size", "modes", "of", "seconds")


def summarize(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Medians over the seeds, and the range of the gap."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["target"], row["objective"], row["steps"]), []).append(row)
    summary = []
    for (target, objective, steps), group in groups.items():
        line: dict[str, Any] = {"target": target, "objective": objective, "steps": steps}
        for key in KEYS:
            values = [row[key] for row in group if row.get(key) is not None]
            line[key] = statistics.median(values) if values else None
        gaps = [row["gap"] for row in group if row.get("gap") is not None]
        line["least_gap"], line["largest_gap"] = (min(gaps), max(gaps)) if gaps else (None, None)
        summary.append(line)
    return summary


def table(summary: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| target | after | gap | from .. to | k-hat | effective sample size | modes | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in summary:
        steps = f"{row['steps']:,} steps of {row['objective']}"
        cells = [
            row["target"],
            steps if row["steps"] else "`fit`",
            number(row["gap"], 3),
            f"{number(row['least_gap'], 3)} .. {number(row['largest_gap'], 3)}",
            number(row["khat"], 2),
            number(row["effective_sample_size"], 0),
            f"{row['modes']:g} of {row['of']:g}",
            number(row["seconds"], 1),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
