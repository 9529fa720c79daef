"""Rules for univariate families."""

from __future__ import annotations

from pyro.distributions import Logistic
from torch import Tensor
from torch.distributions import (
    Cauchy,
    Gumbel,
    Laplace,
    Normal,
)

from pyro_mixtures.families.registry import register_velocity


@register_velocity(Normal)
@register_velocity(Laplace)
@register_velocity(Logistic)
@register_velocity(Gumbel)
@register_velocity(Cauchy)
def _(distribution, value):
    return distribution.loc + distribution.scale * _standardized(distribution, value.detach())


def _standardized(distribution, value: Tensor) -> Tensor:
    return (value - distribution.loc.detach()) / distribution.scale.detach()
