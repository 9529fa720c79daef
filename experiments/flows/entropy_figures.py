"""Samples of flows of maximum entropy, and how their constraints came to be met."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

from experiments.flows.moments import PROBLEMS
from experiments.flows.part import Jobs
from experiments.lab.sweep import Diverged


def plot(folder: Path, jobs: Jobs, results: Mapping[str, Any]) -> None:
    """Samples, and violations against the seconds."""
    good = {name: job for name, job in jobs.items() if not isinstance(results[name], Diverged)}
    problems = list(dict.fromkeys(job["problem"] for job in good.values()))
    contenders = list(dict.fromkeys(job["contender"] for job in good.values()))
    _samples(folder / "samples.png", problems, contenders, good, results)
    _violations(folder / "violations.png", problems, contenders, good, results)


def _samples(path: Path, problems: Any, contenders: Any, jobs: Jobs, results: Any) -> None:
    shape = (len(problems), len(contenders) + 1)
    figure, axes = plt.subplots(
        *shape, figsize=(2.2 * shape[1], 2.3 * shape[0]), squeeze=False, layout="constrained"
    )
    for row, problem in zip(axes, problems, strict=True):
        truth = PROBLEMS[problem]().draw(1000, torch.Generator().manual_seed(0))
        row[0].plot(*truth.T.numpy(), ".", color="black", ms=2, alpha=0.5)
        row[0].set_ylabel(problem)
        for ax in row:
            limits = (0, 1, 0, 1) if problem == "Dirichlet" else (-3.2, 3.2, -4, 4)
            ax.axis(limits)
    for name, job in jobs.items():
        ax = axes[problems.index(job["problem"]), contenders.index(job["contender"]) + 1]
        ax.plot(*results[name]["points"].T.numpy(), ".", color="C0", ms=2, alpha=0.5)
    for ax, title in zip(axes[0], ["truth", *contenders], strict=True):
        ax.set_title(title, fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _violations(path: Path, problems: Any, contenders: Any, jobs: Jobs, results: Any) -> None:
    figure, axes = plt.subplots(
        1, len(problems), figsize=(4.5 * len(problems), 3.5), squeeze=False, layout="constrained"
    )
    for name, job in jobs.items():
        ax = axes[0, problems.index(job["problem"])]
        rows = results[name]["rows"]
        seconds = [row["seconds"] / job["seeds"] for row in rows]
        medians = [float(row["violation"].median()) for row in rows]
        color = f"C{contenders.index(job['contender'])}"
        ax.plot(seconds, medians, ".-", color=color, label=job["contender"])
    for ax, title in zip(axes[0], problems, strict=True):
        ax.axhline(1e-3, color="0.5", ls=":")
        ax.set(title=title, xlabel="CPU seconds a seed", yscale="log")
    axes[0, 0].set_ylabel("largest violation, in standard deviations")
    axes[0, -1].legend(fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)
