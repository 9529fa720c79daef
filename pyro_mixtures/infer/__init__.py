"""Guides and objectives for Pyro's stochastic variational inference."""

from pyro_mixtures.infer.auto_avf import (
    AutoAVFMultivariateNormal,
    AutoAVFMultivariateStudentT,
    avf_optim_args,
)
from pyro_mixtures.infer.auto_diagonal_normal_mixture import AutoDiagonalNormalMixture
from pyro_mixtures.infer.auto_mixture import AutoMixture
from pyro_mixtures.infer.auto_multivariate_normal_mixture import AutoMultivariateNormalMixture
from pyro_mixtures.infer.auto_omt_multivariate_normal import AutoOMTMultivariateNormal
from pyro_mixtures.infer.baselined_trace_elbo import BaselinedTrace_ELBO

__all__ = [
    "AutoAVFMultivariateNormal",
    "AutoAVFMultivariateStudentT",
    "AutoDiagonalNormalMixture",
    "AutoMixture",
    "AutoMultivariateNormalMixture",
    "AutoOMTMultivariateNormal",
    "BaselinedTrace_ELBO",
    "avf_optim_args",
]
