"""Deep latent Gaussian mixtures: latents that are mixtures with weights broken from a stick."""

from experiments.dlgmm.experiment import DLGMM

__all__ = ["DLGMM"]
