"""From a model to its posterior: `fit`, or guides and objectives for Pyro's SVI."""

from pyro_mixtures.infer.annealing import Annealing, annealing_weight
from pyro_mixtures.infer.constrained import AugmentedLagrangian, train_constrained
from pyro_mixtures.infer.early_stopping import EarlyStopping
from pyro_mixtures.infer.free_bits import FreeBits
from pyro_mixtures.infer.guides.auto_avf import (
    AutoAVFMultivariateNormal,
    AutoAVFMultivariateStudentT,
    avf_optim_args,
)
from pyro_mixtures.infer.guides.auto_avf_diagonal_normal_mixture import (
    AutoAVFDiagonalNormalMixture,
)
from pyro_mixtures.infer.guides.auto_diagonal_normal_mixture import AutoDiagonalNormalMixture
from pyro_mixtures.infer.guides.auto_gaussian_scale_mixture import AutoGaussianScaleMixture
from pyro_mixtures.infer.guides.auto_mixture import AutoMixture
from pyro_mixtures.infer.guides.auto_mixture_flow import AutoMixtureFlow
from pyro_mixtures.infer.guides.auto_multivariate_normal_mixture import (
    AutoMultivariateNormalMixture,
)
from pyro_mixtures.infer.guides.auto_omt_multivariate_normal import AutoOMTMultivariateNormal
from pyro_mixtures.infer.guides.auto_shared_normal_mixture import (
    AutoSharedDiagonalNormalMixture,
    AutoSharedMultivariateNormalMixture,
)
from pyro_mixtures.infer.gumbel_softmax_reparam import GumbelSoftmaxReparam
from pyro_mixtures.infer.objectives.baselined_trace_elbo import BaselinedTrace_ELBO
from pyro_mixtures.infer.objectives.importance_weighted_elbo import ImportanceWeighted_ELBO
from pyro_mixtures.infer.objectives.marginalized_mixture_elbo import MarginalizedMixture_ELBO
from pyro_mixtures.infer.objectives.siwae_elbo import SIWAE_ELBO
from pyro_mixtures.infer.objectives.sticking_the_landing import detached
from pyro_mixtures.infer.search.fit import fit
from pyro_mixtures.infer.search.fit_result import FitResult
from pyro_mixtures.infer.search.mode_search import ModeSearch
from pyro_mixtures.infer.search.model_log_density import ModelLogDensity
from pyro_mixtures.infer.search.starting_mixture import starting_mixture

__all__ = [
    "Annealing",
    "AugmentedLagrangian",
    "AutoAVFDiagonalNormalMixture",
    "AutoAVFMultivariateNormal",
    "AutoAVFMultivariateStudentT",
    "AutoDiagonalNormalMixture",
    "AutoGaussianScaleMixture",
    "AutoMixture",
    "AutoMixtureFlow",
    "AutoMultivariateNormalMixture",
    "AutoOMTMultivariateNormal",
    "AutoSharedDiagonalNormalMixture",
    "AutoSharedMultivariateNormalMixture",
    "BaselinedTrace_ELBO",
    "EarlyStopping",
    "FitResult",
    "FreeBits",
    "GumbelSoftmaxReparam",
    "ImportanceWeighted_ELBO",
    "MarginalizedMixture_ELBO",
    "ModeSearch",
    "ModelLogDensity",
    "SIWAE_ELBO",
    "annealing_weight",
    "avf_optim_args",
    "detached",
    "fit",
    "starting_mixture",
    "train_constrained",
]
