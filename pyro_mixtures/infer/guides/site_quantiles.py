"""Quantiles of a model's sites from those of a guide's unconstrained coordinates."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyro.infer.autoguide import AutoContinuous
from torch import Tensor
from torch.distributions import Transform, biject_to


def site_quantiles(
    guide: AutoContinuous, icdf: Callable[[Tensor], Tensor], quantiles
) -> dict[str, Tensor]:
    """Quantiles of each latent site.

    Args:
        guide: one that was called before.
        icdf: quantiles of the coordinates of the packed latent vector, ``() -> (D,)``.
        quantiles: a list or vector of probabilities between 0 and 1.

    Returns:
        From site name to values, with the quantiles along the first dimension.

    Raises:
        ValueError: for anything but a list of probabilities.
    """
    probabilities = torch.as_tensor(quantiles)
    if probabilities.dim() != 1 or not bool(((0 <= probabilities) & (probabilities <= 1)).all()):
        raise ValueError(
            f"Expected quantiles to be a list of probabilities in [0, 1], but got {quantiles}"
        )
    values: dict[str, list[Tensor]] = {}
    for probability in probabilities:
        ends = (probability, 1 - probability)  # the second for decreasing transforms
        low, high = (guide._unpack_latent(icdf(end)) for end in ends)
        for (site, increasing), (_, decreasing) in zip(low, high, strict=True):
            transform = biject_to(site["fn"].support)
            latent = decreasing if _is_decreasing(transform) else increasing
            values.setdefault(site["name"], []).append(transform(latent))
    return {name: torch.stack(value) for name, value in values.items()}


def _is_decreasing(transform: Transform) -> bool:
    """Whether a transform reverses the order of a coordinate, as that to ``less_than`` does."""
    try:
        return transform.sign == -1
    except NotImplementedError:
        return False  # no transform of single coordinates
