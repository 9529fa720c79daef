"""Draws of what was fitted by reverse KL, above the densities."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

from experiments.flows.part import Jobs
from experiments.lab.sweep import Diverged
from experiments.modes.targets import TARGETS

EXTENTS = {"forty_normals": 48.0, "two_moons": 3.5, "many_well": 3.0}
"""Coordinates at the edges of the pictures."""
DEEP = 8.0
"""Nats below its top at which a density is white."""


def plot(folder: Path, jobs: Jobs, results: Mapping[str, Any]) -> None:
    """A row for each target, a column for each contender; the first seed, two coordinates."""
    good = {name: job for name, job in jobs.items() if not isinstance(results[name], Diverged)}
    targets = list(dict.fromkeys(job["target"] for job in good.values()))
    contenders = list(dict.fromkeys(job["contender"] for job in good.values()))
    shape = (len(targets), len(contenders))
    figure, axes = plt.subplots(
        *shape, figsize=(2.6 * shape[1], 2.7 * shape[0]), squeeze=False, layout="constrained"
    )
    for row, target in zip(axes, targets, strict=True):
        for ax in row:
            _density(ax, target)
        row[0].set_ylabel(target)
    for name, job in good.items():
        ax = axes[targets.index(job["target"]), contenders.index(job["contender"])]
        x, y = results[name]["points"][:, :2].T.numpy()
        ax.plot(x, y, ".", color="C3", ms=2, alpha=0.4)
    for ax, title in zip(axes[0], contenders, strict=True):
        ax.set_title(title, fontsize=9)
    figure.savefig(folder / "found.png", dpi=100)
    plt.close(figure)


def _density(ax: Any, name: str) -> None:
    """In the plane of the first two coordinates, of which the others are independent."""
    target, extent = TARGETS[name](), EXTENTS[name]
    line = torch.linspace(-extent, extent, 200, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(-1, 2)
    points = torch.zeros(len(grid), target.dimension, dtype=torch.float64)
    points[:, :2] = grid
    log_density = target.log_density(points).reshape(200, 200)
    top = float(log_density.max())
    ax.imshow(
        log_density.numpy(),
        origin="lower",
        extent=(-extent, extent, -extent, extent),
        vmin=top - DEEP,
        vmax=top,
        cmap="Greys",
    )
    ax.set(xlim=(-extent, extent), ylim=(-extent, extent), xticks=[], yticks=[])
