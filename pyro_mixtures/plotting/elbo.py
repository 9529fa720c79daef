"""Training curves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

from pyro_mixtures.numerics.validation import check_at_least
from pyro_mixtures.plotting.arrays import Array, as_array

MEDIANS, VALUES = 500, 5000
"""Drawn of a run, at most."""


def plot_elbo(
    elbos: ArrayLike | Mapping[str, ArrayLike],
    *,
    window: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The ELBO by step: running medians, over the noisy values in a fainter colour.

    The vertical axis fits the medians, and nine tenths of the values, after the first tenth of the
    steps: what came before, and single values, may lie beyond.

    Args:
        elbos: values of one run, ``(steps,)``, or of one for each seed, ``(seeds, steps)``, or
            several such runs by name. (``SVI.step`` returns minus the ELBO.) Of several seeds the
            median of the running medians is drawn, with a band from the least to the largest.
        window: steps that a running median covers, at least 1; by default a fiftieth of all.
        ax: where to draw; by default the current axes.

    Returns:
        The axes.

    Raises:
        ValueError: for no runs, another shape, or ``window < 1``.

    Example:
        >>> import numpy
        >>> noise = numpy.random.default_rng(0).normal(size=(3, 1000))
        >>> _, ax = plt.subplots()
        >>> runs = {"plain": noise - 2, "sticking the landing": 0.1 * noise - 2}
        >>> ax = plot_elbo(runs, ax=ax)
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['plain', 'sticking the landing']
    """
    if window is not None:
        check_at_least(1, window=window)
    given: dict[str, Any] = dict(elbos) if isinstance(elbos, Mapping) else {"": elbos}
    runs = {name: _values(name, run) for name, run in given.items()}
    if not runs:
        raise ValueError("Expected elbos of at least one run, but got none")
    ax = plt.gca() if ax is None else ax
    drawn = [_draw_run(ax, *run, window) for run in runs.items()]
    low, high = min(ends[0] for ends in drawn), max(ends[1] for ends in drawn)
    if low < high:
        margin = 0.08 * (high - low)
        ax.set_ylim(low - margin, high + margin)
    ax.set(xlabel="step", ylabel="ELBO")
    if isinstance(elbos, Mapping):
        ax.legend()
    return ax


def _values(name: str, run: ArrayLike) -> Array:
    """``(seeds, steps)``."""
    values = numpy.atleast_1d(as_array(run))
    if values.ndim > 2 or values.size == 0:
        of_name = f" of {name!r}" if name else ""
        raise ValueError(
            f"Expected elbos{of_name} of shape (steps,) or (seeds, steps), but got {values.shape}"
        )
    return numpy.atleast_2d(values)


def _draw_run(ax: Axes, name: str, values: Array, window: int | None) -> tuple[float, float]:
    """Draw one run, of one or several seeds; returns the range to be seen."""
    seeds, count = values.shape
    steps = numpy.unique(numpy.linspace(0, count - 1, min(count, MEDIANS)).round().astype(int))
    medians = _running_medians(values, steps, window or max(1, count // 50))
    (line,) = ax.plot(steps + 1, numpy.median(medians, axis=0), label=name or None, zorder=3)
    late = medians[:, len(steps) // 10 :]
    if seeds > 1:
        low, high = medians.min(0), medians.max(0)
        ax.fill_between(steps + 1, low, high, color=line.get_color(), alpha=0.25, lw=0)
    else:
        some = numpy.arange(0, count, -(-count // VALUES))
        color = line.get_color()
        ax.plot(some + 1, values[0, some], color=color, alpha=0.25, lw=0.6, zorder=1)
        bulk = values[numpy.isfinite(values)][count // 10 :]
        if len(bulk):
            late = numpy.append(late, numpy.quantile(bulk, [0.05, 0.95]))
    late = late[numpy.isfinite(late)]
    return late.min(initial=math.inf), late.max(initial=-math.inf)


def _running_medians(values: Array, steps: NDArray[numpy.intp], window: int) -> Array:
    """Around these steps, of windows cut at the ends, ``(seeds, len(steps))``."""
    starts = steps - (window - 1) // 2
    parts = [values[:, max(0, start) : start + window] for start in starts]
    return numpy.stack([numpy.median(part, axis=1) for part in parts], 1)
