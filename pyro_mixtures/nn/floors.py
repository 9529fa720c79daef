"""Smooth maps from all numbers to scales that stay above a floor."""

from __future__ import annotations

import math

import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.transforms import Transform
from torch.nn.functional import softplus


class AboveFloor(Transform):
    r"""The map :math:`\text{floor} + \log(1 + e^x)`, which a clamp would leave without gradient.

    The inverse of what is below twice the floor is that of twice the floor.
    """

    domain = constraints.real
    codomain = constraints.positive
    bijective = True
    sign = +1

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.floor = floor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AboveFloor) and self.floor == other.floor

    def _call(self, x: Tensor) -> Tensor:
        return self.floor + softplus(x)

    def _inverse(self, y: Tensor) -> Tensor:
        above = (y - self.floor).clamp_min(self.floor)
        return above + (-torch.expm1(-above)).log()


class CholeskyAboveFloor(Transform):
    """Vectors of ``D (D + 1) / 2`` numbers to lower triangular matrices ``(D, D)``.

    First come the diagonals, which :class:`AboveFloor` maps, and then what is below, row by row.
    The floor bounds the determinant, and with it the density of a Normal.
    """

    domain = constraints.real_vector
    codomain = constraints.lower_cholesky
    bijective = True

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.diagonal = AboveFloor(floor)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CholeskyAboveFloor) and self.diagonal == other.diagonal

    def _call(self, x: Tensor) -> Tensor:
        size = self.forward_shape(x.shape)[-1]
        column = torch.arange(size, device=x.device)
        row = column.unsqueeze(-1)
        below = torch.where(row > column, size + row * (row - 1) // 2 + column, x.shape[-1])
        index = torch.where(row == column, row, below)  # (D, D)
        zero = torch.zeros_like(x[..., :1])
        entries = torch.cat([self.diagonal(x[..., :size]), x[..., size:], zero], -1)
        return entries[..., index]  # (*X, D, D)

    def _inverse(self, y: Tensor) -> Tensor:
        row, column = torch.tril_indices(y.shape[-2], y.shape[-1], -1, device=y.device)
        diagonal = self.diagonal.inv(y.diagonal(dim1=-2, dim2=-1))
        return torch.cat([diagonal, y[..., row, column]], -1)

    def forward_shape(self, shape: Size) -> Size:
        size = (math.isqrt(8 * shape[-1] + 1) - 1) // 2
        return Size((*shape[:-1], size, size))

    def inverse_shape(self, shape: Size) -> Size:
        return Size((*shape[:-2], shape[-1] * (shape[-1] + 1) // 2))
