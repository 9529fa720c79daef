"""Costs, Cholesky factors and exact gradients of sections 6.1.1 and E.1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

DIM = 50


def quadratic_form(z: Tensor, matrices: Tensor) -> Tensor:
    """Values z . Q z at samples ``(*X, seeds, D)`` and matrices ``(seeds, D, D)``."""
    return ((z.unsqueeze(-2) @ matrices).squeeze(-2) * z).sum(-1)


def frequency(matrices: Tensor) -> Tensor:
    """The w of the cosine's argument w . z, ``(seeds, D)``."""
    return matrices.sum(-1) / matrices.shape[-1]


COSTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": lambda z, matrices: (z * frequency(matrices)).sum(-1).cos(),
    "quadratic": quadratic_form,
    "quartic": lambda z, matrices: quadratic_form(z, matrices).square(),
}
"""f(z) by name, Eq. 60-62: samples ``(*X, seeds, D)`` and matrices Q to values ``(*X, seeds)``."""


@dataclass
class Problem:
    """Random costs and Cholesky factors.

    Args:
        matrices: Q, ``(seeds, D, D)``.
        scale_tril: L = 1 + r dL, ``(R, seeds, D, D)``.
    """

    matrices: Tensor
    scale_tril: Tensor

    @classmethod
    def draw(cls, radii: tuple[float, ...], seeds: int, seed: int) -> Problem:
        """Q of Bernoulli(0.5) and dL of Uniform(0, 1) entries, one pair for each of ``seeds``."""
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(2, seeds, DIM, DIM, generator=generator).tril(-1)
        lower = (uniform[0] > 0.5).float()
        radius = torch.tensor(radii)[:, None, None, None]
        return cls(lower + lower.mT, torch.eye(DIM) + radius * uniform[1])

    @property
    def loc(self) -> Tensor:
        """The mean, zero."""
        return self.scale_tril.new_zeros(self.scale_tril.shape[-1])

    def cost(self, name: str) -> Callable[[Tensor], Tensor]:
        """f(z) for samples ``(*X, R, seeds, D)``."""
        return lambda z: COSTS[name](z, self.matrices)

    def exact_gradient(self, name: str) -> Tensor:
        r"""Gradient of E f(L epsilon) at L, whole matrices ``(R, seeds, D, D)``.

        With :math:`\Sigma = L L^T`: :math:`E \cos(w \cdot z) = \exp(-|L^T w|^2 / 2)`,
        :math:`E z^T Q z = \operatorname{tr} Q \Sigma` and, by Isserlis' theorem,
        :math:`E (z^T Q z)^2 = (\operatorname{tr} Q \Sigma)^2
        + 2 \operatorname{tr} Q \Sigma Q \Sigma`.
        """
        matrices, factor = self.matrices, self.scale_tril
        if name == "cosine":
            w = frequency(matrices).unsqueeze(-1)  # (seeds, D, 1)
            white = factor.mT @ w  # (R, seeds, D, 1)
            expectation = (-white.square().sum((-2, -1), keepdim=True) / 2).exp()
            return -expectation * w @ white.mT
        product = matrices @ factor  # Q L
        if name == "quadratic":
            return 2 * product
        trace = (product * factor).sum((-2, -1), keepdim=True)
        return 4 * trace * product + 8 * matrices @ factor @ (factor.mT @ product)
