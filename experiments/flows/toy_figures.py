"""Pictures of toy densities and of samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from experiments.flows.part import Jobs
from experiments.lab.sweep import Diverged

DEEP = 10.0
"""Nats below the top of a picture at which it is white."""


def plot(folder: Path, jobs: Jobs, results: Mapping[str, Any]) -> None:
    """Densities and samples of the first seed: rows of densities, columns of bases."""
    _grid(folder / "densities.png", jobs, results, samples=False)
    _grid(folder / "samples.png", jobs, results, samples=True)


def _grid(path: Path, jobs: Jobs, results: Mapping[str, Any], *, samples: bool) -> None:
    densities = list(dict.fromkeys(job["density"] for job in jobs.values()))
    bases = list(dict.fromkeys(job["base"] for job in jobs.values()))
    shape = (len(densities), len(bases) + 1)
    figure, axes = plt.subplots(
        *shape, figsize=(1.55 * shape[1], 1.6 * shape[0]), squeeze=False, layout="constrained"
    )
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[], xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), aspect="equal")
    for name, job in jobs.items():
        if isinstance(results[name], Diverged):
            continue
        place = densities.index(job["density"])
        ax = axes[place, bases.index(job["base"]) + 1]
        _points(axes[place, 0], results[name]["data"], "black")
        if samples:
            _points(ax, results[name]["samples"], "C0")
        else:
            picture = results[name]["picture"].numpy()
            top = picture.max()
            ax.imshow(
                picture,
                origin="lower",
                extent=(-2.6, 2.6, -2.6, 2.6),
                vmin=top - DEEP,
                vmax=top,
                cmap="Blues",
            )
    for ax, title in zip(axes[0], ["data", *bases], strict=True):
        ax.set_title(title, fontsize=10)
    for ax, title in zip(axes[:, 0], densities, strict=True):
        ax.set_ylabel(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _points(ax: Any, points: Any, color: str) -> None:
    ax.plot(*points.T.numpy(), ".", color=color, ms=1, alpha=0.5, rasterized=True)
