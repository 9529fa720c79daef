"""Guides and objectives for Pyro's stochastic variational inference."""

from pyro_mixtures.infer.auto_diagonal_normal_mixture import AutoDiagonalNormalMixture
from pyro_mixtures.infer.auto_mixture import AutoMixture
from pyro_mixtures.infer.auto_multivariate_normal_mixture import AutoMultivariateNormalMixture
from pyro_mixtures.infer.baselined_trace_elbo import BaselinedTrace_ELBO

__all__ = [
    "AutoDiagonalNormalMixture",
    "AutoMixture",
    "AutoMultivariateNormalMixture",
    "BaselinedTrace_ELBO",
]
