"""RAD: a flow that folds space, and a choice among the pieces of the fold."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from experiments.flows.coupling import count, couplings, spread_widths

PIECES = 3
"""Of each coordinate."""
GATE = 16
"""Hidden units of the gating network."""


class Fold(nn.Module):
    r"""A continuous function of each coordinate with three linear pieces that go to and fro.

    .. math::
        f(x) = -a (x + b) - c b, \; x < -b; \qquad c x, \; |x| \le b; \qquad
        -a (x - b) + c b, \; x > b

    A value within :math:`\pm c b` has one preimage in each piece, a larger one has one in the left
    piece, a smaller one has one in the right piece. The pieces of a vector are those of its
    coordinates, ``3 ** D`` of them.

    Args:
        copies: R, each with parameters of its own.
        dimension: D.
    """

    chosen: Tensor

    def __init__(self, copies: int, dimension: int) -> None:
        super().__init__()
        self.log_outer = nn.Parameter(torch.zeros(copies, dimension))
        self.log_inner = nn.Parameter(torch.zeros(copies, dimension))
        self.log_half = nn.Parameter(torch.full((copies, dimension), -0.7))
        pieces = list(itertools.product(range(PIECES), repeat=dimension))
        self.register_buffer("chosen", torch.tensor(pieces))  # (3^D, D)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values ``(*S, R, D)``, pieces ``(*S, R)`` and log volumes ``(*S, R)``."""
        half = self.log_half.exp()
        side = (x > half).long() - (x < -half).long()  # (*S, R, D)
        edge = side * half
        turn = edge * self.log_inner.exp()
        outer, inner = self.log_outer.exp(), self.log_inner.exp()
        value = torch.where(side == 0, inner * x, turn - outer * (x - edge))
        log_volume = torch.where(side == 0, self.log_inner, self.log_outer).sum(-1)
        powers = PIECES ** torch.arange(x.shape[-1] - 1, -1, -1)
        return value, ((side + 1) * powers).sum(-1), log_volume

    def inverse(self, value: Tensor, piece: Tensor) -> Tensor:
        """Preimages in given pieces, ``(*S, R, D)``, where there are any."""
        side = self.chosen[piece] - 1  # (*S, R, D)
        edge = side * self.log_half.exp()
        turn = edge * self.log_inner.exp()
        outer = edge - (value - turn) * (-self.log_outer).exp()
        return torch.where(side == 0, value * (-self.log_inner).exp(), outer)

    def has_preimage(self, value: Tensor) -> Tensor:
        """Of each piece, ``(*S, R, D) -> (*S, R, 3^D)``."""
        turn = (self.log_half + self.log_inner).exp()
        each = torch.stack([value > -turn, value.abs() <= turn, value < turn], -1)  # (*S, R, D, 3)
        coordinates = range(value.shape[-1])
        return torch.stack(
            [each[..., d, :].index_select(-1, self.chosen[:, d]) for d in coordinates]
        ).all(0)


class RAD(nn.Module):
    r"""A density with real and discrete latents.

    .. math::
        p(x) = \sum_k p(z) \, p(k \mid z) \, |\det \partial f_k / \partial x| \, [x \in A_k],
        \qquad z = f_k(x)

    The pieces :math:`A_k` do not overlap, so that the sum has one term. Here f is couplings, a
    :class:`Fold`, and couplings; :math:`p(k \mid z)` is a network of the fold's value, zero for
    pieces that have no preimage of it.

    Args:
        copies: R.
        layers: couplings in all.
        parameters: of a copy, about.

    Reference:
        Dinh, Sohl-Dickstein, Larochelle and Pascanu, *A RAD approach to deep mixture models*
        (2019), https://arxiv.org/abs/1903.07714.
    """

    inner: Any
    outer: Any

    def __init__(self, copies: int, layers: int, parameters: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(copies, 2))
        self.log_scale = nn.Parameter(torch.zeros(copies, 2))
        self.fold = Fold(copies, 2)
        self.gate_into = nn.Parameter(torch.randn(copies, 2, GATE))
        self.gate_into_bias = nn.Parameter(torch.randn(copies, 1, GATE))
        self.gate_out = nn.Parameter(0.01 * torch.randn(copies, GATE, PIECES**2))
        self.gate_out_bias = nn.Parameter(torch.zeros(copies, 1, PIECES**2))
        made = couplings(copies, 2, spread_widths(layers, 2, parameters - count(self)))
        self.inner, self.outer = made[: layers // 2], made[layers // 2 :]

    def log_gate(self, value: Tensor) -> Tensor:
        """Log p(k | z), ``(*S, R, 2) -> (*S, R, 9)``."""
        points = value.movedim(-2, 0)  # (R, *S, 2)
        flat = points.reshape(len(points), -1, 2)  # (R, S, 2)
        hidden = torch.baddbmm(self.gate_into_bias, flat, self.gate_into).tanh()  # (R, S, H)
        logits = torch.baddbmm(self.gate_out_bias, hidden, self.gate_out)  # (R, S, 9)
        logits = logits.reshape(*points.shape[:-1], -1).movedim(0, -2)  # (*S, R, 9)
        return logits.where(self.fold.has_preimage(value), -torch.inf).log_softmax(-1)

    def log_prob(self, x: Tensor) -> Tensor:
        """``(*S, R, 2) -> (*S, R)``."""
        total: Tensor | float = 0.0
        for transform in reversed(self.outer):
            before = transform.inv(x)
            total, x = total - transform.log_abs_det_jacobian(before, x), before
        value, piece, log_volume = self.fold(x)
        log_gate = self.log_gate(value).gather(-1, piece.unsqueeze(-1)).squeeze(-1)  # (*S, R)
        total, x = total + log_volume + log_gate, value
        for transform in reversed(self.inner):
            before = transform.inv(x)
            total, x = total - transform.log_abs_det_jacobian(before, x), before
        base = Normal(self.loc, self.log_scale.exp(), validate_args=False)
        return total + base.log_prob(x).sum(-1)

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """``(count, R, 2)``."""
        x = Normal(self.loc, self.log_scale.exp()).sample((count,))
        for transform in self.inner:
            x = transform(x)
        piece = torch.distributions.Categorical(logits=self.log_gate(x)).sample()
        x = self.fold.inverse(x, piece)
        for transform in self.outer:
            x = transform(x)
        return x
