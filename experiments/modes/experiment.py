"""What ``python -m experiments modes`` does."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.lab.run import Run, atomic_write
from experiments.lab.sweep import Diverged, sweep
from experiments.modes import figures, fits
from experiments.modes.contenders import CONTENDERS
from experiments.modes.targets import TARGETS

QUICK_TARGETS = ("two_moons", "star", "robot_1")
QUICK_CONTENDERS = ("fit", "diagonal-mixture", "normal", "nuts")


@dataclass
class Modes:
    """Modes found, ELBO and cost of ways of inference on posteriors with several modes."""

    seeds: int = 5
    """Runs of ``fit`` on each target."""
    budget: int = 100_000
    """Evaluations of the density of each of them, about; in more than 20 dimensions in proportion,
    up to 100."""
    peer_seeds: int = 1
    """Runs of each other contender on each target."""
    peer_budget: int = 20_000
    """Evaluations of each of them."""
    targets: tuple[str, ...] = ()
    """Names of targets; by default all."""
    contenders: tuple[str, ...] = ()
    """Names of contenders; by default all."""
    scheduler: str | None = None
    """Address of a dask scheduler; by default all cores of this machine."""
    quick: bool = False
    """Few evaluations of three targets: seconds, no result."""
    out: Path = Path("results")
    """Folder for the results."""
    resume: bool = False
    """Go on with an unfinished run of the same settings."""

    def __post_init__(self) -> None:
        for name in ("seeds", "budget", "peer_seeds", "peer_budget"):
            if getattr(self, name) < 1:
                raise ValueError(f"Expected {name} >= 1, but got {getattr(self, name)}")
            if self.quick and getattr(self, name) != getattr(Modes, name):
                raise ValueError(f"Expected no {name} of your own with quick")
        for name, known in (("targets", list(TARGETS)), ("contenders", list(CONTENDERS))):
            unknown = [one for one in getattr(self, name) if one not in known]
            if unknown:
                raise ValueError(f"Expected {name} among {known}, but got {unknown}")
        self.draws = 5_000
        if self.quick:
            self.seeds = self.peer_seeds = 1
            self.budget = self.peer_budget = 400
            self.draws = 500
        self.targets = self.targets or (QUICK_TARGETS if self.quick else tuple(TARGETS))
        self.contenders = self.contenders or (
            QUICK_CONTENDERS if self.quick else tuple(CONTENDERS)
        )

    def run(self) -> None:
        """Run all jobs, or those that an unfinished run has left."""
        torch.set_num_threads(1)
        told: dict[str, Any] = {"seeds": self.seeds, "budget": self.budget}
        told |= {"peer_seeds": self.peer_seeds, "peer_budget": self.peer_budget}
        told |= {"targets": self.targets, "contenders": self.contenders}
        told["draws"] = self.draws
        run = Run(self.out, "modes" + "-quick" * self.quick, told, resume=self.resume)
        results = self._sweep(run)
        rows = [row for result in results.values() for row in result["rows"]]
        run.log(rows)
        summary = summarize(rows, self.targets, self.contenders)
        text = table(summary)
        print(text)
        atomic_write(run.folder / "table.md", lambda file: file.write(text.encode() + b"\n"))
        self._plot(run.folder, rows, results)
        run.finish({"table": summary, "targets": truths(self.targets)})
        print(f"Table, figures (PNG), metrics and settings: {run.folder}")

    def _sweep(self, run: Run) -> dict[str, dict[str, Any]]:
        jobs = {
            job_name(target, contender, seed): {
                "target": target,
                "contender": contender,
                "seed": seed,
                "budget": self.budget if contender == "fit" else self.peer_budget,
                "draws": self.draws,
            }
            for target in self.targets
            for contender in self.contenders
            for seed in range(self.seeds if contender == "fit" else self.peer_seeds)
        }
        results = sweep(run, fits.fit, jobs, scheduler=self.scheduler)
        return {
            name: failed(jobs[name], result) if isinstance(result, Diverged) else result
            for name, result in results.items()
        }

    def _plot(
        self, folder: Path, rows: Sequence[Mapping[str, Any]], results: Mapping[str, Any]
    ) -> None:
        figures.plot_modes(folder / "modes.png", rows, self.targets, self.contenders)
        figures.plot_gaps(folder / "gaps.png", rows, self.targets, self.contenders)
        for target in self.targets:
            points = {
                contender: results[job_name(target, contender, 0)]["points"]
                for contender in self.contenders
            }
            if target in figures.PICTURES and any(z is not None for z in points.values()):
                figures.plot_found(folder / f"found_{target}.png", TARGETS[target](), points)


def job_name(target: str, contender: str, seed: int) -> str:
    """Of one run."""
    return f"{target}-{contender}-{seed}"


def failed(job: Mapping[str, Any], result: Diverged) -> dict[str, Any]:
    """The result of a job that ended outside of what :func:`fits.fit` guards."""
    row = {key: job[key] for key in ("target", "contender", "seed")}
    return {"rows": [{**row, "error": result.message}], "points": None}


def truths(names: Sequence[str]) -> list[dict[str, Any]]:
    """Evidence and modes of the targets that can be made here."""
    rows: list[dict[str, Any]] = []
    for name in names:
        try:
            target = TARGETS[name]()
        except ValueError as error:  # its data are missing
            rows.append({"target": name, "error": str(error)})
            continue
        evidence = target.evidence
        rows.append(
            {
                "target": name,
                "dimension": target.dimension,
                "evidence": evidence.value,
                "error_of_evidence": evidence.error,
                "how": evidence.how,
                "modes": len(target.mode_weights),
            }
        )
    return rows


def summarize(
    rows: Sequence[Mapping[str, Any]], targets: Sequence[str], contenders: Sequence[str]
) -> list[dict[str, Any]]:
    """Medians over the seeds of the last row of each run, the range of the gap, and failures."""
    last = {(row["target"], row["contender"], row["seed"]): row for row in rows}
    keys = ["modes", "of", "gap", "khat", "weight_distance", "mended_distance"]
    keys += ["components", "evaluations", "seconds"]
    summary = []
    for target in targets:
        for contender in contenders:
            ends = [row for key, row in last.items() if key[:2] == (target, contender)]
            good = [row for row in ends if "error" not in row]
            row: dict[str, Any] = {"target": target, "contender": contender, "runs": len(good)}
            for key in keys:
                values = [end[key] for end in good if end.get(key) is not None]
                row[key] = statistics.median(values) if values else None
            gaps = [end["gap"] for end in good if end.get("gap") is not None]
            row["least_gap"], row["largest_gap"] = (min(gaps), max(gaps)) if gaps else (None, None)
            row["errors"] = sorted({end["error"] for end in ends if "error" in end})
            summary.append(row)
    return summary


def table(summary: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| target | contender | modes | gap | from .. to | k-hat | error of weights | mended"
        " | components | evaluations | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in summary:
        name = f"| {row['target']} | {row['contender']} |"
        if not row["runs"]:
            told = row["errors"][0].splitlines()[0] if row["errors"] else "not run"
            lines.append(f"{name} failed: {told} | | | | | | | | |")
            continue
        cells = [
            f"{row['modes']:g} of {row['of']:g}",
            number(row["gap"], 3),
            f"{number(row['least_gap'], 3)} .. {number(row['largest_gap'], 3)}",
            number(row["khat"], 2),
            number(row["weight_distance"], 3),
            number(row["mended_distance"], 3),
            number(row["components"], 0),
            number(row["evaluations"], 0),
            number(row["seconds"], 1),
        ]
        lines.append(f"{name} {' | '.join(cells)} |")
    return "\n".join(lines)


def number(value: float | None, digits: int) -> str:
    """A cell of the table."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"
