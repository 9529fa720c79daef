"""The mixture that a search works on."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from pyro_mixtures.infer.search.natural_normals import FullNormals

TRUST = 0.3
"""Divergence, in nats, that a step of a new component may have."""


@dataclass(frozen=True)
class Parts:
    """Normals with weights, and what is known of the way of each.

    Args:
        normals: K of them.
        log_weights: normalized, ``(K,)``.
        ages: how many steps each has made, ``(K,)``.
        trusts: divergence, in nats, that each may have had in its last step, ``(K,)``.
        gains: expectation of log p - log q under each at its last step, ``(K,)``.
    """

    normals: FullNormals
    log_weights: Tensor
    ages: Tensor
    trusts: Tensor
    gains: Tensor

    @classmethod
    def new(cls, normals: FullNormals, log_weights: Tensor) -> Parts:
        """Of any weights, which are normalized."""
        return cls(
            normals=normals,
            log_weights=log_weights.log_softmax(0),
            ages=torch.zeros(len(normals), dtype=torch.long),
            trusts=torch.full_like(log_weights, TRUST),
            gains=torch.full_like(log_weights, -math.inf),
        )

    def __len__(self) -> int:
        return len(self.normals)

    def weighted(self, log_weights: Tensor) -> Parts:
        """With other weights, which are normalized."""
        return replace(self, log_weights=log_weights.log_softmax(0))

    def chosen(self, index: Tensor) -> Parts:
        """Some of them, with their weights made to sum to one."""
        parts = Parts(*(getattr(self, field.name)[index] for field in fields(self)))
        return parts.weighted(parts.log_weights)

    def joined(self, normals: FullNormals, weight: float) -> Parts:
        """With further ones, each of a weight against one for all the rest."""
        new = Parts.new(normals, self.log_weights.new_zeros(len(normals)))
        log_weights = torch.full_like(new.log_weights, math.log(weight))
        rest = (
            torch.cat([getattr(self, name), getattr(new, name)])
            for name in ("ages", "trusts", "gains")
        )
        every = torch.cat([self.log_weights, log_weights]).log_softmax(0)
        return Parts(self.normals.beside(normals), every, *rest)

    def log_prob(self, z: Tensor) -> Tensor:
        """Of the mixture at ``z (S, D)``, ``(S,)``."""
        return (self.component_log_prob(z) + self.log_weights).logsumexp(-1)

    def component_log_prob(self, z: Tensor) -> Tensor:
        """Of each component, ``(S, K)``."""
        return self.normals.log_prob(self.normals.whiten(z, self.normals.inverse()))
