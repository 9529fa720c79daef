"""Reparameterizable mixture distributions for Pyro and PyTorch."""

from importlib.metadata import version

from pyro_mixtures.distributions import (
    GaussianScaleMixture,
    Mixture,
    MixtureOfDiagNormals,
    MixtureOfDiagNormalsSharedCovariance,
    MixtureOfNormals,
    MixtureOfNormalsSharedCovariance,
    MixtureSameFamily,
)
from pyro_mixtures.families import register_velocity
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
    "Mixture",
    "MixtureOfDiagNormals",
    "MixtureOfDiagNormalsSharedCovariance",
    "MixtureOfNormals",
    "MixtureOfNormalsSharedCovariance",
    "MixtureSameFamily",
    "register_velocity",
]
