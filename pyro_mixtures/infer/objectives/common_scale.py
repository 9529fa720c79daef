"""The scale that sites share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_mixtures.samples.pyro_context import is_masked


def common_scale(
    scale: float | Tensor, dims: Collection[int | None], sites: Mapping[str, Any]
) -> float | Tensor:
    """The scale of sites that share a logarithm, or one logarithm for each element of plates.

    Args:
        scale: of one of the sites.
        dims: of the plates whose elements have logarithms of their own; the scale may differ
            along these, and has size one along all others in the result.
        sites: the nodes of a trace, by what messages call them. Masked ones may have any scale.

    Raises:
        ValueError: if the scales differ, with all of them.
    """
    if isinstance(scale, Tensor):
        for dim in set(range(-scale.dim(), 0)).difference(dims):
            scale = scale.narrow(dim, 0, 1)
    if not all(_is_close(site["scale"], scale) or is_masked(site) for site in sites.values()):
        scales = [f"{_describe(site['scale'])} at {name}" for name, site in sites.items()]
        raise ValueError(
            "Expected the sites that share a logarithm to share one poutine.scale, that of"
            f" subsampling included, but got {', '.join(scales)}: scale the whole of model and"
            " guide, put the mixture into the plate that is subsampled, or use"
            " MarginalizedMixture_ELBO, which takes any scales"
        )
    return scale


def _is_close(scale: Any, common: Any) -> bool:
    """But for the rounding of products in another order."""
    return bool(torch.as_tensor(abs(scale - common) <= 1e-6 * common).all())


def _describe(scale: float | Tensor) -> str:
    if isinstance(scale, Tensor) and scale.numel() > 1:
        low, high = scale.aminmax()
        return f"{low.item():g} to {high.item():g}"
    return f"{float(scale):g}"
