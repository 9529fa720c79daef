"""Variance of the Cholesky factor's gradient by adaptive velocity fields (Fig. 1a)."""

from experiments.gradient_variance_avf.experiment import GradientVarianceAVF

__all__ = ["GradientVarianceAVF"]
