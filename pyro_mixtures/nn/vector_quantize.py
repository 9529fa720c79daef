"""Vectors replaced by the nearest of a codebook."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyro_mixtures.distributions.relaxed import straight_through
from pyro_mixtures.numerics.chunks import map_chunks
from pyro_mixtures.numerics.precision import at_least_single
from pyro_mixtures.numerics.validation import check_at_least


class Quantized(NamedTuple):
    """What :class:`VectorQuantize` makes of vectors ``(*X, dim)``.

    Args:
        quantized: sums of one code of each level, ``(*X, dim)``, whose gradient goes to the input.
        indices: of those codes, ``(*X, num_levels)``.
        codebook_loss: moves codes to the inputs; a scalar.
        commitment_loss: moves inputs to the codes; a scalar.
    """

    quantized: Tensor
    indices: Tensor
    codebook_loss: Tensor
    commitment_loss: Tensor


class VectorQuantize(nn.Module):
    r"""Replace vectors by the nearest codes, with straight-through gradients.

    .. math:: \hat x = \sum_l e_l, \qquad
              e_l = \arg\min_{e \in C_l} |r_l - e|, \qquad r_1 = x, \quad r_{l+1} = r_l - e_l

    Each level has a codebook of its own and quantizes what those before left over. The gradient at
    :math:`\hat x` goes to x as it is; the codes learn by the losses, with sg for a stopped
    gradient,

    .. math:: \sum_l |\mathrm{sg}(r_l) - e_l|^2 \quad \text{and} \quad
              \mathrm{commitment} \cdot \sum_l |r_l - \mathrm{sg}(e_l)|^2

    where squares are summed over the dimension and averaged over all other ones. Add both to the
    cost.

    Codes start out uniform within 1 / ``num_codes`` of zero. Inputs are converted to the dtype of
    the codes.

    Args:
        num_codes: of each codebook.
        dim: of the vectors.
        commitment: weight of the commitment loss.
        num_levels: codebooks.

    Raises:
        ValueError: for sizes below one, a commitment that is negative or not finite, and inputs
            or indices of the wrong shape, type or value.

    Reference:
        van den Oord, Vinyals and Kavukcuoglu, *Neural Discrete Representation Learning*, 2017.
        Several levels: Zeghidour et al., *SoundStream: An End-to-End Neural Audio Codec*, 2021.

    Example:
        >>> quantize = VectorQuantize(num_codes=8, dim=2, num_levels=3)
        >>> x = torch.randn(5, 4, 2, requires_grad=True)
        >>> quantized, indices, codebook_loss, commitment_loss = quantize(x)
        >>> quantized.shape, indices.shape
        (torch.Size([5, 4, 2]), torch.Size([5, 4, 3]))
        >>> quantized.sum().backward()
        >>> bool((x.grad == 1).all())
        True
        >>> torch.equal(quantize.lookup(indices), quantized)
        True
    """

    def __init__(
        self, num_codes: int, dim: int, *, commitment: float = 0.25, num_levels: int = 1
    ) -> None:
        super().__init__()
        check_at_least(1, num_codes=num_codes, dim=dim, num_levels=num_levels)
        if not 0 <= commitment < math.inf:
            raise ValueError(f"Expected a finite commitment >= 0, but got {commitment}")
        self.commitment = commitment
        codes = torch.empty(num_levels, num_codes, dim).uniform_(-1 / num_codes, 1 / num_codes)
        self.codebooks = nn.Parameter(codes)

    def extra_repr(self) -> str:
        levels, codes, dim = self.codebooks.shape
        return f"num_codes={codes}, dim={dim}, commitment={self.commitment}, num_levels={levels}"

    def forward(self, x: Tensor) -> Quantized:
        """Quantize vectors ``(*X, dim)``."""
        dim = self.codebooks.shape[-1]
        if not x.is_floating_point():
            raise ValueError(f"Expected x of a floating point dtype, but got {x.dtype}")
        if x.dim() == 0 or x.shape[-1] != dim:
            raise ValueError(f"Expected x of shape (*X, {dim}), but got {tuple(x.shape)}")
        x = residual = x.to(self.codebooks.dtype)
        indices, codebook_losses, commitment_losses = [], [], []
        for codebook in self.codebooks:
            index = _nearest(residual, codebook)  # (*X)
            code = nn.functional.embedding(index, codebook)  # (*X, dim)
            indices.append(index)
            codebook_losses.append(_mean_square(residual.detach() - code))
            residual = residual - code.detach()
            commitment_losses.append(_mean_square(residual))
        found = torch.stack(indices, -1)  # (*X, num_levels)
        return Quantized(
            straight_through(self._sum(found).detach(), x),
            found,
            torch.stack(codebook_losses).sum(),
            self.commitment * torch.stack(commitment_losses).sum(),
        )

    def lookup(self, indices: Tensor) -> Tensor:
        """Sums of the codes ``(*X, num_levels)``, with gradients to them: ``(*X, dim)``."""
        levels, codes, _ = self.codebooks.shape
        if indices.dtype != torch.int64:
            raise ValueError(f"Expected indices of dtype int64, but got {indices.dtype}")
        if indices.dim() == 0 or indices.shape[-1] != levels:
            raise ValueError(
                f"Expected indices of shape (*X, {levels}), but got {tuple(indices.shape)}"
            )
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < codes:
            raise ValueError(f"Expected indices from 0 to {codes - 1}, but got {indices}")
        return self._sum(indices)

    def _sum(self, indices: Tensor) -> Tensor:
        levels = torch.arange(len(self.codebooks), device=indices.device)
        return self.codebooks[levels, indices].sum(-2)


@torch.no_grad()
def _nearest(x: Tensor, codebook: Tensor) -> Tensor:
    """Indices of the nearest codes, ``(*X, dim) -> (*X)``."""
    rows, codebook = at_least_single(x.reshape(-1, x.shape[-1]), codebook)

    def nearest(rows: Tensor) -> Tensor:
        # by differences: expanded squares lose the digits by which codes far from zero differ
        exact = "donot_use_mm_for_euclid_dist"
        return torch.cdist(rows, codebook, compute_mode=exact).argmin(-1, keepdim=True)

    return map_chunks(nearest, (rows,), len(codebook)).reshape(x.shape[:-1])


def _mean_square(x: Tensor) -> Tensor:
    """Of the lengths of vectors; 0 of none."""
    return x.square().sum() / max(1, math.prod(x.shape[:-1]))
