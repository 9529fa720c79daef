"""The sizes that are measured, and the random parameters of mixtures of these sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """S samples of a mixture with K components in D dimensions, or of a batch of them."""

    S: int
    K: int
    D: int
    batch: int | None = None
    target: float | None = None
    """Floors that an ELBO step of ``MixtureOfDiagNormals`` may take."""

    @property
    def batch_shape(self) -> torch.Size:
        """Of the mixture."""
        return torch.Size(() if self.batch is None else (self.batch,))

    @property
    def sample_shape(self) -> torch.Size:
        """What ``rsample`` is given."""
        return torch.Size((self.S,) if self.batch is None else ())

    @property
    def mixtures(self) -> int:
        """How many."""
        return self.batch_shape.numel()

    def __str__(self) -> str:
        sizes = f"{self.S} x {self.K} x {self.D}"
        return sizes if self.batch is None else f"{self.batch} mixtures, {sizes}"


DIAGONAL = (
    Case(1, 10, 20, target=1.8),
    Case(100, 10, 20, target=1.5),
    Case(10000, 3, 2, target=1.3),
    Case(1000, 10, 50, target=0.7),
    Case(1000, 20, 100, target=0.3),
    Case(1000, 50, 100, target=0.2),
    Case(100, 10, 1000, target=0.7),
    Case(1, 3, 50, batch=256, target=1.5),
)
AMORTIZED = (
    Case(1, 2, 32, batch=20),
    Case(1, 3, 32, batch=20),
    Case(1, 3, 50, batch=256),
    Case(1, 2, 2, batch=100),
    Case(1, 20, 20, batch=1),
)
"""Small mixtures, as networks give one to each datum or each time step."""
FULL = (Case(1, 10, 20), Case(100, 10, 20), Case(1000, 10, 50), Case(1000, 20, 100))
FAMILIES = (Case(1, 10, 20), Case(100, 10, 20), Case(1000, 10, 50))
QUICK = (Case(20, 3, 4, target=1.5), Case(1, 2, 3, batch=4))
"""Sizes that take no time, to see whether everything works."""


@dataclass(frozen=True)
class Parameters:
    """Of one mixture or a batch of them, from which each contender takes what it has."""

    locs: Tensor
    """``(*B, K, D)``."""
    scales: Tensor
    """Standard deviations, ``(*B, K, D)``."""
    logits: Tensor
    """``(*B, K)``."""
    generator: torch.Generator

    @property
    def scale_tril(self) -> Tensor:
        """Cholesky factors with the scales on the diagonal, ``(*B, K, D, D)``."""
        D = self.scales.shape[-1]
        below = torch.randn(*self.scales.shape, D, generator=self.generator).tril(-1)
        return self.scales.diag_embed() + 0.1 / math.sqrt(D) * below


def overlapping(case: Case) -> Parameters:
    """Components that overlap in every dimension, as those of a fitted guide do."""
    generator = torch.Generator().manual_seed(0)
    shape = (*case.batch_shape, case.K, case.D)
    direction = torch.randn(shape, generator=generator)
    locs = 2 * direction / torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
    scales = (0.1 * torch.randn(shape, generator=generator)).exp()
    return Parameters(locs, scales, torch.randn(shape[:-1], generator=generator), generator)


def apart(case: Case) -> Parameters:
    """Components whose distance grows with the dimension and whose scales differ."""
    generator = torch.Generator().manual_seed(0)
    shape = (*case.batch_shape, case.K, case.D)
    locs = torch.randn(shape, generator=generator)
    scales = 0.5 + torch.rand(shape, generator=generator)
    return Parameters(locs, scales, torch.randn(shape[:-1], generator=generator), generator)
