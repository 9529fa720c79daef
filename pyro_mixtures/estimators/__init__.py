"""Estimators of the gradient of a mixture's expectation, behind one interface."""

from pyro_mixtures.estimators.blended import blended
from pyro_mixtures.estimators.clustered import clustered
from pyro_mixtures.estimators.estimated_mixture import EstimatedMixture
from pyro_mixtures.estimators.expectation import ESTIMATORS, expectation
from pyro_mixtures.estimators.graves import graves
from pyro_mixtures.estimators.gumbel_hard import gumbel_hard
from pyro_mixtures.estimators.gumbel_soft import gumbel_soft
from pyro_mixtures.estimators.hybrid import hybrid
from pyro_mixtures.estimators.implicit import implicit
from pyro_mixtures.estimators.marginalized import marginalized
from pyro_mixtures.estimators.pathwise import pathwise
from pyro_mixtures.estimators.score import score
from pyro_mixtures.estimators.stratified import stratified

__all__ = [
    "ESTIMATORS",
    "EstimatedMixture",
    "blended",
    "clustered",
    "expectation",
    "graves",
    "gumbel_hard",
    "gumbel_soft",
    "hybrid",
    "implicit",
    "marginalized",
    "pathwise",
    "score",
    "stratified",
]
