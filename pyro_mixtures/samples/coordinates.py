"""Coordinates in which a sample was drawn, kept with it: its values have lost most digits."""

from __future__ import annotations

from pyro.ops.provenance import detach_provenance, get_provenance, track_provenance
from torch import Size, Tensor

from pyro_mixtures.samples.remembering import current_trace, version

ATTRIBUTE = "_pyro_mixtures_coordinates"
"""The attribute of a sample that holds them."""


def keep_coordinates(
    sample: Tensor, coordinates: Tensor, event_shape: Size, *, rounded: bool = False
) -> None:
    """Keep coordinates with the sample itself: other distributions need them, too.

    ``rounded`` says that they are those of another point, which was rounded to this sample.
    """
    sample = detach_provenance(sample)
    record = coordinates, event_shape, version(sample), current_trace(), rounded
    setattr(sample, ATTRIBUTE, record)


def kept_coordinates(
    value: Tensor, event_shape: Size, *, of_rounded: bool = False
) -> Tensor | None:
    """The coordinates of a sample with events of this shape, if it is as it was drawn.

    Those of a point that was rounded to the sample only for ``of_rounded``.
    """
    sample = detach_provenance(value)
    record = getattr(sample, ATTRIBUTE, None)
    if record is None:
        return None
    coordinates, own_shape, then, trace, rounded = record
    now = version(sample)
    unchanged = then == now or then is None or now is None
    unchanged = unchanged and sample.requires_grad == coordinates.requires_grad
    if not unchanged or own_shape != event_shape or trace is not current_trace():
        return None
    if rounded and not of_rounded:
        return None
    return track_provenance(coordinates, get_provenance(value))
