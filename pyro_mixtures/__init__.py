"""Reparameterizable mixture distributions for Pyro and PyTorch."""

from importlib.metadata import version

from pyro_mixtures.distributions import (
    GaussianScaleMixture,
    MixtureOfDiagNormals,
    MixtureOfDiagNormalsSharedCovariance,
    MixtureOfNormals,
    MixtureOfNormalsSharedCovariance,
)
from pyro_mixtures.infer import (
    AutoDiagonalNormalMixture,
    AutoMultivariateNormalMixture,
    BaselinedTrace_ELBO,
)

__version__ = version("pyro-mixtures")
__all__ = [
    "AutoDiagonalNormalMixture",
    "AutoMultivariateNormalMixture",
    "BaselinedTrace_ELBO",
    "GaussianScaleMixture",
    "MixtureOfDiagNormals",
    "MixtureOfDiagNormalsSharedCovariance",
    "MixtureOfNormals",
    "MixtureOfNormalsSharedCovariance",
]
