"""Angles and arms that networks give for one place of the hand, and their calibration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

from experiments.flows.arm import SHOWN, log_joint
from experiments.flows.part import Jobs
from experiments.lab.sweep import Diverged


def plot(folder: Path, jobs: Jobs, results: Mapping[str, Any]) -> None:
    """Draws of the first seed above the posterior, and shares of truths in regions."""
    good = {
        job["contender"]: results[name]
        for name, job in jobs.items()
        if job["seed"] == 0 and not isinstance(results[name], Diverged)
    }
    _samples(folder / "angles.png", good)
    _coverage(folder / "coverage.png", good)


def _samples(path: Path, good: Mapping[str, Any]) -> None:
    line = torch.linspace(-3, 3, 300)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
    posterior = log_joint(grid, SHOWN)
    top = float(posterior.max())
    figure, axes = plt.subplots(
        2, 3, figsize=(9, 6.2), sharex=True, sharey=True, layout="constrained"
    )
    for ax, (name, result) in zip(axes.flat, good.items(), strict=False):
        ax.imshow(
            posterior.numpy(),
            origin="lower",
            extent=(-3, 3, -3, 3),
            vmin=top - 8,
            vmax=top,
            cmap="Greys",
        )
        ax.plot(*result["samples"].T.numpy(), ".", color="C3", ms=2, alpha=0.4)
        ax.set(title=name, xlim=(-2, 2), ylim=(-3, 3), aspect="auto")
    for ax in axes[-1]:
        ax.set_xlabel("angle of the shoulder")
    for ax in axes[:, 0]:
        ax.set_ylabel("angle of the elbow")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _coverage(path: Path, good: Mapping[str, Any]) -> None:
    levels = torch.linspace(0, 1, 101)
    figure, ax = plt.subplots(figsize=(5, 4), layout="constrained")
    for place, (name, result) in enumerate(good.items()):
        covered = (result["coverage"] <= levels.unsqueeze(-1)).float().mean(-1)
        style = "-" if name.startswith("flow") else "--"
        ax.plot(levels, covered, style, color=f"C{place % 3}", label=name)
    ax.plot([0, 1], [0, 1], color="0.5", ls=":")
    ax.set(xlabel="probability of the region", ylabel="share of true angles within")
    ax.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)
