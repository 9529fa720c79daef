"""Gaussian process regression of the CO2 over Mauna Loa (sections 6.1.2 and E.2, Fig. 2)."""

from experiments.gaussian_process.experiment import GaussianProcess

__all__ = ["GaussianProcess"]
