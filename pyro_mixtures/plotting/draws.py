"""Draws of a posterior in the model's own terms, with or without weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Any

import matplotlib.pyplot as plt
import numpy
from numpy.typing import ArrayLike

from pyro_mixtures.plotting.arrays import Array, as_array, resampled

MOST = 12
"""Numbers that a figure shows; with more its panels are too small."""

SCATTERED = 3000
"""Draws of a panel, at most."""


def plot_draws(
    draws: Mapping[str, ArrayLike],
    sites: Iterable[str] | None = None,
    *,
    weights: ArrayLike | None = None,
) -> Any:
    """All pairs of the numbers of some sites in a new figure, with histograms on the diagonal.

    The axes show what holds 99 % of each number.

    Args:
        draws: from the name of each site to ``(S, *shape)``, as :attr:`PSIS.samples
            <pyro_mixtures.diagnostics.PSIS>`.
        sites: their names; by default all.
        weights: importance weights of the draws ``(S,)``, of any sum, as the exponentials of
            :attr:`PSIS.log_weights <pyro_mixtures.diagnostics.PSIS>`: the draws are resampled by
            them.

    Returns:
        The axes of d numbers, a numpy array ``(d, d)``, with None above the diagonal.

    Raises:
        ValueError: for a site that there is not, no number or more than twelve of them, draws of
            different length or with NaN or infinity, or weights that are no weights of them.

    Example:
        >>> import torch
        >>> draws = {"scale": torch.rand(1000), "x": torch.randn(1000, 2)}
        >>> axes = plot_draws(draws, weights=draws["scale"])
        >>> [ax.get_xlabel() for ax in axes[-1]]
        ['scale', 'x[0]', 'x[1]']
    """
    columns = dict(_numbers(draws, list(draws) if sites is None else list(sites)))
    count = len(columns)
    if not 1 <= count <= MOST:
        raise ValueError(
            f"Expected sites of 1 to {MOST} numbers, but got {count}: name some by sites"
        )
    if len(sizes := {len(column) for column in columns.values()}) > 1 or 0 in sizes:
        raise ValueError(f"Expected as many draws of each site, but got {sorted(sizes)}")
    points = numpy.stack(list(columns.values()), -1)  # (S, d)
    if not numpy.isfinite(points).all():
        raise ValueError("Expected draws to be finite, but got NaN or infinity")
    points = resampled(points, weights)
    size = (2.6 * count, 2.4 * count)
    _, axes = plt.subplots(count, count, figsize=size, layout="constrained", squeeze=False)
    ends = [_ends(column) for column in points.T]
    some = points[:: -(-len(points) // SCATTERED)]
    for row, column in product(range(count), repeat=2):
        ax = axes[row, column]
        if column > row:
            ax.remove()
            axes[row, column] = None
            continue
        if column == row:
            bins = min(80, 8 + int(len(points) ** 0.5))
            ax.hist(points[:, row], bins, range=ends[row], density=True, color="C0")
            ax.set_yticks([])
        else:
            ax.plot(some[:, column], some[:, row], ls="", marker="o", ms=2, mew=0, alpha=0.5)
            ax.set_ylim(ends[row])
        ax.set_xlim(ends[column])
        ax.set(xlabel=list(columns)[column], ylabel=list(columns)[row] if column < row else "")
        ax.label_outer()
    return axes


def _numbers(draws: Mapping[str, ArrayLike], sites: list[str]) -> Iterator[tuple[str, Array]]:
    """Each number of the sites by its name, ``(S,)``."""
    for name in sites:
        if name not in draws:
            raise ValueError(f"Expected sites among {', '.join(draws)}, but got {name!r}")
        values = as_array(draws[name])
        if not values.ndim:
            raise ValueError(f"Expected draws of {name!r} of shape (S, ...), but got a number")
        for index in numpy.ndindex(values.shape[1:]):
            place = f"[{','.join(map(str, index))}]" if index else ""
            yield name + place, values[(slice(None), *index)]


def _ends(column: Array) -> tuple[float, float]:
    low, high = numpy.quantile(column, [0.005, 0.995])
    margin = 0.05 * (high - low) or 0.5  # draws may be all the same
    return low - margin, high + margin
