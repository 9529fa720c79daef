"""Modes against evaluations, gaps against seconds, and pictures of what was found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from torch import Tensor

from experiments.modes.contenders import CONTENDERS
from experiments.modes.targets import Target
from experiments.modes.targets.simulators import GOALS, joints

PICTURES = ("two_moons", "star", "ten_normals_2", "forty_normals", "robot_1", "robot_4")
ARMS = 60
"""Arms that are drawn of a contender."""
COLUMNS = 4
LARGEST_GAP = 1e6
"""Nats, at which figures end: rare draws where the density is next to nothing make larger ones."""


def plot_modes(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    targets: Sequence[str],
    contenders: Sequence[str],
) -> None:
    """Modes found against evaluations: the median of the seeds at each look."""
    figure, panels = _panels(targets)
    for target, axes in panels.items():
        for contender in contenders:
            curve = _medians(rows, target, contender, "evaluations", "modes")
            _line(axes, contender, curve)
        most = [row["of"] for row in rows if row["target"] == target and "of" in row]
        if most:
            axes.axhline(most[0], color="0.6", linestyle=":", zorder=0)
            axes.set_ylim(-0.05 * most[0], 1.08 * most[0])
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xscale("log")
    _finish(figure, path, panels, "evaluations of the density", "modes found")


def plot_gaps(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    targets: Sequence[str],
    contenders: Sequence[str],
) -> None:
    """Evidence minus ELBO against seconds: the median of the seeds at each look."""
    figure, panels = _panels(targets)
    for target, axes in panels.items():
        for contender in contenders:
            curve = _medians(rows, target, contender, "seconds", "gap")
            # below its own noise a gap is no figure on a logarithmic axis
            _line(axes, contender, [(x, max(y, 1e-3)) for x, y in curve if not math.isnan(y)])
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.axhline(0.1, color="0.6", linestyle=":", zorder=0)
        axes.set_ylim(top=min(axes.get_ylim()[1], LARGEST_GAP))
    _finish(figure, path, panels, "seconds", "evidence minus ELBO (nats)")


def plot_found(path: Path, target: Target, points: Mapping[str, Tensor | None]) -> None:
    """What each contender has found: points in the plane, or arms."""
    draw = _arms if target.name.startswith("robot") else _plane
    count = len(points)
    columns = min(count, COLUMNS)
    figure, grid = plt.subplots(
        math.ceil(count / columns),
        columns,
        figsize=(3 * columns, 3.1 * math.ceil(count / columns) + 0.3),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes in grid.flat[count:]:
        axes.set_axis_off()
    for axes, (contender, z) in zip(grid.flat, points.items(), strict=False):
        draw(axes, target, z)
        axes.set_title(contender if z is not None else f"{contender}: failed")
    figure.suptitle(target.name.replace("_", " "))
    _save(figure, path)


def _plane(axes: Axes, target: Target, z: Tensor | None) -> None:
    """Draws above the density's contours."""
    low, high = _window(target)
    x = torch.linspace(low[0], high[0], 200, dtype=torch.float64)
    y = torch.linspace(low[1], high[1], 200, dtype=torch.float64)
    grid = torch.cartesian_prod(x, y)
    with torch.no_grad():
        values = target.log_density(grid).reshape(200, 200)
    depths = (values - values.max()).clamp(min=-30).T.numpy()
    axes.contourf(
        x.numpy(), y.numpy(), depths, levels=[-8, -4, -2, -1, 0], cmap="Greys", alpha=0.6
    )
    if z is not None:
        axes.scatter(z[:, 0], z[:, 1], s=4, color="C3", alpha=0.4, linewidths=0)
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(low[1], high[1])


def _window(target: Target) -> tuple[list[float], list[float]]:
    """The box around what has mass among starts, weighted by the density."""
    z = target.prior_draws(20_000, torch.Generator().manual_seed(0))
    with torch.no_grad():
        values = target.log_density(z)
    inside = z[values > values.max() - 8]
    margin = 0.15 * (inside.amax(0) - inside.amin(0))
    return (inside.amin(0) - margin).tolist(), (inside.amax(0) + margin).tolist()


def _arms(axes: Axes, target: Target, z: Tensor | None) -> None:
    """Arms from the origin, colored by the side to which they bend, and the goals."""
    goals = GOALS[: int(target.name.split("_")[1])]
    axes.scatter(goals[:, 0], goals[:, 1], marker="x", color="black", zorder=3)
    if z is not None:
        ends = joints(z[:ARMS]).numpy()  # (A, 10, 2)
        ends = numpy.concatenate([numpy.zeros((len(ends), 1, 2)), ends], 1)
        left = (z[:ARMS, 1:].sum(-1) > 0).tolist()
        for arm, side in zip(ends, left, strict=True):
            axes.plot(arm[:, 0], arm[:, 1], color="C0" if side else "C1", alpha=0.3, linewidth=0.8)
    axes.set_aspect("equal")
    axes.set_xlim(-10.5, 10.5)
    axes.set_ylim(-10.5, 10.5)


def _medians(
    rows: Sequence[Mapping[str, Any]], target: str, contender: str, x: str, y: str
) -> list[tuple[float, float]]:
    """Of the runs at their first look, at their second, and so on; a run that has ended stays."""
    runs: dict[int, list[tuple[float, float]]] = {}
    for row in rows:
        if (row["target"], row["contender"]) == (target, contender) and row.get(y) is not None:
            runs.setdefault(row["seed"], []).append((row[x], row[y]))
    most = max(map(len, runs.values()), default=0)
    stayed = [run + run[-1:] * (most - len(run)) for run in runs.values()]
    return [tuple(numpy.median(look, 0).tolist()) for look in zip(*stayed, strict=True)]


def _line(axes: Axes, contender: str, curve: Sequence[tuple[float, float]]) -> None:
    if not curve:
        return
    x, y = zip(*curve, strict=True)
    place = list(CONTENDERS).index(contender)
    axes.plot(
        x,
        y,
        label=contender,
        color=f"C{place}",
        marker="osD^v<>Pp*"[place % 10],
        markersize=9 - 0.6 * (place % 10),  # curves that coincide show as rings in each other
        markerfacecolor="none",
        linewidth=1.2,
        linestyle="-" if place % 2 else "--",
    )


def _panels(targets: Sequence[str]) -> tuple[Figure, dict[str, Axes]]:
    columns = min(len(targets), COLUMNS)
    lines = math.ceil(len(targets) / columns)
    figure, grid = plt.subplots(
        lines,
        columns,
        figsize=(3.2 * columns, 2.4 * lines + 0.7),
        squeeze=False,
        layout="constrained",
    )
    for axes in grid.flat[len(targets) :]:
        axes.set_axis_off()
    return figure, dict(zip(targets, grid.flat, strict=False))


def _finish(figure: Figure, path: Path, panels: Mapping[str, Axes], x: str, y: str) -> None:
    for target, axes in panels.items():
        axes.set_title(target.replace("_", " "), fontsize=10)
        axes.xaxis.set_major_locator(LogLocator(numticks=4))
        axes.xaxis.set_minor_formatter(NullFormatter())
    figure.supxlabel(x)
    figure.supylabel(y)
    shown = {
        label: handle
        for axes in panels.values()
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if shown:
        figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=4)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=130)
    plt.close(figure)
