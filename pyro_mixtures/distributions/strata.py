"""Samples of each component of a mixture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import Distribution

from pyro_mixtures.distributions.mixture import Mixture
from pyro_mixtures.distributions.mixture_distribution import MixtureDistribution
from pyro_mixtures.distributions.mixture_same_family import MixtureSameFamily
from pyro_mixtures.distributions.normal_mixture import NormalMixture


def component_samples(mixture: MixtureDistribution, sample_shape=torch.Size()) -> Tensor:
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
    shape = torch.Size(sample_shape)
    if isinstance(mixture, NormalMixture):
        return _normal_samples(mixture, shape)
    if isinstance(mixture, MixtureSameFamily):
        if mixture._normals is not None:
            flat = _normal_samples(mixture._normals, shape)  # of Normal numbers or matrices
            return flat.reshape(flat.shape[:-1] + mixture.event_shape)
        z = _rsample(mixture.component_distribution, shape)  # (*S, *B, K, *E)
        return z.movedim(len(shape) + len(mixture.batch_shape), len(shape))
    if isinstance(mixture, Mixture):
        return torch.stack([_rsample(each, shape) for each in mixture.components], len(shape))
    raise NotImplementedError(
        f"Expected a mixture whose components can be drawn, but got {type(mixture).__name__}"
    )


def weighty_samples(mixture: MixtureDistribution, sample_shape=torch.Size()) -> Tensor:
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


def _normal_samples(mixture: NormalMixture, sample_shape: Size) -> Tensor:
    core = mixture._core  # dimensions that expand added hold samples of the same components
    locs, scales = core._normals
    extra = mixture.batch_shape[: len(mixture.batch_shape) - len(core.batch_shape)]
    shape = sample_shape + extra
    noise = torch.randn(
        (shape.numel(), *core.batch_shape, *core.event_shape), dtype=locs.dtype, device=locs.device
    )  # (N, *B, D)
    locs = locs.movedim(-2, 0)  # (K, *B, D)
    if scales.dim() > locs.dim():
        # no gradients above the diagonal
        offset = torch.einsum("...kij,n...j->nk...i", scales.tril(), noise)
    else:
        offset = scales.movedim(-2, 0) * noise.unsqueeze(1)
    z = (locs + offset).reshape(
        shape + (core.num_components, *core.batch_shape, *core.event_shape)
    )
    return z.movedim(len(shape), len(sample_shape))


def _rsample(component: Distribution, sample_shape: Size) -> Tensor:
    if not component.has_rsample:
        kind: Any = component
        while hasattr(kind, "base_dist"):
            kind = kind.base_dist
        raise NotImplementedError(
            f"Expected components with reparameterized samples, but got {type(kind).__name__},"
            " which has none"
        )
    return component.rsample(sample_shape)
