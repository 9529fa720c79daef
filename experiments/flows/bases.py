"""What is below the couplings: a Normal, mixtures, a relaxed one; and RAD beside them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from experiments.flows.coupling import couplings, spread_widths
from experiments.flows.rad import RAD
from pyro_mixtures import MixtureFlow, MixtureOfDiagNormals
from pyro_mixtures.distributions import GumbelSoftmaxMixtureOfDiagNormals

BASES = ("Normal", "K = 2", "K = 5", "K = 9", "Gumbel, K = 9", "RAD")
"""Names of models of the plane."""
LAYERS = 8
"""Couplings."""
PARAMETERS = 2000
"""Of each model of the plane."""
TEMPERATURE = 0.5
"""Of the relaxed choice."""
NESTED = 64
"""Relaxed choices for its density, in a step."""


class Base(nn.Module):
    """Parameters of diagonal Normals, R copies of K in D dimensions.

    Args:
        mixtures: R of them, at which to start.
        nested: for a relaxed mixture, how many choices its density is estimated by.
    """

    def __init__(self, mixtures: list[MixtureOfDiagNormals], *, nested: int | None = None) -> None:
        super().__init__()
        self.locs = nn.Parameter(torch.stack([each.locs for each in mixtures]))
        self.log_scale = nn.Parameter(torch.stack([each.coord_scale for each in mixtures]).log())
        self.logits = nn.Parameter(torch.stack([each.component_logits for each in mixtures]))
        self.nested = nested

    def forward(self, weight_gradient: str = "clustered") -> Any:
        """The distribution, of batch shape ``(R,)``."""
        values = (self.locs, self.log_scale.exp(), self.logits)
        if self.nested is None:
            options: Any = {"weight_gradient": weight_gradient, "validate_args": False}
            return MixtureOfDiagNormals(*values, **options)
        return GumbelSoftmaxMixtureOfDiagNormals(
            *values, TEMPERATURE, num_nested=self.nested, validate_args=False
        )


class Flow(nn.Module):
    """Couplings on a base.

    Args:
        base: the base.
        widths: hidden units of the couplings; none of them for the base alone.
    """

    couplings: Any

    def __init__(self, base: Base, widths: list[int]) -> None:
        super().__init__()
        self.base = base
        self.couplings = couplings(len(base.locs), base.locs.shape[-1], widths)

    def forward(self, weight_gradient: str = "clustered") -> Any:
        """The distribution, of batch shape ``(R,)``."""
        base = self.base(weight_gradient)
        transforms: list[Any] = list(self.couplings)
        return MixtureFlow(base, transforms, validate_args=False)

    def log_prob(self, x: Tensor) -> Tensor:
        """``(*S, R, D) -> (*S, R)``."""
        return self().log_prob(x)

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """``(count, R, D)``."""
        return self().sample((count,))


def plane_model(name: str, data: Tensor, copies: int) -> Flow | RAD:
    """A model in :data:`BASES` of data in the plane, ``(N, 2)``.

    All have as many parameters, but for three at most. Mixtures start at one that fits the data.
    """
    if name == "RAD":
        return RAD(copies, LAYERS, PARAMETERS)
    num_components = 1 if name == "Normal" else int(name[-1])
    starts = [
        MixtureOfDiagNormals.from_samples(data[:2000], num_components, seed=seed)
        for seed in range(copies)
    ]
    base = Base(starts, nested=NESTED if name.startswith("Gumbel") else None)
    left = PARAMETERS - 5 * num_components
    return Flow(base, spread_widths(LAYERS, 2, left))
