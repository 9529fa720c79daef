"""Mixture distributions whose samples carry unbiased, low-variance gradients."""

from pyro_mixtures.distributions.avf import (
    AVFElliptical,
    AVFMultivariateNormal,
    AVFMultivariateStudentT,
)
from pyro_mixtures.distributions.avf_mixture_of_diag_normals import AVFMixtureOfDiagNormals
from pyro_mixtures.distributions.gaussian_scale_mixture import GaussianScaleMixture
from pyro_mixtures.distributions.gumbel_softmax_mixture import GumbelSoftmaxMixtureOfDiagNormals
from pyro_mixtures.distributions.kumaraswamy_stick_breaking import KumaraswamyStickBreaking
from pyro_mixtures.distributions.mixture import Mixture
from pyro_mixtures.distributions.mixture_distribution import MixtureDistribution
from pyro_mixtures.distributions.mixture_flow import MixtureFlow
from pyro_mixtures.distributions.mixture_of_diag_normals import MixtureOfDiagNormals
from pyro_mixtures.distributions.mixture_of_normals import MixtureOfNormals
from pyro_mixtures.distributions.mixture_same_family import MixtureSameFamily
from pyro_mixtures.distributions.omt_multivariate_normal import OMTMultivariateNormal
from pyro_mixtures.distributions.parametric_mixture import ParametricMixture
from pyro_mixtures.distributions.relaxed_bernoulli import (
    RelaxedBernoulli,
    RelaxedBernoulliStraightThrough,
)
from pyro_mixtures.distributions.relaxed_categorical import (
    ExpRelaxedCategorical,
    RelaxedCategorical,
    RelaxedCategoricalStraightThrough,
)
from pyro_mixtures.distributions.shared_covariance import (
    MixtureOfDiagNormalsSharedCovariance,
    MixtureOfNormalsSharedCovariance,
)
from pyro_mixtures.distributions.stick_breaking import StickBreaking
from pyro_mixtures.distributions.transformed_distribution import TransformedDistribution
from pyro_mixtures.numerics.score_use import UnusedScoreWarning

__all__ = [
    "AVFElliptical",
    "AVFMixtureOfDiagNormals",
    "AVFMultivariateNormal",
    "AVFMultivariateStudentT",
    "ExpRelaxedCategorical",
    "GaussianScaleMixture",
    "GumbelSoftmaxMixtureOfDiagNormals",
    "KumaraswamyStickBreaking",
    "Mixture",
    "MixtureDistribution",
    "MixtureFlow",
    "MixtureOfDiagNormals",
    "MixtureOfDiagNormalsSharedCovariance",
    "MixtureOfNormals",
    "MixtureOfNormalsSharedCovariance",
    "MixtureSameFamily",
    "OMTMultivariateNormal",
    "ParametricMixture",
    "RelaxedBernoulli",
    "RelaxedBernoulliStraightThrough",
    "RelaxedCategorical",
    "RelaxedCategoricalStraightThrough",
    "StickBreaking",
    "TransformedDistribution",
    "UnusedScoreWarning",
]
