"""What a distribution knows about a sample of its own, kept with the sample itself."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from typing import Any

import torch
from pyro.ops.provenance import ProvenanceTensor, detach_provenance
from torch import Tensor
from torch.distributions import Distribution

ATTRIBUTE = "_pyro_mixtures_record"


class Note:
    """Who drew a sample, and what is known of it; copies of the sample are values like any other.

    Args:
        owner: the distribution that drew it.
        version: how often the sample had been changed in place by then; None where torch does not
            count.
        trace: that ``torch.jit.trace`` was recording, or None.
        known: by the owner.
    """

    def __init__(self, owner: Any, version: int | None, trace: Any, known: Any) -> None:
        # not to hold a flow whose transforms hold their last sample; recorded graphs end at once
        self._owner = owner if torch.compiler.is_compiling() else weakref.ref(owner)
        self.version, self.trace, self.known = version, trace, known

    def is_of(self, owner: Distribution) -> bool:
        """Whether a distribution drew the sample."""
        return (self._owner if torch.compiler.is_compiling() else self._owner()) is owner

    def __reduce__(self):
        # a sample's graph can neither be copied nor pickled; this torch.load accepts
        return OrderedDict, ()


def remember(owner: Distribution, sample: Tensor, known: Any) -> None:
    """Keep with a sample what its distribution knows about it."""
    sample = _itself(sample)
    if not torch.compiler.is_compiling() and sample.is_inference():
        return  # changes in place would not be noticed
    setattr(sample, ATTRIBUTE, Note(owner, version(sample), current_trace(), known))


def recall(owner: Distribution, value: Tensor) -> Any | None:
    """What a distribution knows of a value: nothing unless it drew this very tensor.

    Nothing either if the tensor was changed in place since, or in a trace of other samples.
    """
    value = _itself(value)
    record = getattr(value, ATTRIBUTE, None)
    if not isinstance(record, Note) or not record.is_of(owner):
        return None
    unchanged = record.version == version(value) and record.trace is current_trace()
    return record.known if unchanged else None


def _itself(tensor: Tensor) -> Tensor:
    """The tensor in one that tells its origin, which is a wrapper of it."""
    return detach_provenance(tensor) if isinstance(tensor, ProvenanceTensor) else tensor


def current_trace() -> Any | None:
    """What ``torch.jit.trace`` records now.

    Of a sample drawn at another time the traced function knows nothing: it may get another one.
    """
    return None if torch.compiler.is_compiling() else torch._C._get_tracing_state()


def version(tensor: Tensor) -> int | None:
    """How often a tensor was changed in place; None where torch does not count."""
    return None if torch.compiler.is_compiling() or tensor.is_inference() else tensor._version
