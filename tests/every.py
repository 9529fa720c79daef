"""Every distribution of all registries, for tests of what holds for any of them."""

from __future__ import annotations

from typing import Any

import pytest
from torch.distributions import AffineTransform, SigmoidTransform, TransformedDistribution

from pyro_mixtures.distributions import (
    GumbelSoftmaxMixtureOfDiagNormals,
    MixtureFlow,
    MixtureOfDiagNormals,
)
from pyro_mixtures.testing import DistributionCase
from tests.elliptical import LAWS as ELLIPTICAL
from tests.elliptical import sample_at
from tests.families.registry import COMPONENTS
from tests.registry import FAMILIES, Parameters, leaves, randn
from tests.relaxed import LAWS as RELAXED
from tests.sticks import FAMILIES as STICKS


def _normals(name: str, **options: Any) -> DistributionCase:
    family = FAMILIES[name]
    return DistributionCase(
        family.parameters,
        lambda parameters: family.build(parameters, **options),
        family.reference,
        beside=("control_var",),
    )


def _of_components(name: str) -> DistributionCase:
    family = COMPONENTS[name]
    return DistributionCase(
        lambda shape: family.parameters(shape, D=family.dimension),
        family.mixture,
        family.reference,
        of_tensors=False,
        moments=family.moments and name != "von_mises",  # whose mean is an angle
        fixed_support=name not in ("uniform", "pareto"),
        beside=("logits",) if name == "uniform" else (),  # all components are the same
    )


def _elliptical(name: str) -> DistributionCase:
    law = ELLIPTICAL[name]
    return DistributionCase(
        law.parameters,
        law.build,
        law.reference,
        at=sample_at,
        moments=not law.light_tails,
        beside=("control_var",),
    )


def _relaxed(name: str) -> DistributionCase:
    law = RELAXED[name]
    return DistributionCase(
        law.parameters,
        law.build,
        at=None,
        unbiased=not law.snaps,
    )


def _sticks(name: str) -> DistributionCase:
    family = STICKS[name]
    return DistributionCase(
        family.parameters,
        family.build,
        family.reference,
        at=None,
        of_tensors=name == "kumaraswamy",
    )


def _gumbel_softmax(parameters: Parameters) -> GumbelSoftmaxMixtureOfDiagNormals:
    return GumbelSoftmaxMixtureOfDiagNormals(**parameters, temperature=0.5)


def _flow_parameters(batch_shape: tuple[int, ...]) -> Parameters:
    own = FAMILIES["diag_normals"].parameters(batch_shape)
    shape = (*batch_shape, 2)
    return leaves({**own, "shift": randn(*shape), "stretch": 0.5 + randn(*shape).abs()})


def _flow(parameters: Parameters, **options: Any) -> MixtureFlow:
    own = {name: parameters[name] for name in ("locs", "coord_scale", "component_logits")}
    return MixtureFlow(MixtureOfDiagNormals(**own, **options), _bent(parameters))


def _bent(parameters: Parameters) -> list[Any]:
    affine = AffineTransform(parameters["shift"], parameters["stretch"], event_dim=1)
    return [affine, SigmoidTransform()]


def _flow_reference(parameters: Parameters) -> TransformedDistribution:
    base = FAMILIES["diag_normals"].reference(parameters)
    return TransformedDistribution(base, _bent(parameters), validate_args=False)


KINDS = {
    "flow": DistributionCase(
        _flow_parameters, _flow, _flow_reference, at=None, of_tensors=False, moments=False
    ),
    "gumbel_softmax": DistributionCase(
        FAMILIES["diag_normals"].parameters,
        _gumbel_softmax,
        at=None,
        moments=False,
        unbiased=False,
    ),
    "clustered_diag_normals": _normals("diag_normals", weight_gradient="clustered"),
    **{name: _normals(name) for name in FAMILIES},
    **{name: _relaxed(name) for name in RELAXED},
    **{name: _elliptical(name) for name in ELLIPTICAL},
    **{f"sticks_{name}": _sticks(name) for name in STICKS},
    **{f"of_{name}": _of_components(name) for name in COMPONENTS},
}
"""As for users' own: ``pyro_mixtures.testing``."""

each_kind = pytest.mark.parametrize(
    "kind", [pytest.param(kind, id=name) for name, kind in KINDS.items()]
)
