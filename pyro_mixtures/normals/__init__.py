"""What Normals and their mixtures have beyond other components: bounds and EM."""

from pyro_mixtures.normals.bounds import mixture_entropy_bounds, mixture_kl_bounds
from pyro_mixtures.normals.divergence import kl_bounds

__all__ = ["kl_bounds", "mixture_entropy_bounds", "mixture_kl_bounds"]
