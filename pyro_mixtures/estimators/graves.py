"""The distributional transform as a recursion over the coordinates."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_mixtures.distributions.mixture_distribution import MixtureDistribution
from pyro_mixtures.estimators.estimated_mixture import check_normals
from pyro_mixtures.estimators.quantile_mixture import QuantileMixture
from pyro_mixtures.velocity.telescoping import normal_cdf


class GravesMixture(QuantileMixture):
    """Samples that move one coordinate after the other."""

    @staticmethod
    def _moved(z: Tensor, log_weights: Tensor, locs: Tensor, scales: Tensor) -> Tensor:
        moved = []
        log_weights = log_weights.unsqueeze(-2)  # given the coordinates before, (*B, S or 1, K)
        for d in range(z.shape[-1]):
            place = z[..., d : d + 1]  # (*B, S, 1)
            loc, scale = locs[..., d].unsqueeze(-2), scales[..., d].unsqueeze(-2)  # (*B, 1, K)
            weights, standard = log_weights.exp(), (place - loc) / scale
            cdf = (weights * normal_cdf(standard)).sum(-1, keepdim=True)
            with torch.no_grad():
                density = (weights * (-standard.square() / 2).exp() / scale).sum(-1, keepdim=True)
                density = density / math.sqrt(2 * math.pi)
            place = place - (cdf - cdf.detach()) / density
            moved.append(place)
            log_density = -((place - loc) / scale).square() / 2 - scale.log()
            log_weights = (log_weights + log_density).log_softmax(-1)
        return torch.cat(moved, -1)

    @staticmethod
    def _elements(locs: Tensor, scales: Tensor) -> int:
        return locs.numel()


def graves(mixture: MixtureDistribution) -> GravesMixture:
    r"""Samples that keep the mixture's conditional quantiles, coordinate after coordinate.

    For d = 1, ..., D, with the weights :math:`\pi_j^{(d)}` given the coordinates before,

    .. math::
        z_d(\theta) = z_d - \frac{F(z_d; \theta, z_{<d}(\theta)) - F(z_d)}{q(z_d \mid z_{<d})},
        \qquad F = \sum_j \pi_j^{(d)} \Phi\Big(\frac{z_d - \mu_{jd}}{\sigma_{jd}}\Big), \qquad
        \pi_j^{(d+1)} \propto \pi_j^{(d)} N(z_d(\theta) \mid \mu_{jd}, \sigma_{jd})

    whose derivatives reverse mode finds in :math:`O(K D)`. For each sample the same gradient as
    :func:`~pyro_mixtures.estimators.implicit`, which works with D x D matrices but has no loop
    over the coordinates: for many samples this one is the faster, for few the other.

    Unbiased, with one evaluation of the cost for each sample. A pathwise estimator, to compare
    others with: its variance, too, grows with the distance of the components, and it depends on
    the order of the coordinates.

    Args:
        mixture: of any class whose components are Normals with diagonal covariances.

    Returns:
        A distribution that is equal to the mixture.

    Raises:
        ValueError: for what is no mixture of this package.
        NotImplementedError: for components with other covariances, or that are not Normal.

    Reference:
        Graves, *Stochastic Backpropagation through Mixture Density Distributions* (2016),
        https://arxiv.org/abs/1607.05690. He moves samples in this way for the weights alone, and
        the components' parameters by the one that was drawn.

    Example:
        >>> from pyro_mixtures.distributions import MixtureOfDiagNormals
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> q = MixtureOfDiagNormals(torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1), logits)
        >>> graves(q).rsample((1000,)).sum().backward()
        >>> bool(logits.grad[0] < 0 < logits.grad[1])
        True
    """
    check_normals(mixture, "graves", diagonal=True)
    return GravesMixture(mixture)
