"""Modules: networks from contexts to mixtures, and codebooks."""

from pyro_mixtures.nn.conditional_mixture import ConditionalMixture
from pyro_mixtures.nn.conditional_mixture_same_family import ConditionalMixtureSameFamily
from pyro_mixtures.nn.vector_quantize import Quantized, VectorQuantize

__all__ = [
    "ConditionalMixture",
    "ConditionalMixtureSameFamily",
    "Quantized",
    "VectorQuantize",
]
