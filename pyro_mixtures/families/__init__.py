"""Rules for the families that a mixture may have for components.

Importing the package registers those for the distributions of torch and Pyro.
"""

from pyro.distributions import Logistic
from torch.distributions import (
    Beta,
    Cauchy,
    Chi2,
    Exponential,
    Gamma,
    Gumbel,
    HalfCauchy,
    HalfNormal,
    InverseGamma,
    Kumaraswamy,
    Laplace,
    LogNormal,
    Normal,
    Pareto,
    StudentT,
    Uniform,
    VonMises,
    Weibull,
)

from pyro_mixtures.families import (  # noqa: F401
    composite,
    half_line,
    interval,
    location_scale,
    multivariate,
)
from pyro_mixtures.families.registry import (
    Tails,
    register_coordinates,
    register_factors,
    register_tails,
    register_velocity,
)

UNIVARIATE = (
    Beta,
    Cauchy,
    Chi2,
    Exponential,
    Gamma,
    Gumbel,
    HalfCauchy,
    HalfNormal,
    InverseGamma,
    Kumaraswamy,
    Laplace,
    Logistic,
    LogNormal,
    Normal,
    Pareto,
    StudentT,
    Uniform,
    VonMises,
    Weibull,
)
"""Families of numbers that have rules."""

__all__ = [
    "UNIVARIATE",
    "Tails",
    "register_coordinates",
    "register_factors",
    "register_tails",
    "register_velocity",
]
