"""Figure 1a of the paper."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy

from experiments.gradient_variance_avf.estimators import FLOOR
from experiments.gradient_variance_avf.problem import COSTS

Ratios = Mapping[tuple[str, str], numpy.ndarray]
STYLES = {
    "OMT": {"color": "0.4", "ls": "-."},
    "AVF axes, M = 1": {"color": "C0", "ls": "--"},
    "AVF axes, M = 5": {"color": "C0", "ls": "-"},
    FLOOR: {"color": "k", "ls": ":"},
    "AVF rows, M = 1": {"color": "C1", "ls": "--"},
    "AVF rows, M = 5": {"color": "C1", "ls": "-"},
}


def plot_ratios(path: Path, radii: tuple[float, ...], ratios: Ratios) -> None:
    """A panel for each cost: mean of the ratios over the seeds and one standard deviation."""
    figure, axes = plt.subplots(
        1, len(COSTS), figsize=(11, 4.2), sharex=True, sharey=True, layout="constrained"
    )
    for ax, cost in zip(axes, COSTS, strict=True):
        for name, style in STYLES.items():
            values = ratios[cost, name]  # (R, seeds)
            mean, spread = values.mean(-1), values.std(-1, ddof=1)
            ax.plot(radii, mean, label=name, lw=1.4, **style)
            low, high = mean - spread, mean + spread
            ax.fill_between(radii, low, high, color=style["color"], alpha=0.15, lw=0)
        ax.axhline(1, color="0.8", lw=0.8, zorder=0)
        ax.set(title=cost, xlabel="r, size of the off-diagonal entries of L")
        ax.set_yscale("log")
    axes[0].set_ylabel("variance / that of the reparameterization trick")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
