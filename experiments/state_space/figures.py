"""Figure 4 of the paper, and the ELBO against the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import ArrayLike, NDArray

from experiments.logit_gradients.styles import STYLES

Array = NDArray[numpy.float64]

SHARES = (0.95, 0.8, 0.5)
BINS = 120
WIDTH = 0.05
"""Standard deviation of the kernel that smooths the histograms, in the states' units."""

COLORS = {
    "pathwise": STYLES["displacement"][0],  # the field of this guide's mixtures
    **{name: STYLES[name][0] for name in ("clustered", "score", "gumbel_soft")},
}
DEPTH = 8.0
"""Nats below the best that are shown at most."""


def plot_marginals(
    path: Path,
    reference: ArrayLike,
    guides: Mapping[str, ArrayLike],
    observations: ArrayLike,
    times: Sequence[int] = (4, 5, 6),
) -> None:
    """The marginal posterior of the states of one sequence at some times (Fig. 4).

    A row for the reference and one for each guide. All show the density of the reference in grey.

    Args:
        path: of the figure.
        reference: trajectories of the smoother, ``(M, T, 2)``.
        guides: samples of the guides by their names, ``(S, T, 2)`` each.
        observations: ``(T, 2)``.
        times: columns, from 1 on.
    """
    x = numpy.asarray(observations)
    grey = numpy.asarray(reference)
    rows = {"smoother": grey, **{name: numpy.asarray(z) for name, z in guides.items()}}
    figure, axes = plt.subplots(
        len(rows),
        len(times),
        figsize=(2.8 * len(times), 2.6 * len(rows) + 0.5),
        sharex=True,
        sharey="col",
        squeeze=False,
        layout="constrained",
    )
    for column, t in zip(axes.T, times, strict=True):
        sides = _sides(grey[:, t - 1], [z[:, t - 1] for z in rows.values()])
        first, second = x[t - 1]
        column[0].set_title(f"$t = {t}$, $x_{{{t}}} = ({first:.2f}, {second:.2f})$")
        column[-1].set_xlabel("$z_1$")
        for ax, (name, z) in zip(column, rows.items(), strict=True):
            ax.pcolormesh(*sides, _density(grey[:, t - 1], sides).T, cmap="Greys", rasterized=True)
            if name != "smoother":
                _contours(ax, z[:, t - 1], sides)
    for row, name in zip(axes[:, 0], rows, strict=True):
        row.set_ylabel(f"{name}\n$z_2$")
    handles = [
        Patch(color="0.6", label="posterior by the smoother"),
        Line2D([], [], color="C0", label="guide: contours holding 50 %, 80 % and 95 %"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _sides(reference: Array, everything: Sequence[Array]) -> tuple[Array, Array]:
    """Centres of the histograms' bins in both coordinates: almost all of what is to be shown."""
    sides = []
    for index in (0, 1):
        quantiles = [numpy.quantile(z[:, index], [0.003, 0.997]) for z in everything]
        low, high = min(q[0] for q in quantiles) - 0.2, max(q[1] for q in quantiles) + 0.2
        if index == 0:  # both signs alike
            high = max(-low, high)
            low = -high
        sides.append(numpy.linspace(low, high, BINS))
    return sides[0], sides[1]


def _density(z: Array, sides: tuple[Array, Array]) -> Array:
    """A smoothed histogram of samples ``(S, 2)``, without unit, ``(BINS, BINS)``."""
    edges = [numpy.append(side, side[-1] + side[1] - side[0]) for side in sides]
    edges = [edge - 0.5 * (edge[1] - edge[0]) for edge in edges]
    density, *_ = numpy.histogram2d(z[:, 0], z[:, 1], bins=edges)
    kernels = [numpy.exp(-0.5 * ((side[:, None] - side) / WIDTH) ** 2) for side in sides]
    return kernels[0] @ density @ kernels[1].T


def _contours(ax: Axes, z: Array, sides: tuple[Array, Array]) -> None:
    """Highest density regions."""
    density = _density(z, sides)
    descending = numpy.sort(density, axis=None)[::-1]
    mass = descending.cumsum() / descending.sum()
    levels = numpy.unique([descending[(mass < share).sum()] for share in SHARES])
    ax.contour(*sides, density.T, levels=levels, colors="C0", linewidths=1.2)


def plot_elbos(
    path: Path,
    panels: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]],
    log_likelihood: float | None = None,
) -> None:
    """Mean ELBO over seeds and its standard error against the epochs.

    Curves that end further below than :data:`DEPTH` leave the figure.

    Args:
        path: of the figure.
        panels: by their titles, curves by their names: epochs ``(E,)`` and ELBOs of each seed
            ``(seeds, E)``, nats a sequence.
        log_likelihood: log p(x) of the same sequences, which no ELBO exceeds.
    """
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(5.5 * len(panels), 4.2),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    last = []
    for ax, (title, curves) in zip(axes[0], panels.items(), strict=True):
        for index, (name, (epochs, elbos)) in enumerate(curves.items()):
            each = numpy.atleast_2d(numpy.asarray(elbos, dtype=float))
            mean = each.mean(0)
            color = COLORS.get(name, f"C{index + 2}")
            ax.plot(epochs, mean, color=color, label=name, lw=1.2)
            if len(each) > 1:
                band = each.std(0, ddof=1) / len(each) ** 0.5
                ax.fill_between(epochs, mean - band, mean + band, color=color, alpha=0.2, lw=0)
            last.append(mean[-1])
        if log_likelihood is not None:
            ax.axhline(log_likelihood, color="black", lw=0.8, ls="--", label="$\\log p(x)$")
        ax.set(title=title, xlabel="epoch")
        ax.legend(loc="lower right")
    top = max(last) if log_likelihood is None else log_likelihood
    below = min(1.5 * (top - min(last)), DEPTH)
    axes[0, 0].set(ylabel="ELBO, nats a sequence", ylim=(top - below, top + 0.1 * below))
    figure.savefig(path, dpi=150)
    plt.close(figure)
