"""Copies of a mixture that estimate the weights' gradient in another way."""

from __future__ import annotations

import copy
from typing import TypeVar

from pyro_mixtures.distributions.component_mixture import ComponentMixture
from pyro_mixtures.distributions.mixture_distribution import WEIGHT_GRADIENTS, MixtureDistribution
from pyro_mixtures.distributions.validation import check_choice
from pyro_mixtures.estimators.estimated_mixture import check_mixture

MixtureT = TypeVar("MixtureT", bound=MixtureDistribution)

STATE = ("has_rsample", "_labels", "_blending")
"""What a mixture was told, or found or learned while it was used."""


def with_weight_gradient(mixture: MixtureT, weight_gradient: str) -> MixtureT:
    """The mixture with another ``weight_gradient``: its parameters, transport and batch shape.

    Args:
        mixture: of any class, before ``to_event`` and ``mask``; it stays as it is.
        weight_gradient: ``"clustered"``, ``"pathwise"`` or ``"hybrid"``.

    Returns:
        A mixture of the same class that shares its parameters with the given one.

    Raises:
        ValueError: for what is no mixture of this package, or an unknown ``weight_gradient``.
        NotImplementedError: for components of ``MixtureSameFamily`` or ``Mixture`` that it does
            not serve.

    Example:
        >>> import torch
        >>> from pyro_mixtures.distributions import MixtureOfDiagNormals
        >>> q = MixtureOfDiagNormals(torch.zeros(2, 1), torch.ones(2, 1), torch.zeros(2))
        >>> with_weight_gradient(q, "pathwise").weight_gradient, q.weight_gradient
        ('pathwise', 'clustered')
    """
    check_mixture(mixture)
    check_choice("weight_gradient", weight_gradient, WEIGHT_GRADIENTS)
    new = copy.copy(mixture)  # without the last sample, see ParametricDistribution.__getstate__
    for name in STATE:
        new.__dict__.pop(name, None)
    new.weight_gradient = weight_gradient
    # what an expanded mixture came from, and what MixtureSameFamily of Normals works with
    for name, value in mixture.__dict__.items():
        if isinstance(value, MixtureDistribution):
            new.__dict__[name] = with_weight_gradient(value, weight_gradient)
    if isinstance(new, ComponentMixture) and new._validate_args:
        new._check()
    return new
