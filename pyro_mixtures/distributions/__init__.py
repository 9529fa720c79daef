"""Mixture distributions whose samples carry unbiased, low-variance gradients."""

from pyro_mixtures.distributions.mixture import Mixture
from pyro_mixtures.distributions.mixture_of_diag_normals import MixtureOfDiagNormals

__all__ = ["Mixture", "MixtureOfDiagNormals"]
