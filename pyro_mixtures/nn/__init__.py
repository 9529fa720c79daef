"""Modules: networks from contexts to mixtures, priors, and codebooks."""

from pyro_mixtures.nn.conditional_mixture import ConditionalMixture
from pyro_mixtures.nn.conditional_mixture_flow import ConditionalMixtureFlow
from pyro_mixtures.nn.conditional_mixture_same_family import ConditionalMixtureSameFamily
from pyro_mixtures.nn.priors.hierarchical_prior import Hierarchical, HierarchicalPrior
from pyro_mixtures.nn.priors.mixture_prior import MixturePrior
from pyro_mixtures.nn.priors.prior_kl import prior_kl
from pyro_mixtures.nn.priors.vamp_prior import VampPrior
from pyro_mixtures.nn.vector_quantize import Quantized, VectorQuantize

__all__ = [
    "ConditionalMixture",
    "ConditionalMixtureFlow",
    "ConditionalMixtureSameFamily",
    "Hierarchical",
    "HierarchicalPrior",
    "MixturePrior",
    "Quantized",
    "VampPrior",
    "VectorQuantize",
    "prior_kl",
]
