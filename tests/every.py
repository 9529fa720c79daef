"""Every distribution of all registries, for tests of what holds for any of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from pyro.distributions import TorchDistribution

from pyro_mixtures.distributions import GumbelSoftmaxMixtureOfDiagNormals, MixtureOfDiagNormals
from tests.elliptical import LAWS as ELLIPTICAL
from tests.families.registry import COMPONENTS
from tests.registry import FAMILIES, Parameters
from tests.relaxed import LAWS as RELAXED


@dataclass(frozen=True)
class Kind:
    """A distribution and random parameters for it.

    Args:
        parameters: of a batch shape.
        build: the distribution of parameters.
        of_tensors: whether these are its arguments.
    """

    parameters: Callable[[tuple[int, ...]], Parameters]
    build: Callable[[Parameters], TorchDistribution]
    of_tensors: bool = True


def _of_components(name: str) -> Kind:
    family = COMPONENTS[name]
    return Kind(lambda shape: family.parameters(shape, D=family.dimension), family.mixture, False)


def _gumbel_softmax(parameters: Parameters) -> GumbelSoftmaxMixtureOfDiagNormals:
    return GumbelSoftmaxMixtureOfDiagNormals(**parameters, temperature=0.5)


def _clustered(parameters: Parameters) -> MixtureOfDiagNormals:
    return MixtureOfDiagNormals(**parameters, weight_gradient="clustered")


_NORMALS = FAMILIES["diag_normals"].parameters
KINDS = {
    "clustered_diag_normals": Kind(_NORMALS, _clustered),
    "gumbel_softmax": Kind(_NORMALS, _gumbel_softmax),
    **{
        name: Kind(entry.parameters, entry.build)
        for registry in (FAMILIES, RELAXED, ELLIPTICAL)
        for name, entry in registry.items()
    },
    **{f"of_{name}": _of_components(name) for name in COMPONENTS},
}

each_kind = pytest.mark.parametrize(
    "kind", [pytest.param(kind, id=name) for name, kind in KINDS.items()]
)
