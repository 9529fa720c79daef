"""Figures 1b and 1c of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from experiments.gradient_variance_mixture.families import FAMILIES
from experiments.logit_gradients.styles import STYLES, label

LINES = {"stratified": "--", "marginalized": "--", "pairwise": ":"}
"""Several samples or evaluations dashed; lines are the paper's field for a shared covariance."""

LARGEST = 1e7
"""Where the axis of Fig. 1c ends."""


def plot_families(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A panel for each family: geometric means over the seeds, bars of one standard error."""
    figure, axes = plt.subplots(
        2, 2, figsize=(10, 8), sharex=True, sharey=True, layout="constrained"
    )
    handles = {}
    for ax, family in zip(axes.flat, FAMILIES, strict=True):
        same = [row for row in rows if row["family"] == family]
        for name, (color, marker, _) in STYLES.items():
            line = [row for row in same if row["estimator"] == name]
            if not line or name == "score":
                continue
            dims = [row["D"] for row in line]
            handles[label(name)] = ax.errorbar(
                dims,
                [row["ratio"] for row in line],
                [row["ratio_error"] for row in line],
                color=color,
                marker=marker,
                ms=5,
                lw=1.3,
                ls=LINES.get(name, "-"),
                zorder=3 if name == "pairwise" else 2,
            )
            _unreliable(ax, [(row["D"], row["ratio"]) for row in line if not row["reliable"]])
        dims = sorted({row["D"] for row in same})
        handles["1 / D"], *_ = ax.plot(dims, [1 / dim for dim in dims], color="0.6", ls=":")
        ax.axhline(1, color="0.7", lw=0.8, zorder=0)
        ax.set(title=family, xscale="log", yscale="log")
        ax.set_xticks(dims, [str(dim) for dim in dims], minor=False)
        ax.minorticks_off()
    for ax in axes[-1]:
        ax.set_xlabel("dimension D")
    for ax in axes[:, 0]:
        ax.set_ylabel("variance / that of the score function")
    _legend(figure, handles)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_rings(path: Path, rings: Sequence[dict[str, Any]]) -> None:
    """Above relative to the score function, below that of implicit relative to the others."""
    counts = list(dict.fromkeys(ring["K"] for ring in rings))
    figure, axes = plt.subplots(
        2,
        len(counts),
        figsize=(5 * max(2, len(counts)), 8),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    handles: dict[str, Any] = {}
    for column, count in zip(axes.T, counts, strict=True):
        same = [ring for ring in rings if ring["K"] == count]
        for name in ("implicit", "displacement", "telescoping", "pairwise"):
            _ring_line(column[0], same, name, "score", handles)
        for name in ("clustered", "blended"):
            _ring_line(column[0], same, name, "score", handles)
        for name in ("displacement", "telescoping", "pairwise"):
            _ring_line(column[1], same, name, "implicit", {}, inverse=True)
        for ax, largest in zip(column, (LARGEST, 1e3), strict=True):
            ax.axhline(1, color="0.7", lw=0.8, zorder=0)
            ax.set(
                xscale="log", yscale="log", ylim=(1 / (30 if ax is column[0] else 1e3), largest)
            )
        sigmas = [ring["sigma"] for ring in same]
        shown = [sigma for sigma in (0.05, 0.1, 0.2, 0.5, 1, 2) if sigma in sigmas]
        column[1].set_xticks(shown, [f"{sigma:g}" for sigma in shown])
        column[1].minorticks_off()
        column[0].set_title(f"K = {count}")
        column[1].set_xlabel("standard deviation of the components")
    axes[0, 0].set_ylabel("variance / that of the score function")
    axes[1, 0].set_ylabel("variance of implicit / variance")
    hollow = Line2D([], [], color="0.3", marker="o", mfc="none", ls="")
    handles |= {"by the grid": Line2D([], [], color="0.3"), "unreliable samples": hollow}
    _legend(figure, handles)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _ring_line(
    ax: Axes,
    rings: Sequence[dict[str, Any]],
    name: str,
    reference: str,
    handles: dict[str, Any],
    *,
    inverse: bool = False,
) -> None:
    """The grid's ratios as a line, those of samples as markers, hollow where unreliable."""
    color, marker, _ = STYLES[name]
    ls = "-" if name in rings[0]["grid"] else ""
    handles[label(name)] = Line2D([], [], color=color, marker=marker, ms=5, ls=ls)
    sign = -1 if inverse else 1
    if name in rings[0]["grid"]:
        exact = [(ring["grid"][name] / ring["grid"][reference]) ** sign for ring in rings]
        ax.plot([ring["sigma"] for ring in rings], exact, color=color, lw=1.4)
    for ring in rings:
        found = ring["samples"]
        value = (found[name]["variance"] / found[reference]["variance"]) ** sign
        sure = found[name]["reliable"] and found[reference]["reliable"]
        ax.scatter(
            ring["sigma"],
            value,
            s=28,
            marker=marker,
            facecolor=color if sure else "none",
            edgecolor=color,
            zorder=3,
        )


def _unreliable(ax: Axes, points: Sequence[tuple[float, float]]) -> None:
    """A ring about what cannot be believed."""
    if points:
        x, y = zip(*points, strict=True)
        ax.scatter(x, y, s=140, facecolor="none", edgecolor="r", zorder=4)


def _legend(figure: Any, handles: dict[str, Any]) -> None:
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=4,
        frameon=False,
    )
