"""Annealing of the KL divergence of guide and prior."""

from __future__ import annotations

from pyro.poutine.messenger import Messenger


class Annealing(Messenger):
    """Weighs the terms of the latent sites, in the model and in the guide.

    Args:
        weight: of their log densities; those of the data keep theirs.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg) -> None:
        if not msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.weight
