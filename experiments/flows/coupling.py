"""Affine couplings, several copies at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn
from torch.distributions import constraints

LARGEST = 3.0
"""Bound of the log scales, which a hyperbolic tangent keeps."""


class Coupling(TransformModule):
    r"""Real NVP's: every other coordinate is moved by a network of the rest.

    .. math:: y_{odd} = y_{odd} \, e^{s(x_{even})} + t(x_{even})

    It has R copies, each with parameters of its own, for points ``(*S, R, D)``: seeds that are
    trained at once in one set of operations. It starts as the identity.

    Args:
        copies: R.
        dimension: D, an even number.
        hidden: units of the network's one hidden layer.
        first: move the first of each two coordinates, and not the second.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, copies: int, dimension: int, hidden: int, *, first: bool) -> None:
        super().__init__()
        half = dimension // 2
        self.first = first
        self.into = nn.Parameter(2 * torch.randn(copies, half, hidden) / half**0.5)
        self.into_bias = nn.Parameter(torch.randn(copies, 1, hidden))
        self.out = nn.Parameter(torch.zeros(copies, hidden, 2 * half))
        self.out_bias = nn.Parameter(torch.zeros(copies, 1, 2 * half))
        self._cached_x: Tensor | None = None
        self._cached_y: Tensor | None = None
        self._cached_log_scale: Tensor | None = None

    def _network(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Log scales and shifts, ``(*S, R, D / 2)`` both."""
        points = kept.movedim(-2, 0)  # (R, *S, D / 2)
        flat = points.reshape(len(points), -1, points.shape[-1])  # (R, S, D / 2)
        hidden = torch.baddbmm(self.into_bias, flat, self.into).tanh()  # (R, S, H)
        out = torch.baddbmm(self.out_bias, hidden, self.out)  # (R, S, D)
        out = out.reshape(*points.shape[:-1], -1).movedim(0, -2)  # (*S, R, D)
        log_scale, shift = out.chunk(2, -1)  # (*S, R, D / 2)
        return LARGEST * (log_scale / LARGEST).tanh(), shift

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What is moved, and what is kept."""
        even, odd = x[..., ::2], x[..., 1::2]
        return (even, odd) if self.first else (odd, even)

    def _joined(self, moved: Tensor, kept: Tensor) -> Tensor:
        pair = [moved, kept] if self.first else [kept, moved]
        return torch.stack(pair, -1).flatten(-2)

    def _call(self, x: Tensor) -> Tensor:
        moved, kept = self._split(x)
        log_scale, shift = self._network(kept)
        y = self._joined(moved * log_scale.exp() + shift, kept)
        self._cached_x, self._cached_y, self._cached_log_scale = x, y, log_scale
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        moved, kept = self._split(y)
        log_scale, shift = self._network(kept)
        x = self._joined((moved - shift) * (-log_scale).exp(), kept)
        self._cached_x, self._cached_y, self._cached_log_scale = x, y, log_scale
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """``(*S, R)``; of the last points without another run of the network."""
        log_scale = self._cached_log_scale
        if log_scale is not None and x is self._cached_x and y is self._cached_y:
            return log_scale.sum(-1)
        return self._network(self._split(x)[1])[0].sum(-1)


def couplings(copies: int, dimension: int, widths: Sequence[int]) -> nn.ModuleList:
    """Couplings of these hidden units, which move the coordinates in turn."""
    return nn.ModuleList(
        Coupling(copies, dimension, width, first=place % 2 == 0)
        for place, width in enumerate(widths)
    )


def spread_widths(layers: int, dimension: int, parameters: int) -> list[int]:
    """Hidden units of couplings whose parameters are as many as given, or few less.

    Raises:
        ValueError: where that leaves a coupling without hidden units.
    """
    half = dimension // 2
    units = (parameters - 2 * half * layers) // (3 * half + 1)
    if units < layers:
        raise ValueError(f"Expected parameters for {layers} couplings, but got {parameters}")
    return [units // layers + (place < units % layers) for place in range(layers)]


def count(module: nn.Module) -> int:
    """Parameters of one copy."""
    parameters = list(module.parameters())
    return sum(each.numel() // len(each) for each in parameters)
