"""Figures 3a and 3b of the paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from torch.distributions import Distribution, Independent, Normal

from experiments.baseball.model import COORDINATES
from pyro_mixtures.distributions import MixtureOfDiagNormals

SECTIONS = ((0, 2), (1, 2), (2, 3))


def plot_sections(
    path: Path, posteriors: dict[str, Distribution], draws: NDArray[numpy.float64]
) -> None:
    """Contours of each approximation over the NUTS sample: a row for each section."""
    figure, axes = plt.subplots(
        len(SECTIONS),
        len(posteriors),
        figsize=(3.6 * len(posteriors), 3.3 * len(SECTIONS)),
        sharex="row",
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    points = draws.reshape(-1, draws.shape[-1])
    points = points[:: max(1, len(points) // 3000)]
    for ax, name in zip(axes[0], posteriors, strict=True):
        ax.set_title(name)
    for row, (first, second) in zip(axes, SECTIONS, strict=True):
        row[0].set_ylabel(COORDINATES[second])
        for ax, posterior in zip(row, posteriors.values(), strict=True):
            ax.scatter(
                points[:, first], points[:, second], s=2, color="0.7", lw=0, rasterized=True
            )
            _contours(ax, posterior, first, second, points)
            ax.set_xlabel(COORDINATES[first])
    handles = [
        Line2D([], [], marker="o", ls="", ms=4, color="0.7", label="NUTS sample"),
        Line2D([], [], color="C0", label="guide: contours holding 50 %, 80 % and 95 %"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _contours(
    ax: Axes, posterior: Distribution, first: int, second: int, points: NDArray[numpy.float64]
) -> None:
    """Highest density regions of the two-dimensional marginal."""
    sides = []
    for index in (first, second):
        low, high = numpy.quantile(points[:, index], [0.001, 0.999])
        pad = 0.15 * (high - low)
        sides.append(torch.linspace(low - pad, high + pad, 160, dtype=torch.float64))
    grid = torch.cartesian_prod(*sides).reshape(160, 160, 2)
    with torch.no_grad():
        density = marginal(posterior, [first, second]).log_prob(grid.float()).exp()
    descending = density.flatten().sort(descending=True).values
    mass = descending.cumsum(0) / descending.sum()
    levels = numpy.unique([descending[(mass < share).sum()] for share in (0.95, 0.8, 0.5)])
    x, y = (side.numpy() for side in sides)
    ax.contour(x, y, density.T.numpy(), levels=levels, colors="C0", linewidths=1.2)
    ax.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))


def marginal(posterior: Distribution, coordinates: list[int]) -> Distribution:
    """The marginal of a diagonal Normal or a mixture of them: the same with fewer coordinates."""
    if isinstance(posterior, MixtureOfDiagNormals):
        locs, scales = posterior.locs[:, coordinates], posterior.coord_scale[:, coordinates]
        return MixtureOfDiagNormals(locs, scales, posterior.component_logits)
    loc, scale = posterior.mean[coordinates], posterior.stddev[coordinates]
    return Independent(Normal(loc, scale), 1)


def plot_curves(path: Path, curves: dict[str, list[dict[str, Any]]], seeds: int) -> None:
    """Mean ELBO and one standard deviation over the seeds, the whole way and the top of it."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    last = []
    for color, (name, rows) in enumerate(curves.items()):
        step, mean, std = (
            numpy.array([row[key] for row in rows]) for key in ("step", "elbo", "elbo_std")
        )
        last.append(mean[-1])
        for ax, band in zip(axes, (std, std / seeds**0.5), strict=True):
            ax.plot(step, mean, color=f"C{color}", label=name, lw=1)
            ax.fill_between(step, mean - band, mean + band, color=f"C{color}", alpha=0.2, lw=0)
    for ax, below in zip(axes, (30, 1.2), strict=True):
        ax.set(xlabel="step of Adam (single-sample gradients)", ylabel="ELBO")
        ax.set_ylim(max(last) - below, max(last) + 0.1 * below + 0.2)
    axes[0].set_title(f"K = 20: mean and standard deviation over {seeds} seeds")
    axes[1].set_title("enlarged: mean and its standard error")
    axes[0].legend(loc="lower right")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_elbo(path: Path, curves: dict[str, list[dict[str, Any]]]) -> None:
    """ELBO against the step of each fit."""
    figure, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, rows in curves.items():
        ax.plot([row["step"] for row in rows], [row["elbo"] for row in rows], label=name)
    best = max(rows[-1]["elbo"] for rows in curves.values())
    ax.set(xlabel="step", ylabel="ELBO", ylim=(best - 6, best + 0.5))
    ax.legend(loc="lower right")
    figure.savefig(path, dpi=150)
    plt.close(figure)
