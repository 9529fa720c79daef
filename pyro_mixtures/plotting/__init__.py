"""Figures of mixtures, of training and of gradients, by matplotlib (the extra ``plot``)."""

try:
    import matplotlib as _  # noqa: F401
except ImportError as error:
    raise ImportError(
        "pyro_mixtures.plotting needs matplotlib: pip install 'pyro-mixtures[plot]'"
    ) from error

from pyro_mixtures.plotting.draws import plot_draws
from pyro_mixtures.plotting.elbo import plot_elbo
from pyro_mixtures.plotting.gradient_variance import plot_gradient_variance
from pyro_mixtures.plotting.mixture_plot import plot_mixture
from pyro_mixtures.plotting.pairs import plot_pairs

__all__ = ["plot_draws", "plot_elbo", "plot_gradient_variance", "plot_mixture", "plot_pairs"]
