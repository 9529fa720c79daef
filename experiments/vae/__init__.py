"""Variational autoencoders of MNIST: posteriors that are mixtures, priors and bounds."""

from experiments.vae.experiment import VAE

__all__ = ["VAE"]
