"""Rules for the families that a mixture may have for components.

Importing the package registers those for the distributions of torch and Pyro.
"""

import pyro.distributions
import torch
from torch.distributions import Distribution

from pyro_mixtures.families import (  # noqa: F401
    composite,
    half_line,
    interval,
    location_scale,
    multivariate,
)
from pyro_mixtures.families.registry import (
    Affine,
    Tails,
    register_coordinates,
    register_factors,
    register_tails,
    register_velocity,
)
from pyro_mixtures.velocity.telescoping import Factors

_NAMES = (
    "Beta Cauchy Chi2 Exponential Gamma Gumbel HalfCauchy HalfNormal InverseGamma Kumaraswamy "
    "Laplace Logistic LogNormal Normal Pareto StudentT Uniform VonMises Weibull"
)
UNIVARIATE = tuple(
    getattr(torch.distributions, name, None) or getattr(pyro.distributions, name)
    for name in _NAMES.split()
)
"""Families of numbers that have rules."""


def exactly(*families: type[Distribution]) -> frozenset[type[Distribution]]:
    """These classes in torch's and in Pyro's form; one derived from them may mean another one."""
    modules = torch.distributions, pyro.distributions
    names = [(module, family) for module in modules for family in families]
    return frozenset(getattr(module, family.__name__, family) for module, family in names)


__all__ = [
    "UNIVARIATE",
    "Affine",
    "Factors",
    "Tails",
    "exactly",
    "register_coordinates",
    "register_factors",
    "register_tails",
    "register_velocity",
]
