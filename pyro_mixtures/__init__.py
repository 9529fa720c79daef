"""Reparameterizable mixture distributions for Pyro and PyTorch.

``import pyro_mixtures as pm`` has the distributions, guides and objectives: ``pm.X`` for each X
that ``pm.distributions`` and ``pm.infer`` list. The rest stands one level below:
``pm.estimators``, ``pm.diagnostics``, ``pm.nn``, ``pm.plotting`` (which imports matplotlib when
it is first used).
"""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from pyro_mixtures import (
    components,
    diagnostics,
    distributions,
    estimators,
    families,
    infer,
    nn,
    normals,
    testing,
)
from pyro_mixtures.distributions import *
from pyro_mixtures.families import register_velocity
from pyro_mixtures.infer import *
from pyro_mixtures.normals import kl_bounds

if TYPE_CHECKING:
    from pyro_mixtures import plotting

__version__ = version("pyro-mixtures")
__all__ = [
    "components",
    "diagnostics",
    "distributions",
    "estimators",
    "families",
    "infer",
    "kl_bounds",
    "nn",
    "normals",
    "plotting",
    "register_velocity",
    "testing",
]
__all__ += distributions.__all__
__all__ += infer.__all__


def __getattr__(name: str) -> Any:
    if name == "plotting":
        return importlib.import_module("pyro_mixtures.plotting")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
