"""Figure 2 of the paper, and the settings that the sweep tried."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy
from matplotlib.axes import Axes
from numpy.typing import NDArray

from experiments.gaussian_process.fits import NUM_ROTATIONS

Curve = Mapping[str, NDArray[numpy.float64]]


def plot_elbo(
    path: Path, curves: Mapping[str, Curve], seconds: Mapping[str, float], bound: float
) -> None:
    """Mean ELBO and its range over the seeds against the iteration and against seconds."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    for color, (name, curve) in enumerate(curves.items()):
        for ax, unit in zip(axes, (1.0, seconds[name]), strict=True):
            _band(ax, curve["step"] * unit, curve["elbo"], f"C{color}", name)
    last = max(curve["step"][-1] for curve in curves.values())
    axes[0].set(xlabel="iteration", ylabel="ELBO", xlim=(0, last))
    axes[1].set(xlabel="seconds, by the median time of an iteration")
    axes[1].set_xlim(0, last * max(seconds.values()))
    lowest = min(curve["elbo"][:, 0].mean() for curve in curves.values())
    highest = max(curve["elbo"].max() for curve in curves.values())
    axes[0].set_ylim(lowest, highest + 0.05 * (highest - lowest))
    axes[0].legend(loc="lower right")
    seeds = max(len(curve["elbo"]) for curve in curves.values())
    axes[0].set_title(f"mean and range over {seeds} seeds")
    axes[1].set_title(f"largest log evidence: {bound:.0f}")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _band(
    ax: Axes, x: NDArray[numpy.float64], elbos: NDArray[numpy.float64], color: str, name: str
) -> None:
    ax.plot(x, elbos.mean(0), color=color, label=name, lw=1.2)
    ax.fill_between(x, elbos.min(0), elbos.max(0), color=color, alpha=0.2, lw=0)


def plot_sweep(path: Path, ranking: Sequence[Mapping[str, Any]]) -> None:
    """Final ELBO of each setting, its mean and range, grouped by the estimator.

    The axis ends at three times the distance of the middle setting from the best: one that ran
    away would hide all others. Means beyond are told at its edge.
    """
    figure, ax = plt.subplots(figsize=(9, 1.5 + 0.22 * len(ranking)), layout="constrained")
    names = list(NUM_ROTATIONS)  # colours as in the other figure
    rows = sorted(ranking, key=lambda row: names.index(row["estimator"]))
    means = [row["elbo"] for row in rows if row["elbos"]]
    end = max(means) - 3 * (max(means) - statistics.median(means))
    for place, row in enumerate(rows):
        color = f"C{names.index(row['estimator'])}"
        elbos = row["elbos"]
        if elbos:
            ax.plot([min(elbos), max(elbos)], [place, place], color=color, lw=2, alpha=0.4)
            ax.plot(row["elbo"], place, "o", color=color, ms=4)
        if elbos and row["elbo"] < end:
            text = f" \u2190 {row['elbo']:.0f} "
            box = {"fc": "w", "ec": "none", "pad": 0}
            ax.text(end, place, text, va="center", color=color, fontsize=7, bbox=box)
    labels = [
        row["name"] + f" ({row['diverged']} diverged)" * bool(row["diverged"]) for row in rows
    ]
    ax.set_yticks(range(len(rows)), labels, fontsize=7)
    ax.set_ylim(len(rows), -1)
    if end < max(means):
        highest = max(max(row["elbos"]) for row in rows if row["elbos"])
        ax.set_xlim(end, highest + 0.05 * (highest - end))
    ax.set_xlabel("ELBO after the last iteration: mean and range over the seeds")
    ax.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)
