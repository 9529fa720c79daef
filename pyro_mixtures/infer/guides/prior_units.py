"""Parameters of a guide in units of the prior's standard deviations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import torch
from pyro.distributions import constraints
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import AffineTransform, biject_to, transform_to

from pyro_mixtures.infer.guides.checked_guide import CheckedGuide

DRAWS = 100
"""Of the prior, from which its standard deviations are had."""


class InUnits(constraints.Constraint):
    """Real numbers whose unconstrained values, which an optimizer moves, are in given units.

    Args:
        unit: of each coordinate, ``(D,)``.
    """

    def __init__(self, unit: Tensor) -> None:
        self.unit = unit

    def check(self, value: Tensor) -> Tensor:
        return value == value  # not NaN


@transform_to.register(InUnits)
@biject_to.register(InUnits)
def _(constraint: InUnits) -> AffineTransform:
    return AffineTransform(torch.zeros_like(constraint.unit), constraint.unit)


def spread(draws: Tensor) -> Tensor:
    """Half the width of the middle 68 %, ``(N, D) -> (D,)``; 1 where that is no positive number.

    It is the standard deviation of a Normal, and small enough for heavy tails.
    """
    low, high = draws.quantile(draws.new_tensor([0.16, 0.84]), 0)
    half = (high - low) / 2
    return torch.where(half.isfinite() & (half > 0), half, 1.0)


def in_units(
    values: Mapping[str, Tensor | PyroParam], unit: Tensor
) -> dict[str, Tensor | PyroParam]:
    """First values of parameters, with ``locs`` and ``coord_scale`` in units.

    Scales are multiplied by the unit, and steps are of their logarithms.
    """
    found = dict(values)
    locs, scale = found.get("locs"), found.get("coord_scale")
    if isinstance(locs, Tensor):
        found["locs"] = PyroParam(locs, InUnits(unit))
    if isinstance(scale, PyroParam):
        value: Any = scale.init_value
        found["coord_scale"] = PyroParam(value * unit, constraints.positive, scale.event_dim)
    return found


class InPriorUnits(CheckedGuide):
    """A guide with parameters in units of the prior, which go where they go.

    Attributes:
        prior_units: of the unconstrained coordinates, ``(D,)``, or None; a part of the state.
    """

    prior_units: Tensor | None

    def _take_units(self) -> None:
        """Those of the parameters in Pyro's store, where a fit goes on."""
        if self.prior_units is None:
            return
        known = pyro.get_param_store().get_state()["constraints"]
        for name in ("locs", "coord_scale"):
            stored = known.get(self._pyro_get_fullname(name))
            own = self._pyro_params.get(name, (stored, 0))[0]
            if stored is not None and type(stored) is not type(own):
                raise ValueError(
                    f"Expected {name!r} in Pyro's store to be of a guide with init='prior', but"
                    f" got {stored}: call pyro.clear_param_store() before a new fit"
                )
            if isinstance(stored, InUnits):
                self.prior_units.copy_(stored.unit)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        unit: Any = self.prior_units
        for constraint, _ in self._pyro_params.values():
            if isinstance(constraint, InUnits):  # which are the buffer's, wherever that is now
                constraint.unit = unit
        return self
