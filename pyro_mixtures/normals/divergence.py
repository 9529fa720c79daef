"""Kullback-Leibler divergences from and to mixtures of Normals."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from pyro_mixtures.components import Components
from pyro_mixtures.normals.bounds import mixture_kl_bounds


def kl_bounds(p: Distribution, q: Distribution) -> tuple[Tensor, Tensor]:
    r"""Bounds of :math:`KL(p \| q)` where p, q or both are mixtures of Normals, without samples.

    The formulas are at :func:`~pyro_mixtures.normals.mixture_kl_bounds`. Both bounds
    are differentiable in all parameters, the lower one where it is above zero.
    ``torch.distributions.kl_divergence`` knows neither: it is for what is exact, and
    ``TraceMeanField_ELBO``, which asks it, samples the divergence instead. What subtracts the
    upper bound from a log likelihood is still a lower bound of the log evidence.

    Args:
        p: a mixture of Normals, ``Normal(...).to_event(1)`` or a ``MultivariateNormal``.
        q: one of the same; the batch shapes broadcast.

    Returns:
        The lower and the upper bound, each of the broadcast batch shape. They agree, and are
        exact, if p and q are one Normal each.

    Raises:
        NotImplementedError: for other distributions.
        ValueError: if p and q have different event shapes.

    References:
        Durrieu, Thiran and Kelly, *Lower and upper bounds for approximation of the
        Kullback-Leibler divergence between Gaussian mixture models* (ICASSP 2012); Hershey and
        Olsen, *Approximating the Kullback Leibler divergence between Gaussian mixture models*
        (ICASSP 2007); Kolchinsky and Tracey, *Estimating mixture entropy with pairwise distances*,
        Entropy 19(7), 2017.

    Example:
        >>> import torch
        >>> from torch.distributions import MultivariateNormal
        >>> from pyro_mixtures.distributions import MixtureOfDiagNormals
        >>> locs = torch.tensor([[-6.0, 0.0], [6.0, 0.0]])
        >>> p = MixtureOfDiagNormals(locs, torch.ones(2, 2), torch.zeros(2))
        >>> q = MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> kl_bounds(p, q)  # both are 18 - log 2 to these digits
        (tensor(17.3069), tensor(17.3069))
    """
    if p.event_shape != q.event_shape:
        raise ValueError(
            "Expected distributions of the same event shape, but got"
            f" {tuple(p.event_shape)} and {tuple(q.event_shape)}"
        )
    return mixture_kl_bounds(*as_normals(p, "kl_bounds"), *as_normals(q, "kl_bounds"))


def as_normals(distribution: Any, purpose: str) -> tuple[Tensor, Tensor, Tensor]:
    """Log weights ``(*B, K)``, means and scales of the Normals that a distribution consists of.

    Means and scales are those of :meth:`~pyro_mixtures.components.Components.normals`.

    Raises:
        NotImplementedError: for other distributions, naming the purpose.
    """
    components = getattr(distribution, "components", None)
    if isinstance(components, Components):
        return distribution.log_weights, *components.normals(purpose)
    if isinstance(distribution, MultivariateNormal):
        loc, scale = distribution.loc, distribution.scale_tril.unsqueeze(-3)
    elif (
        isinstance(distribution, Independent)
        and isinstance(distribution.base_dist, Normal)
        and distribution.reinterpreted_batch_ndims == 1
    ):
        loc, scale = distribution.base_dist.loc, distribution.base_dist.scale.unsqueeze(-2)
    else:
        raise NotImplementedError(
            f"{purpose} is for mixtures of Normals, Normal(...).to_event(1) and"
            f" MultivariateNormal, but not for {distribution}"
        )
    return loc.new_zeros(loc.shape[:-1] + (1,)), loc.unsqueeze(-2), scale
