"""One panel: a mixture in one or two coordinates."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from pyro_mixtures.distributions.mixture_distribution import MixtureDistribution
from pyro_mixtures.plotting.marginal import Marginal
from pyro_mixtures.plotting.panel import draw_panel, limits


def plot_mixture(
    mixture: MixtureDistribution,
    dims: int | Sequence[int] | None = None,
    *,
    reference: ArrayLike | None = None,
    reference_weights: ArrayLike | None = None,
    names: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A mixture's marginal in one or two coordinates, with its components.

    In two dimensions: contours that hold 50 %, 80 % and 95 % of the mixture, and of each component
    the one that holds 50 % of it, the stronger the more it weighs; in one: the density, and those
    of the components times their weights. The axes show what holds 95 % of the mixture, the
    middle of each component that weighs 1 % or more, and 98 % of the reference. Levels and limits
    come from samples; the random numbers of the caller stay as they are.

    Args:
        mixture: any of this package, without batch. Mixtures of Normals are drawn in any of their
            coordinates; of others all coordinates, one or two, have to be drawn.
        dims: one or two coordinates; by default the first two, or the only one. Negative ones
            count from the last.
        reference: a sample ``(N, D)``, or ``(N,)`` for numbers, to draw in grey behind.
        reference_weights: importance weights of the sample ``(N,)``, of any sum, as the
            exponentials of :attr:`PSIS.log_weights <pyro_mixtures.diagnostics.PSIS>`: it is
            resampled by them.
        names: of all coordinates of the mixture, for the axes.
        ax: where to draw; by default the current axes.

    Returns:
        The axes.

    Raises:
        ValueError: for a mixture with a batch or of matrices, more than two coordinates, one that
            there is not or named twice, a reference of another shape or with NaN or infinity,
            weights that are no weights of it, or another number of names.
        NotImplementedError: for a marginal of components that are not Normal.

    Example:
        >>> import torch
        >>> from pyro_mixtures import MixtureOfDiagNormals
        >>> q = MixtureOfDiagNormals(torch.randn(3, 20), torch.ones(3, 20), torch.zeros(3))
        >>> _, ax = plt.subplots()
        >>> ax = plot_mixture(q, dims=(0, 5), reference=q.sample((1000,)), ax=ax)
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('coordinate 0', 'coordinate 5')
    """
    marginal = Marginal(mixture, dims, names)
    points = None if reference is None else marginal.column(reference, reference_weights)
    ax = plt.gca() if ax is None else ax
    draw_panel(ax, marginal, points, limits(marginal, points))
    ax.legend(fontsize="small")
    return ax
