"""Normal components as the tensors that the mixtures of Normals are made of."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributions import (
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
)

from pyro_mixtures.distributions.mixture_of_diag_normals import MixtureOfDiagNormals
from pyro_mixtures.distributions.mixture_of_normals import MixtureOfNormals
from pyro_mixtures.distributions.normal_mixture import NormalMixture
from pyro_mixtures.families import exactly

NUMBERS = exactly(Normal)
VECTORS = exactly(MultivariateNormal, LowRankMultivariateNormal)


def normal_mixture(components: Any, logits: Tensor, **options) -> NormalMixture | None:
    """A mixture of Normal components ``(*B, K)`` in flat coordinates, or None of others."""
    if type(components) in VECTORS:
        return MixtureOfNormals(components.loc, components.scale_tril, logits, **options)
    first = len(components.batch_shape)
    while isinstance(components, Independent):
        components = components.base_dist
    if type(components) not in NUMBERS:
        return None
    locs, scales = (x.unsqueeze(-1).flatten(first) for x in (components.loc, components.scale))
    return MixtureOfDiagNormals(locs, scales, logits, **options)
