"""Vectors replaced by the nearest of a codebook."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyro_mixtures.distributions.relaxed import straight_through
from pyro_mixtures.numerics.chunks import map_chunks
from pyro_mixtures.numerics.precision import at_least_single, widest
from pyro_mixtures.numerics.validation import check_at_least


class Quantized(NamedTuple):
    """What :class:`VectorQuantize` makes of vectors ``(*X, dim)``.

    Args:
        quantized: sums of one code of each level, ``(*X, dim)``, whose gradient goes to the input.
        indices: of those codes, ``(*X, num_levels)``.
        codebook_loss: moves codes to the inputs; a scalar, 0 where averages move them.
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

    With ``ema_decay`` :math:`\gamma` codes learn without an optimizer instead, as moving averages
    of what they stand for. Of each batch, once it is quantized, with :math:`n_i` vectors nearest
    to code i of their level,

    .. math:: N_i \leftarrow \gamma N_i + (1 - \gamma) n_i, \qquad
              m_i \leftarrow \gamma m_i + (1 - \gamma) \sum_{j \to i} r_j, \qquad
              e_i = m_i / N_i

    The codebook loss then is 0, and codes have no gradients. They move in training mode alone.
    N starts at zero: a code goes to the mean of the first vectors that are nearest to it, and one
    that is not used stays where it is. (m is had as N e. Other implementations add a constant to
    N against division by zero, which draws unused codes to the origin.) With ``restart_below``
    codes with less than this part of the mean use :math:`\sum_i N_i / K` are dead: they move to
    vectors of the batch, chosen at random, and count as having the mean use from there.

    N and e are in the ``state_dict``. They are averages of one process; between several codes move
    apart, unless buffers are shared, as ``DistributedDataParallel`` does with those of the first.

    Codes start out uniform within 1 / ``num_codes`` of zero. Inputs are converted to the dtype of
    the codes.

    Args:
        num_codes: of each codebook.
        dim: of the vectors.
        commitment: weight of the commitment loss.
        num_levels: codebooks.
        ema_decay: weight of the past in the averages, in (0, 1), such as 0.99; None for codes that
            learn by their loss.
        restart_below: part of the mean use, in (0, 1), such as 0.1; None to leave dead codes. It
            needs ``ema_decay``, for an optimizer would move new codes by the old ones' momentum.

    Attributes:
        codebooks: ``(num_levels, num_codes, dim)``, a parameter, or with ``ema_decay`` a buffer.
        code_counts: the averages N with ``ema_decay``, ``(num_levels, num_codes)``.

    Raises:
        ValueError: for sizes below one, a commitment that is negative or not finite, an
            ``ema_decay`` or ``restart_below`` outside (0, 1), the latter alone, and inputs or
            indices of the wrong shape, type or value.

    Reference:
        van den Oord, Vinyals and Kavukcuoglu, *Neural Discrete Representation Learning*, 2017;
        averages: appendix A.1. Restarts: Dhariwal et al., *Jukebox: A Generative Model for Music*,
        2020. Several levels: Zeghidour et al., *SoundStream: An End-to-End Neural Audio Codec*,
        2021.

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
        >>> quantize = VectorQuantize(num_codes=8, dim=2, ema_decay=0.99, restart_below=0.1)
        >>> for _ in range(20):
        ...     indices = quantize(torch.randn(200, 2)).indices
        >>> bool(quantize.perplexity(indices) > 6)
        True
    """

    codebooks: Tensor
    code_counts: Tensor

    def __init__(
        self,
        num_codes: int,
        dim: int,
        *,
        commitment: float = 0.25,
        num_levels: int = 1,
        ema_decay: float | None = None,
        restart_below: float | None = None,
    ) -> None:
        super().__init__()
        check_at_least(1, num_codes=num_codes, dim=dim, num_levels=num_levels)
        if not 0 <= commitment < math.inf:
            raise ValueError(f"Expected a finite commitment >= 0, but got {commitment}")
        for name, part in (("ema_decay", ema_decay), ("restart_below", restart_below)):
            if part is not None and not 0 < part < 1:
                raise ValueError(f"Expected 0 < {name} < 1, but got {part}")
        if restart_below is not None and ema_decay is None:
            raise ValueError(
                f"Expected an ema_decay with restart_below, but got restart_below={restart_below}"
                " alone"
            )
        self.commitment, self.ema_decay, self.restart_below = commitment, ema_decay, restart_below
        codes = torch.empty(num_levels, num_codes, dim).uniform_(-1 / num_codes, 1 / num_codes)
        if ema_decay is None:
            self.codebooks = nn.Parameter(codes)
        else:  # a buffer: no optimizer may move it, and other processes get it as it is
            self.register_buffer("codebooks", codes)
            self.register_buffer("code_counts", torch.zeros(num_levels, num_codes))

    def extra_repr(self) -> str:
        levels, codes, dim = self.codebooks.shape
        shown = f"num_codes={codes}, dim={dim}, commitment={self.commitment}, num_levels={levels}"
        if self.ema_decay is not None:
            shown += f", ema_decay={self.ema_decay}, restart_below={self.restart_below}"
        return shown

    def forward(self, x: Tensor) -> Quantized:
        """Quantize vectors ``(*X, dim)``."""
        dim = self.codebooks.shape[-1]
        if not x.is_floating_point():
            raise ValueError(f"Expected x of a floating point dtype, but got {x.dtype}")
        if x.dim() == 0 or x.shape[-1] != dim:
            raise ValueError(f"Expected x of shape (*X, {dim}), but got {tuple(x.shape)}")
        x = residual = x.to(self.codebooks.dtype)
        residuals, indices, codebook_losses, commitment_losses = [], [], [], []
        for codebook in self.codebooks:
            index = _nearest(residual, codebook)  # (*X)
            code = nn.functional.embedding(index, codebook)  # (*X, dim)
            residuals.append(residual.detach())
            indices.append(index)
            if self.ema_decay is None:
                codebook_losses.append(_mean_square(residual.detach() - code))
            residual = residual - code.detach()
            commitment_losses.append(_mean_square(residual))
        found = torch.stack(indices, -1)  # (*X, num_levels)
        quantized = straight_through(self._sum(found).detach(), x)
        if self.training and self.ema_decay is not None:
            self._learn(torch.stack(residuals), found, self.ema_decay)
        return Quantized(
            quantized,
            found,
            torch.stack(codebook_losses).sum() if codebook_losses else x.new_zeros(()),
            self.commitment * torch.stack(commitment_losses).sum(),
        )

    def lookup(self, indices: Tensor) -> Tensor:
        """Sums of the codes ``(*X, num_levels)``, with gradients to them: ``(*X, dim)``.

        With ``ema_decay`` codes have no gradients, and those of a batch in training are the ones
        that it has moved.
        """
        self._check_indices(indices)
        return self._sum(indices)

    def perplexity(self, indices: Tensor) -> Tensor:
        r"""How many codes are in use, ``(num_levels)``, by indices ``(*X, num_levels)``.

        .. math:: \exp\Big(-\sum_i f_i \log f_i\Big)

        with the shares :math:`f_i` of the codes: ``num_codes`` for codes used alike, 1 if all is
        one code. A batch has at most as many as vectors; indices of several batches may be
        concatenated.
        """
        self._check_indices(indices)
        if indices.numel() == 0:
            raise ValueError(
                f"Expected indices of one vector or more, but got shape {tuple(indices.shape)}"
            )
        levels, codes, _ = self.codebooks.shape
        rows = indices.reshape(-1, levels)
        shares = _counts(rows, codes).to(widest(self.codebooks)) / len(rows)
        return torch.special.entr(shares).sum(-1).exp()

    def _check_indices(self, indices: Tensor) -> None:
        levels, codes, _ = self.codebooks.shape
        if indices.dtype != torch.int64:
            raise ValueError(f"Expected indices of dtype int64, but got {indices.dtype}")
        if indices.dim() == 0 or indices.shape[-1] != levels:
            raise ValueError(
                f"Expected indices of shape (*X, {levels}), but got {tuple(indices.shape)}"
            )
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < codes:
            raise ValueError(f"Expected indices from 0 to {codes - 1}, but got {indices}")

    @torch.no_grad()
    def _learn(self, residuals: Tensor, indices: Tensor, decay: float) -> None:
        """Move the codes to the averages of what they stand for.

        Args:
            residuals: what each level has quantized, ``(num_levels, *X, dim)``.
            indices: ``(*X, num_levels)``.
            decay: weight of the past.
        """
        levels, codes, dim = self.codebooks.shape
        codebooks, rows, counts = at_least_single(
            self.codebooks, residuals.reshape(levels, -1, dim), self.code_counts
        )
        count = rows.shape[1]
        if count == 0:
            return
        found = indices.reshape(-1, levels)
        counts = decay * counts + (1 - decay) * _counts(found, codes).to(counts)
        # m / N by what is new in it, which keeps the digits of codes far from zero
        chosen = found.mT.unsqueeze(-1).expand(-1, -1, dim)  # (L, N, D)
        news = rows - codebooks.gather(1, chosen)
        news = torch.zeros_like(codebooks).scatter_add_(1, chosen, news)
        tiny = torch.finfo(counts.dtype).tiny  # of codes that are not used, and have no news
        codebooks = codebooks + (1 - decay) * news / counts.clamp_min(tiny).unsqueeze(-1)
        if self.restart_below is not None:
            mean = counts.mean(-1, keepdim=True)
            dead = counts < self.restart_below * mean
            order = torch.randperm(count, device=rows.device)  # apart, if there are enough
            places = order[torch.arange(codes, device=rows.device) % count]
            counts = torch.where(dead, mean, counts)
            codebooks = torch.where(dead.unsqueeze(-1), rows[:, places], codebooks)
        self.code_counts.copy_(counts)
        self.codebooks.copy_(codebooks)

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


def _counts(indices: Tensor, num_codes: int) -> Tensor:
    """How often each code was found, ``(N, num_levels) -> (num_levels, num_codes)``."""
    counts = indices.new_zeros(indices.shape[1], num_codes)
    return counts.scatter_add_(1, indices.mT, torch.ones_like(indices.mT))


def _mean_square(x: Tensor) -> Tensor:
    """Of the lengths of vectors; 0 of none."""
    return x.square().sum() / max(1, math.prod(x.shape[:-1]))
