"""Modules that go with discrete latent variables."""

from pyro_mixtures.nn.vector_quantize import Quantized, VectorQuantize

__all__ = ["Quantized", "VectorQuantize"]
