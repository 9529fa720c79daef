"""Lower halves of images given the upper ones, by latents with conditional priors."""

from experiments.conditional_prior.experiment import ConditionalPrior

__all__ = ["ConditionalPrior"]
