"""Gradients through discrete variables: bias and variance, and autoencoders with codes."""

from experiments.discrete_codes.experiment import DiscreteCodes

__all__ = ["DiscreteCodes"]
