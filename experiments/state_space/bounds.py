"""Bounds on log p(x) by a trained guide: the ELBO and the importance-weighted bound."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from experiments.state_space.guide import MixtureGuide
from experiments.state_space.model import log_joint
from pyro_mixtures.diagnostics import Evaluation

CHUNK = 200
"""Particles of all sequences that are drawn at once."""


@torch.no_grad()
def log_weights(guide: MixtureGuide, observations: Tensor, num_particles: int) -> Tensor:
    """``log p(x, z) - log q(z | x)`` of samples of the guide, ``(S, N)``."""
    found = []
    for start in range(0, num_particles, CHUNK):
        states, log_density = guide.sample(observations, min(CHUNK, num_particles - start))
        found.append(log_joint(states, observations) - log_density)
    return torch.cat(found).double()


def lower_bounds(
    guide: MixtureGuide, observations: Tensor, num_particles: int = 200
) -> dict[str, float]:
    r"""Two lower bounds on log p(x), in nats a sequence, averaged over the sequences.

    .. math::
        \frac{1}{S} \sum_s \log w_s \qquad \text{and} \qquad \log \frac{1}{S} \sum_s w_s, \qquad
        w_s = \frac{p(x, z_s)}{q(z_s \mid x)}, \quad z_s \sim q

    The density is always that of the mixtures, and so are the samples: a guide that was trained
    with relaxed samples is judged as the mixture of its parameters.

    Args:
        guide: a trained guide.
        observations: ``(N, T, 2)``.
        num_particles: S, at least 25. Its draws are taken from the global random state.

    Returns:
        ``elbo`` and ``iw_bound``, and their standard errors ``elbo_se`` and ``iw_bound_se``. These
        are over the particles: what other particles on the same sequences would change, and not
        what other sequences would. That of the second is too small where few weights prevail.
        ``sequence_se`` is the one over sequences, of the first.

    Raises:
        ValueError: for ``num_particles`` below 25.

    Reference:
        Burda, Grosse and Salakhutdinov, *Importance Weighted Autoencoders* (2016),
        https://arxiv.org/abs/1509.00519, for the second bound.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> found = lower_bounds(MixtureGuide(2), torch.zeros(3, 10, 2))
        >>> found["elbo"] < found["iw_bound"]
        True
    """
    found = Evaluation.from_log_weights(log_weights(guide, observations, num_particles))
    count = len(observations)
    return {
        "elbo": found.elbo.mean().item(),
        "elbo_se": found.elbo_error.norm().item() / count,
        "sequence_se": found.elbo.std().item() / math.sqrt(count),
        "iw_bound": found.iw_bound.mean().item(),
        "iw_bound_se": found.iw_bound_error.norm().item() / count,
    }
