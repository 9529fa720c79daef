"""What to look at when a fit is noisy."""

from pyro_mixtures.diagnostics.distribution_gradients import gradient_variance
from pyro_mixtures.diagnostics.elbo_gradients import elbo_gradient_variance
from pyro_mixtures.diagnostics.moments import GradientVariance

__all__ = ["GradientVariance", "elbo_gradient_variance", "gradient_variance"]
