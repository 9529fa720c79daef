"""Values and samples as arrays ``(*B, S, D)``: S samples of each of the mixtures B."""

from __future__ import annotations

from typing import Any, TypeVar

from pyro.distributions import TorchDistribution
from torch import Size, Tensor

from pyro_mixtures.numerics.validation import broadcast_shapes

ExpandableT = TypeVar("ExpandableT", bound="Expandable")


class Expandable(TorchDistribution):
    """A distribution that remembers what ``expand`` made it of."""

    @property
    def core(self: ExpandableT) -> ExpandableT:
        """This distribution before ``expand`` added dimensions on the left.

        Those (a plate of particles, say) hold samples of one distribution, not many distributions.
        """
        return self.__dict__.get("_unexpanded", self)

    @core.setter
    def core(self: ExpandableT, distribution: ExpandableT) -> None:
        self._unexpanded = distribution

    def _shape_as_expanded(self, new: Any, batch_shape: Size) -> None:
        """Give one that is to be this distribution, expanded, its shapes; nothing is checked."""
        core = self.core
        if batch_shape[len(batch_shape) - len(core.batch_shape) :] == core.batch_shape:
            new.core = core
        if "has_rsample" in self.__dict__:
            new.has_rsample = self.has_rsample
        # not its own constructor, which has arguments of its own
        TorchDistribution.__init__(new, batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args

    def _validated(self, value: Tensor) -> Tensor:
        # torch's constraints fail for empty tensors
        if self._validate_args and value.numel() and self.batch_shape.numel():
            self._validate_sample(value)
        return value


def folded(distribution: ExpandableT, value: Tensor) -> tuple[ExpandableT, Tensor, Size]:
    """The distribution for a value, the value as ``(*B, S, D)`` of it, and its own batch."""
    core, rank = distribution.core, len(distribution.event_shape)
    shape = broadcast_shapes(value.shape[: value.dim() - rank], distribution.batch_shape)
    batch = shape[len(shape) - len(core.batch_shape) :]
    if batch != core.batch_shape:
        core = core.expand(batch)
    if value.dim() - rank < len(shape) or value.shape[: len(shape)] != shape:
        value = value.expand(shape + distribution.event_shape)
    count = shape[: len(shape) - len(batch)].numel()
    size = distribution.event_shape.numel()
    if not batch or count == 1:
        return core, value.reshape(*batch, count, size), shape
    return core, value.reshape(count, *batch, size).movedim(0, -2), shape


def samples_first(x: Tensor) -> Tensor:
    """``(*B, S, M) -> (S, *B, M)``."""
    return x if x.dim() == 2 else x.movedim(-2, 0)


def unfolded(x: Tensor, shape: Size) -> Tensor:
    """Numbers ``(*B, S, M)`` of samples, as they stand in an array of that shape with S first."""
    return (x if x.shape[-2] == 1 else samples_first(x)).reshape(shape)
