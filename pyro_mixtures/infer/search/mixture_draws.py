"""Draws of a mixture of Normals by a generator, which leave torch's own as it is."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_mixtures.infer.search.mode_groups import NormalMixture, normal_scales


def mixture_draws(
    mixture: NormalMixture, count: int, generator: torch.Generator, *, among: Tensor | None = None
) -> Tensor:
    """Draws of a mixture of Normals, or of some of its components, ``(count, D)``.

    Args:
        mixture: without batch shape.
        count: of draws.
        generator: of random numbers, on the CPU.
        among: indices of components; by default all.
    """
    locs, scales = mixture.locs.detach(), normal_scales(mixture)
    weights = mixture.log_weights.detach().exp().cpu()
    index = torch.arange(len(weights)) if among is None else among.cpu()
    own = index[torch.multinomial(weights[index], count, replacement=True, generator=generator)]
    noise = torch.randn(count, locs.shape[-1], generator=generator, dtype=locs.dtype).to(locs)
    own = own.to(locs.device)
    if scales.dim() == locs.dim():
        return locs[own] + scales[own] * noise
    z = torch.empty_like(noise)
    for each in own.unique():  # a factor for each draw would be much memory
        rows = own == each
        z[rows] = locs[each] + noise[rows] @ scales[each].mT
    return z
