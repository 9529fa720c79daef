"""One natural gradient step of a whole mixture."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_mixtures.infer.search.parts import TRUST, Parts
from pyro_mixtures.infer.search.sample_store import Seen

YOUNG, GROWN_UP = 15, 20
"""Steps in which a component keeps its first weight, and after which it may be dead."""

LEAST = 1.5e-3
"""Weight of a young component at least."""

UP, DOWN, LEAST_TRUST = 1.1, 0.8, 0.02
"""Of the trust region, after a step that was a gain or a loss for a component (VIPS)."""

RATE, LARGEST = 0.5, 2.0
"""Of a step of the logarithms of the weights, and its length at most."""

TOO_WIDE = 1e4
"""Standard deviations of the prior: a component as wide as that has no end."""


def improved(parts: Parts, seen: Seen, share: float) -> tuple[Parts, float, float]:
    """A step of all components and of the weights.

    Args:
        parts: the mixture.
        seen: samples, as it sees them.
        share: of a full step.

    Returns:
        The new mixture; the ELBO before the step, and the variance of log p - log q, of the
        components that have had time.
    """
    log_q = seen.log_q(parts.log_weights)
    responsibilities = seen.scaled * (parts.log_weights + (seen.largest - log_q)[:, None]).exp()
    score = parts.normals.score(seen.whitened, responsibilities, seen.inverse)
    gains = seen.gains(log_q)
    residual = torch.where(seen.with_mass.unsqueeze(-1), seen.gradients - score, 0.0)
    means = seen.weights.mT @ gains  # (K,)
    trusts = parts.trusts * torch.where(means > parts.gains, UP, DOWN)
    trusts = trusts.clamp(LEAST_TRUST, TRUST)
    normals, _ = parts.normals.moved(
        seen.whitened, seen.weights, residual, share * trusts, seen.jumps
    )
    elbo, spread = _measured(parts, gains, means, seen)
    change = RATE * max(share, 0.1) * (means - elbo)
    log_weights = (parts.log_weights + change.clamp(-LARGEST, LARGEST)).log_softmax(0)
    least = torch.where(parts.ages < YOUNG, math.log(LEAST), -math.inf)
    log_weights = torch.maximum(log_weights, least).log_softmax(0)
    return Parts(normals, log_weights, parts.ages + 1, trusts, means), elbo, spread


def _measured(parts: Parts, gains: Tensor, means: Tensor, seen: Seen) -> tuple[float, float]:
    """The ELBO of the components that have had time, and the variance of log p - log q."""
    old = parts.ages > GROWN_UP
    weights = parts.log_weights
    if bool(old.any()):
        weights = torch.where(old, weights, -math.inf)
    weights = weights.softmax(0)
    elbo = float(weights @ means)
    return elbo, float(weights @ (seen.weights.mT @ (gains - elbo).square()))


def endless(parts: Parts, scale: Tensor) -> list[int]:
    """Coordinates in which a component with weight is wider than any proper posterior."""
    heavy = parts.log_weights > math.log(LEAST)
    wide = parts.normals.stddevs[heavy] > TOO_WIDE * scale
    return wide.any(0).nonzero().squeeze(-1).tolist()
