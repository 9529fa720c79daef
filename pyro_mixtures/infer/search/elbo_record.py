"""The ELBO of each step, and whether it still rises."""

from __future__ import annotations

GAIN, SPREAD, EXACT, SLOW = 0.01, 0.05, 0.01, 0.01
"""The ELBO is flat if in a cycle it gains less nats than the first, and the variance of log p -
log q is below the second; or if that is below the third; or, in many dimensions, if the gain is
below the fourth times the variance, so that to close the gap would take very long."""


class ElboRecord:
    """What each step has measured.

    Attributes:
        elbos: by the samples of the step.
        spreads: variances of log p - log q.
    """

    def __init__(self) -> None:
        self.elbos: list[float] = []
        self.spreads: list[float] = []

    def __len__(self) -> int:
        return len(self.elbos)

    def add(self, elbo: float, spread: float) -> None:
        """Of one more step."""
        self.elbos.append(elbo)
        self.spreads.append(spread)

    def is_flat(self, cycle: int, *, many_dimensions: bool) -> bool:
        """Whether the last so many steps have gained next to nothing on those before."""
        if len(self) < 3 * cycle:
            return False
        recent, before = self.elbos[-cycle:], self.elbos[-2 * cycle : -cycle]
        spread = sum(self.spreads[-cycle:]) / cycle
        gain = (sum(recent) - sum(before)) / cycle
        if many_dimensions and gain < SLOW * spread:
            return True
        return spread < EXACT or (gain < GAIN and spread < SPREAD)
