"""Copies of a mixture that estimate the weights' gradient in another way."""

from __future__ import annotations

from typing import TypeVar

from pyro_mixtures.distributions.mixture_distribution import MixtureDistribution
from pyro_mixtures.estimators.estimated_mixture import check_mixture

MixtureT = TypeVar("MixtureT", bound=MixtureDistribution)


def with_weight_gradient(mixture: MixtureT, weight_gradient: str) -> MixtureT:
    """:meth:`MixtureDistribution.with_weight_gradient` of what is checked to be a mixture."""
    check_mixture(mixture)
    return mixture.with_weight_gradient(weight_gradient)
