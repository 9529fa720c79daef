"""Variance of the weights' gradient of mixtures by many estimators (Fig. 1b and 1c)."""

from experiments.gradient_variance_mixture.experiment import GradientVarianceMixture

__all__ = ["GradientVarianceMixture"]
