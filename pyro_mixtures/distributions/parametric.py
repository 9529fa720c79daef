"""Distributions over vectors whose parameters are tensors: shapes and ``expand``."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from pyro.distributions import TorchDistribution
from torch import Size
from torch.distributions import constraints

from pyro_mixtures.numerics.validation import broadcast_shapes, check_shapes
from pyro_mixtures.samples.shapes import Expandable

ParametricT = TypeVar("ParametricT", bound="ParametricDistribution")


class ParametricDistribution(Expandable):
    """A distribution over vectors with tensors for parameters that broadcast against each other.

    A class tells the shape of each parameter behind the batch, in letters, of which D is the size
    of the event, and which of them may be given as None: those are left out.
    """

    support = constraints.real_vector
    optional_parameters: ClassVar[tuple[str, ...]] = ()

    def __init__(self, given: Mapping[str, Any], *, validate_args: bool | None = None) -> None:
        parameters = {
            name: value
            for name, value in given.items()
            if value is not None or name not in self.optional_parameters
        }
        if len(parameters) < len(given):
            constraint = self.arg_constraints
            self.__dict__["arg_constraints"] = {name: constraint[name] for name in parameters}
        shapes = self._parameter_shapes()
        batch_shape, sizes = check_shapes(parameters, shapes)
        dtype = functools.reduce(torch.promote_types, (v.dtype for v in parameters.values()))
        for name, value in parameters.items():
            shape = batch_shape + tuple(sizes[letter] for letter in shapes[name])
            value = value if value.dtype == dtype else value.to(dtype)
            setattr(self, name, value if value.shape == shape else value.expand(shape))
        if batch_shape.numel() == 0:
            validate_args = False  # torch's constraints fail for empty tensors
        self._set_shapes(batch_shape, torch.Size([sizes["D"]]), validate_args)

    def _set_shapes(self, batch_shape: Size, event_shape: Size, validate_args: bool | None):
        # not super(), which may be a distribution of torch with arguments of its own
        TorchDistribution.__init__(self, batch_shape, event_shape, validate_args=validate_args)

    @classmethod
    def _parameter_shapes(cls) -> dict[str, str]:
        raise NotImplementedError

    @classmethod
    def infer_shapes(cls, **arg_shapes: Sequence[int]) -> tuple[torch.Size, torch.Size]:
        letters = cls._parameter_shapes()
        batch_shape, sizes = torch.Size(), dict[str, int]()
        for name, shape in arg_shapes.items():
            first = len(shape) - len(letters[name])
            sizes.update(zip(letters[name], shape[first:], strict=True))
            batch_shape = broadcast_shapes(batch_shape, torch.Size(shape[:first]))
        return batch_shape, torch.Size([sizes["D"]])

    def expand(
        self: ParametricT, batch_shape: Sequence[int], _instance: Any = None
    ) -> ParametricT:
        batch_shape = torch.Size(batch_shape)
        new = self._get_checked_instance(type(self), _instance)
        for name, letters in self._parameter_shapes().items():
            value = getattr(self, name)
            if value is not None:
                event_shape = value.shape[value.dim() - len(letters) :]
                setattr(new, name, value.expand(batch_shape + event_shape))
        new.__dict__["arg_constraints"] = self.arg_constraints
        self._shape_as_expanded(new, batch_shape)
        return new
