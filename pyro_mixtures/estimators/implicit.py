"""Implicit reparameterization of all parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_mixtures.distributions.mixture_distribution import MixtureDistribution
from pyro_mixtures.estimators.estimated_mixture import check_normals
from pyro_mixtures.estimators.quantile_mixture import QuantileMixture
from pyro_mixtures.velocity.diagonal_implicit import conditional_cdf
from pyro_mixtures.velocity.full_implicit import full_conditional_cdf


class ImplicitMixture(QuantileMixture):
    """Samples that move by a triangular solve."""

    @staticmethod
    def _moved(z: Tensor, log_weights: Tensor, locs: Tensor, scales: Tensor) -> Tensor:
        transform = full_conditional_cdf if scales.dim() > locs.dim() else conditional_cdf
        cdf, jacobian = transform(z, log_weights, locs, scales)
        change = (cdf - cdf.detach()).unsqueeze(-1)  # (*B, S, D, 1)
        shift = torch.linalg.solve_triangular(jacobian.detach(), change, upper=False)
        return z - shift.squeeze(-1)

    @staticmethod
    def _elements(locs: Tensor, scales: Tensor) -> int:
        jacobian = locs[..., 0, :].numel() * locs.shape[-1]
        return max(jacobian, scales.numel())


def implicit(mixture: MixtureDistribution) -> ImplicitMixture:
    r"""Samples that keep the mixture's conditional quantiles when any parameter changes.

    .. math::
        z_\theta = z - J^{-1} [S(z; \theta) - S(z)], \qquad
        S_i(z) = P(Z_i \le z_i \mid Z_{<i} = z_{<i}), \qquad J = \partial S / \partial z

    with z, J and S(z) held fixed: implicit reparameterization of weights *and* components.

    Unbiased, with one evaluation of the cost for each sample; a triangular solve of
    :math:`O(D^2)` a sample, and :math:`O(K D^2)` for its matrix
    (:func:`~pyro_mixtures.estimators.graves` needs none). A pathwise estimator, to compare others
    with: its variance, too, grows with the distance of the components, and it depends on the
    order of the coordinates.

    Args:
        mixture: of any class whose components are Normals.

    Returns:
        A distribution that is equal to the mixture.

    Raises:
        ValueError: for what is no mixture of this package.
        NotImplementedError: for components that are not Normal.

    Reference:
        Figurnov, Mohamed and Mnih, *Implicit Reparameterization Gradients* (2018),
        https://arxiv.org/abs/1805.08498, Section 3.

    Example:
        >>> from pyro_mixtures.distributions import MixtureOfDiagNormals
        >>> locs = torch.zeros(1, 3, requires_grad=True)
        >>> q = implicit(MixtureOfDiagNormals(locs, torch.ones(1, 3), torch.zeros(1)))
        >>> q.rsample((5,)).sum().backward()
        >>> locs.grad
        tensor([[5., 5., 5.]])
    """
    check_normals(mixture, "implicit")
    return ImplicitMixture(mixture)
