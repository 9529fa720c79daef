"""Heat maps over the regimes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from experiments.estimator_map import verdicts
from experiments.estimator_map.regimes import GUMBEL_SEPARATIONS
from experiments.logit_gradients.costs import COSTS
from experiments.logit_gradients.styles import STYLES, label

Slices = Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]]
"""The cells of each row of each slice."""

Times = Mapping[tuple[int, int], Mapping[str, float]]
"""Seconds of a step by each estimator, for each K and D."""

SHOWN = (*verdicts.SINGLE[1:], "learned hub")


def plot_winners(
    path: Path,
    slices: Slices,
    times: Times | None = None,
) -> None:
    """The winner in each cell, by colour and letter."""
    figure, axes = _grid(slices)
    won: set[str] = set()

    def draw(ax: Axes, cells: list[list[Mapping[str, Any]]]) -> None:
        names = [[verdicts.winner(cell, _times_of(cell, times)) for cell in row] for row in cells]
        won.update(name for row in names for name in row)
        colors = [[_pale(STYLES[name][0]) for name in row] for row in names]
        ax.imshow(numpy.array(colors), aspect="auto", origin="lower")
        for y, row in enumerate(names):
            for x, name in enumerate(row):
                ax.text(x, y, STYLES[name][2], ha="center", va="center", fontsize=9)

    _fill(axes, slices, draw)
    patches = [
        Patch(color=_pale(STYLES[name][0]), label=f"{STYLES[name][2]}: {label(name)}")
        for name in verdicts.SINGLE
        if name in won
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=4, frameon=False)
    _save(figure, path)


def plot_excess(path: Path, slices: Slices) -> None:
    """Blending's variance relative to the best one's; frames where a target is missed."""
    figure, axes = _grid(slices)
    norm = LogNorm(1, 3)
    images = []

    def draw(ax: Axes, cells: list[list[Mapping[str, Any]]]) -> None:
        found = [[verdicts.excess(cell) for cell in row] for row in cells]
        values = numpy.array([[each["of_best"] for each in row] for row in found])
        image = ax.imshow(values, norm=norm, cmap="YlOrRd", aspect="auto", origin="lower")
        images.append(image)
        for y, row in enumerate(found):
            for x, each in enumerate(row):
                weight = "normal" if each["meets"] else "bold"
                text = f"{each['of_best']:.2g}" if each["of_best"] >= 1.05 else "1"
                dark = each["of_best"] > 2
                ax.text(
                    x,
                    y,
                    text,
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    weight=weight,
                    color="w" if dark else "k",
                )

    _fill(axes, slices, draw)
    bar = figure.colorbar(images[0], ax=axes, shrink=0.4, extend="max", ticks=[1, 1.3, 2, 3])
    bar.ax.set_yticklabels(["1", "1.3", "2", "3"])
    bar.ax.minorticks_off()
    bar.set_label("variance of blending / that of the best; bold: a target is missed")
    _save(figure, path)


def plot_estimators(path: Path, rows: Mapping[int, Sequence[Mapping[str, Any]]]) -> None:
    """Each estimator's variance relative to the score function's; crosses where unreliable."""
    first = next(iter(rows.values()))[0]["moments"]
    names = [name for name in SHOWN if name in first]
    figure, axes = plt.subplots(
        len(names),
        len(COSTS),
        figsize=(11, 1.9 * len(names) + 0.5),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    image = None
    for line, name in zip(axes, names, strict=True):
        for ax, cost in zip(line, COSTS, strict=True):
            cells = _cells(rows, cost)
            found = [[cell["moments"] for cell in row] for row in cells]
            values = [[e[name].variance / e["score"].variance for e in row] for row in found]
            image = ax.imshow(
                numpy.array(values),
                norm=LogNorm(1e-2, 1e2),
                cmap="RdBu_r",
                aspect="auto",
                origin="lower",
            )
            failed = [
                (x, y)
                for y, row in enumerate(found)
                for x, each in enumerate(row)
                if not each[name].reliable
            ]
            if failed:
                ax.scatter(*zip(*failed, strict=True), marker="x", color="k", s=22, lw=1)
            _ticks(ax, rows, cells)
        words = label(name).replace(", ", "\n").replace(" and ", "\nand ")
        line[0].set_ylabel(f"{words}\nD")
    for ax, cost in zip(axes[0], COSTS, strict=True):
        ax.set_title(cost)
    for ax in axes[-1]:
        ax.set_xlabel("separation")
    assert image is not None
    bar = figure.colorbar(image, ax=axes, shrink=0.4, extend="both")
    bar.set_label("variance / that of the score function")
    _save(figure, path)


def plot_gumbel(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Variance and squared bias against the temperature."""
    figure, axes = plt.subplots(
        len(GUMBEL_SEPARATIONS),
        len(COSTS),
        figsize=(12, 6),
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    for line, separation in zip(axes, GUMBEL_SEPARATIONS, strict=True):
        for ax, cost in zip(line, COSTS, strict=True):
            for kind in ("gumbel_soft", "gumbel_hard"):
                same = [
                    row
                    for row in rows
                    if (row["separation"], row["cost"], row["kind"]) == (separation, cost, kind)
                ]
                color, marker, _ = STYLES[kind]
                at = [row["temperature"] for row in same]
                variance = [row["variance"] for row in same]
                bias = [
                    row["square_bias"] if row["square_bias"] > 2 * row["noise"] else numpy.nan
                    for row in same
                ]
                ax.plot(at, variance, color=color, marker=marker, ms=4, label=f"{kind}: variance")
                ax.plot(
                    at,
                    bias,
                    color=color,
                    marker=marker,
                    ms=4,
                    mfc="none",
                    ls="--",
                    label=f"{kind}: squared bias",
                )
            ax.axhline(1, color="0.7", lw=0.8, zorder=0)
            square = same[0]["square_gradient"]
            ax.axhline(square, color="k", lw=1, ls=":", label="squared gradient")
            ax.set(xscale="log", yscale="log", title=f"{cost}, separation {separation:g}")
            ax.set_xticks(at, [f"{value:g}" for value in at])
            ax.minorticks_off()
    for ax in axes[-1]:
        ax.set_xlabel("temperature")
    for ax in axes[:, 0]:
        ax.set_ylabel("/ variance of the score function")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    _save(figure, path)


def _times_of(cell: Mapping[str, Any], times: Times | None) -> Mapping[str, float] | None:
    return None if times is None else times[cell["components"], cell["dim"]]


def _grid(slices: Slices) -> tuple[Figure, numpy.ndarray]:
    figure, axes = plt.subplots(
        len(slices),
        len(COSTS),
        figsize=(13, 2.9 * len(slices) + 0.6),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for ax, cost in zip(axes[0], COSTS, strict=True):
        ax.set_title(cost)
    for ax in axes[-1]:
        ax.set_xlabel("separation")
    return figure, axes


def _fill(
    axes: numpy.ndarray,
    slices: Slices,
    draw: Callable[[Axes, list[list[Mapping[str, Any]]]], None],
) -> None:
    """A panel for each slice and cost."""
    for line, (name, rows) in zip(axes, slices.items(), strict=True):
        for ax, cost in zip(line, COSTS, strict=True):
            cells = _cells(rows, cost)
            draw(ax, cells)
            _ticks(ax, rows, cells)
        varied, _, kind = name.partition(", ")
        fixed = "D = 10" if varied == "K" else "K = 10"
        line[0].set_ylabel(f"{varied}   ({', '.join(filter(None, (fixed, kind)))})")


def _cells(
    rows: Mapping[int, Sequence[Mapping[str, Any]]], cost: str
) -> list[list[Mapping[str, Any]]]:
    return [[cell for cell in row if cell["cost"] == cost] for row in rows.values()]


def _ticks(ax: Axes, rows: Mapping[int, Any], cells: list[list[Mapping[str, Any]]]) -> None:
    separations = [f"{cell['separation']:g}" for cell in cells[0]]
    ax.set_xticks(range(len(separations)), separations)
    ax.set_yticks(range(len(rows)), [str(key) for key in rows])


def _pale(color: str) -> tuple[float, float, float]:
    """Light enough for black letters."""
    red, green, blue = (0.45 + 0.55 * part for part in to_rgb(color))
    return red, green, blue


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=130)
    plt.close(figure)
