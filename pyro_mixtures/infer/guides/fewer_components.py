"""Weights of components in closed form, and components to do without."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_mixtures.distributions import MixtureDistribution
from pyro_mixtures.normals.bounds import bhattacharyya_distances
from pyro_mixtures.numerics.precision import double

STEP = 0.5
"""Of the logarithms of the weights, in the direction of the fixed point."""

STEPS, CHANGE = 1000, 1e-6
"""At most so many, until no weight changes by more."""


def best_log_weights(log_p: Tensor, log_q: Tensor) -> Tensor:
    r"""The fixed point of :math:`\pi_k \propto \pi_k \exp E_k[\log p - \log q]`, ``(K,)``.

    Args:
        log_p: of the target at draws of each component, ``(S, K)``.
        log_q: of all components at these, ``(S, K, K)``, the last for the densities.
    """
    log_p, log_q = double(log_p, log_q)
    log_weights = log_p.new_full(log_p.shape[1:], -math.log(log_p.shape[1]))
    alive = log_p.isfinite().all(0)  # else the mean is -inf
    log_p = torch.where(alive, log_p, 0)
    for _ in range(STEPS):
        density = (log_weights + log_q).logsumexp(-1)  # (S, K)
        gain = (log_p - density).mean(0)
        new = torch.where(alive, log_weights + STEP * gain, -torch.inf).log_softmax(-1)
        changed = (new.exp() - log_weights.exp()).abs().amax()
        log_weights = new
        if changed < CHANGE * STEP:
            break
    return log_weights


def overlaps(mixture: MixtureDistribution, num_samples: int) -> Tensor:
    r"""Bhattacharyya coefficients :math:`\int \sqrt{q_j q_k}`, ``(K, K)``; of Normals exact ones.

    Args:
        mixture: without batch shape.
        num_samples: of each component, where they are no Normals.
    """
    try:
        locs, scales = mixture.components.normals("overlaps")
    except NotImplementedError:
        z = mixture.components.sample(num_samples)  # (S, K, D)
        log_q = mixture.component_log_prob(z.to(mixture.component_logits))  # (S, K, K)
        own = log_q.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
        sech = 1 / ((own - log_q) / 2).cosh()
        mean = sech.nan_to_num(0).mean(0)
        return (mean + mean.mT) / 2
    locs, scales = double(locs, scales)
    scales = scales.expand(len(locs), *scales.shape[1:])
    return (-bhattacharyya_distances(locs, scales, locs, scales)).exp().nan_to_num(0)


def merged(
    weights: Tensor, overlap: Tensor, min_weight: float, max_overlap: float
) -> tuple[Tensor, Tensor]:
    """Components to keep, and their weights.

    From the heaviest on a component is kept if it overlaps less with all that are kept; else its
    weight goes to that with which it overlaps most. Those that are too light are left out then.

    Returns:
        Indices in their order, ``(K',)``, and weights that sum to one, ``(K',)``.
    """
    kept: list[int] = []
    mass = weights.clone()
    for k in weights.argsort(descending=True).tolist():
        twin = max(kept, key=lambda j: float(overlap[k, j]), default=k)
        if kept and overlap[k, twin] > max_overlap:
            mass[twin] += mass[k]
        else:
            kept.append(k)
    heaviest = max(kept, key=lambda j: float(mass[j]))
    index = torch.tensor([k for k in sorted(kept) if mass[k] >= min_weight or k == heaviest])
    return index, mass[index] / mass[index].sum()
