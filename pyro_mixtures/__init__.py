"""Reparameterizable mixture distributions for Pyro and PyTorch."""

from importlib.metadata import version

from pyro_mixtures.distributions import MixtureOfDiagNormals
from pyro_mixtures.infer import AutoDiagonalNormalMixture, BaselinedTrace_ELBO

__version__ = version("pyro-mixtures")
__all__ = ["AutoDiagonalNormalMixture", "BaselinedTrace_ELBO", "MixtureOfDiagNormals"]
