"""Reparameterizable mixture distributions for Pyro and PyTorch."""

from importlib.metadata import version

from pyro_mixtures.distributions import (
    AVFMultivariateNormal,
    AVFMultivariateStudentT,
    GaussianScaleMixture,
    Mixture,
    MixtureOfDiagNormals,
    MixtureOfDiagNormalsSharedCovariance,
    MixtureOfNormals,
    MixtureOfNormalsSharedCovariance,
    MixtureSameFamily,
    OMTMultivariateNormal,
)
from pyro_mixtures.families import register_velocity
from pyro_mixtures.infer import (
    AutoAVFMultivariateNormal,
    AutoAVFMultivariateStudentT,
    AutoDiagonalNormalMixture,
    AutoMultivariateNormalMixture,
    AutoOMTMultivariateNormal,
    BaselinedTrace_ELBO,
    avf_optim_args,
)

__version__ = version("pyro-mixtures")
__all__ = [
    "AVFMultivariateNormal",
    "AVFMultivariateStudentT",
    "AutoAVFMultivariateNormal",
    "AutoAVFMultivariateStudentT",
    "AutoDiagonalNormalMixture",
    "AutoMultivariateNormalMixture",
    "AutoOMTMultivariateNormal",
    "BaselinedTrace_ELBO",
    "GaussianScaleMixture",
    "Mixture",
    "MixtureOfDiagNormals",
    "MixtureOfDiagNormalsSharedCovariance",
    "MixtureOfNormals",
    "MixtureOfNormalsSharedCovariance",
    "MixtureSameFamily",
    "OMTMultivariateNormal",
    "avf_optim_args",
    "register_velocity",
]
