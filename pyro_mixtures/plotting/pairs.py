"""A grid of panels: all pairs of a mixture's coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import matplotlib.pyplot as plt
import numpy
from numpy.typing import ArrayLike

from pyro_mixtures.distributions.mixture_distribution import MixtureDistribution
from pyro_mixtures.plotting.arrays import Array
from pyro_mixtures.plotting.marginal import Marginal
from pyro_mixtures.plotting.panel import draw_panel, limits

Place = tuple[int, ...]
"""The coordinates of a panel: one on the diagonal, the column's and the row's below it."""


def plot_pairs(
    mixture: MixtureDistribution,
    dims: Sequence[int],
    *,
    reference: ArrayLike | None = None,
    reference_weights: ArrayLike | None = None,
    names: Sequence[str] | None = None,
) -> Any:
    """All pairs of some coordinates in a new figure, with the single ones on the diagonal.

    Args:
        mixture: of Normals, as for :func:`plot_mixture`.
        dims: two coordinates or more.
        reference: as for :func:`plot_mixture`.
        reference_weights: of its draws, as for :func:`plot_mixture`.
        names: of all coordinates of the mixture, for the axes.

    Returns:
        The axes of d coordinates, a numpy array ``(d, d)``, with None above the diagonal.

    Raises:
        ValueError: as :func:`plot_mixture`, and for fewer than two coordinates.
        NotImplementedError: for components that are not Normal.

    Example:
        >>> import torch
        >>> from pyro_mixtures import MixtureOfDiagNormals
        >>> q = MixtureOfDiagNormals(torch.randn(3, 20), torch.ones(3, 20), torch.zeros(3))
        >>> axes = plot_pairs(q, (0, 1, 5))
        >>> axes[2, 1].get_xlabel(), axes[2, 1].get_ylabel()
        ('coordinate 1', '')
    """
    dims = list(dims)
    if len(dims) < 2:
        raise ValueError(f"Expected dims to name at least two coordinates, but got {dims}")
    places = [*((index,) for index in range(len(dims))), *combinations(range(len(dims)), 2)]
    panels = {
        place: Marginal(mixture, [dims[index] for index in place], names) for place in places
    }
    points = {
        place: None if reference is None else marginal.column(reference, reference_weights)
        for place, marginal in panels.items()
    }
    ends = _common_limits(panels, points)
    size = (2.6 * len(dims), 2.4 * len(dims))
    figure, axes = plt.subplots(len(dims), len(dims), figsize=size, layout="constrained")
    for place, marginal in panels.items():
        column, row = place[0], place[-1]
        draw_panel(axes[row, column], marginal, points[place], ends[list(place)])
        axes[row, column].label_outer()
        if column < row:
            axes[column, row].remove()
            axes[column, row] = None
    figure.legend(*axes[1, 0].get_legend_handles_labels(), loc="upper right")
    return axes


def _common_limits(panels: dict[Place, Marginal], points: dict[Place, Array | None]) -> Array:
    """Ends of each coordinate's axes in all panels, ``(d, 2)``."""
    found: dict[int, list[Array]] = {}
    for place, marginal in panels.items():
        for index, ends in zip(place, limits(marginal, points[place]), strict=True):
            found.setdefault(index, []).append(ends)
    return numpy.array([[numpy.min(ends), numpy.max(ends)] for ends in found.values()])
