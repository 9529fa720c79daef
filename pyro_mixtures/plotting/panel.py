"""What is drawn on one pair of axes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy
from contourpy import contour_generator
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from pyro_mixtures.plotting.arrays import Array
from pyro_mixtures.plotting.marginal import Marginal

MASSES = (0.95, 0.8, 0.5)
"""What the contours of a mixture hold."""

MIXTURE, COMPONENT, REFERENCE = "C0", "C1", "0.7"

SEEN = 0.01
"""Components of this weight are in view."""

SCATTERED = 3000
"""Points of a reference sample, at most."""

SIDE = 60
"""Points of a component's grid along each coordinate."""

Color = tuple[str, float]
"""With its strength."""


def draw_panel(ax: Axes, marginal: Marginal, points: Array | None, ends: Array) -> None:
    """Draw a marginal over points ``(N, d)``, within the ends of each axis ``(d, 2)``."""
    if len(marginal.dims) == 1:
        _draw_curves(ax, marginal, points, *ends[0])
    else:
        _draw_contours(ax, marginal, points, ends)
    ax.set_xlabel(marginal.labels[0])
    ax.set_ylabel("density" if len(marginal.dims) == 1 else marginal.labels[1])


def _draw_curves(
    ax: Axes, marginal: Marginal, points: Array | None, low: float, high: float
) -> None:
    """Densities of one coordinate."""
    if points is not None:
        inside = points[(low <= points) & (points <= high)]
        edges = numpy.linspace(low, high, min(80, 8 + int(len(inside) ** 0.5)))
        weights = numpy.full(len(inside), 1 / (len(points) * (edges[1] - edges[0])))
        ax.hist(inside, edges.tolist(), weights=weights, color=REFERENCE, label="reference")
    x = _ticks(marginal.draws[:, 0], low, high)
    densities = numpy.exp(marginal.component_log_prob(x[:, None])) * marginal.weights  # (X, K)
    first, *_ = ax.plot(x, densities, color=COMPONENT, lw=1.1)
    first.set_label("components")
    ax.plot(x, densities.sum(-1), color=MIXTURE, label="mixture")
    ax.set(xlim=(low, high), ylim=(0, None))


def _draw_contours(ax: Axes, marginal: Marginal, points: Array | None, ends: Array) -> None:
    """Highest density regions of two coordinates."""
    if points is not None:
        some = points[:: -(-len(points) // SCATTERED)].T
        ax.plot(*some, ls="", marker="o", ms=2, mew=0, color=REFERENCE, label="reference")
    draws = marginal.draws
    x, y = (_ticks(draws[:, index], *ends[index]) for index in (0, 1))
    of_draws = marginal.log_prob(draws)
    grid = numpy.stack(numpy.meshgrid(x, y), -1)
    heights = marginal.log_prob(grid.reshape(-1, 2)).reshape(grid.shape[:2])
    for line in _contours(x, y, heights, of_draws, MASSES):
        ax.plot(*line.T, color=MIXTURE)
    ax.lines[-1].set_label("mixture: 50, 80, 95 %")
    ellipses = list(_component_contours(marginal))
    lines, colors = zip(*ellipses, strict=True) if ellipses else ((), ())
    ax.add_collection(LineCollection(lines, colors=colors, linewidths=1.1), autolim=False)
    ax.plot([], [], color=COMPONENT, lw=1.1, label="components: 50 %")
    ax.set(xlim=ends[0], ylim=ends[1])


def _component_contours(marginal: Marginal) -> Iterator[tuple[Array, Color]]:
    """A line around half of each component, in the stronger colour the more it weighs."""
    draws, weights = marginal.component_draws, marginal.weights  # (S, K, 2) and (K,)
    of_draws = marginal.own_log_prob(draws)  # (S, K)
    medians = numpy.median(of_draws, 0)
    # where it is not finite, draws were rounded to an end of the support
    drawn = numpy.flatnonzero((weights > 0) & numpy.isfinite(medians))
    half = numpy.where((of_draws >= medians)[..., None], draws, numpy.nan)[:, drawn]
    low, high = numpy.nanmin(half, 0), numpy.nanmax(half, 0)  # (K, 2)
    margin = 0.1 * (high - low)  # of grids of their own, for some may be small
    ticks = draws[:1].repeat(SIDE, 0)
    ticks[:, drawn] = numpy.linspace(low - margin, high + margin, SIDE)  # (SIDE, K, 2)
    grids = numpy.broadcast_arrays(ticks[None, :, :, 0], ticks[:, None, :, 1])
    grid = numpy.stack(grids, -1)  # (SIDE, SIDE, K, 2)
    heights = marginal.own_log_prob(grid.reshape(SIDE**2, *draws.shape[1:]))
    for index in drawn:
        own = heights[:, index].reshape(SIDE, SIDE)
        x, y = ticks[:, index].T
        (line,) = _contours(x, y, own, of_draws[:, index], (0.5,))
        strength = 0.2 + 0.8 * math.sqrt(weights[index] / weights.max())
        yield line, (COMPONENT, strength)


def _contours(
    x: Array, y: Array, heights: Array, of_draws: Array, masses: Sequence[float]
) -> list[Array]:
    """A line ``(N, 2)`` with gaps around each mass, at the levels that draws tell."""
    levels = numpy.quantile(of_draws, [1 - mass for mass in masses])
    generator = contour_generator(x, y, numpy.maximum(heights, levels.min() - 20))
    gap = numpy.full((1, 2), numpy.nan)
    return [
        numpy.concatenate(
            [gap, *(part for line in generator.lines(level) for part in (line, gap))]
        )
        for level in levels
    ]


def limits(marginal: Marginal, points: Array | None) -> Array:
    """Ends of each axis, ``(d, 2)``.

    Within are 95 % of the distribution, half of each component of some weight, for a mode far off
    would not be seen otherwise, and 98 % of points.
    """
    draws = marginal.draws
    heights = marginal.log_prob(draws)
    densest = draws[heights >= numpy.quantile(heights, 1 - max(MASSES))]
    extremes = [densest.min(0), densest.max(0)]
    of_components = marginal.component_draws
    shown = (marginal.weights >= SEEN) & numpy.isfinite(of_components).all((0, 2))
    if shown.any():
        middle = numpy.quantile(of_components[:, shown], [0.25, 0.75], axis=0)  # (2, K, d)
        extremes.extend([middle[0].min(0), middle[1].max(0)])
    if points is not None:
        extremes.extend(numpy.quantile(points, [0.01, 0.99], axis=0))
    low, high = numpy.min(extremes, axis=0), numpy.max(extremes, axis=0)
    margin = 0.08 * (high - low)
    return numpy.stack([low - margin, high + margin], -1)


def _ticks(draws: Array, low: float, high: float) -> Array:
    """Coordinates of a grid: evenly spread ones, and more where there is more mass."""
    dense = numpy.quantile(draws, numpy.linspace(0.01, 0.99, 80))
    inside = dense[(low < dense) & (dense < high)]
    return numpy.unique(numpy.concatenate([numpy.linspace(low, high, 120), inside]))
