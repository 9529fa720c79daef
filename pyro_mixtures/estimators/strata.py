"""Samples of each component of a mixture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_mixtures.distributions.mixture_distribution import MixtureDistribution


def component_samples(
    mixture: MixtureDistribution, sample_shape: Sequence[int] = torch.Size()
) -> Tensor:
    r"""Reparameterized samples of all components, a stratified sample of the mixture.

    .. math::
        \nabla E_q[f] = \nabla \sum_k \pi_k E_\epsilon[f(z_k(\epsilon))], \qquad
        z_k = \mu_k + L_k \epsilon

    Normal components share their random numbers :math:`\epsilon`: the differences between the
    components' costs, which are what the weights learn from, then have a lower variance in all but
    few dimensions. Other components are drawn independently.

    Args:
        mixture: any of this package. The samples have the gradients of its components; the weights
            (``mixture.log_weights``) are the caller's to use.
        sample_shape: how many samples of each component.

    Returns:
        ``(*sample_shape, K, *batch_shape, *event_shape)``.

    Raises:
        NotImplementedError: for components without ``rsample``.

    Reference:
        Morningstar, Vikram, Ham, Gallagher and Dillon, *Automatic Differentiation Variational
        Inference with Mixtures* (2020), https://arxiv.org/abs/2003.01687.

    Example:
        >>> from pyro_mixtures.distributions import MixtureOfDiagNormals
        >>> _ = torch.manual_seed(0)
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> locs = torch.tensor([[-1.0], [1.0]])
        >>> q = MixtureOfDiagNormals(locs, torch.ones(2, 1), logits)
        >>> costs = component_samples(q, (1000,)).squeeze(-1).mean(0)  # of f(z) = z, (K,)
        >>> (q.log_weights.exp() * costs).sum().backward()
        >>> logits.grad  # exact, for the random numbers are common
        tensor([-0.5000,  0.5000])
    """
    shape, core = torch.Size(sample_shape), mixture.core
    # dimensions that expand added hold samples of the same components
    added = mixture.batch_shape[: len(mixture.batch_shape) - len(core.batch_shape)]
    z = core.components.rsample((shape + added).numel())  # (*B, S, K, D)
    first = len(core.batch_shape)
    z = z.movedim((first, first + 1), (0, 1))  # (S, K, *B, D)
    z = z.reshape(shape + added + (mixture.num_components,) + core.batch_shape + core.event_shape)
    return z.movedim(len(shape + added), len(shape))


def weighty_samples(
    mixture: MixtureDistribution, sample_shape: Sequence[int] = torch.Size()
) -> Tensor:
    """:func:`component_samples`, of the likeliest component in place of those without weight.

    For their costs, that count nothing, may have values or slopes that are not finite, and zero
    times those is NaN. No gradient flows through what takes their place.
    """
    shape = torch.Size(sample_shape)
    z = component_samples(mixture, shape)
    weights = mixture.log_weights.detach().exp().movedim(-1, 0)  # (K, *B)
    weights = weights.reshape(weights.shape + (1,) * mixture.event_dim)
    likeliest = weights.argmax(0, keepdim=True).expand(shape + (1,) + z.shape[len(shape) + 1 :])
    return torch.where(weights > 0, z, z.detach().gather(len(shape), likeliest))
