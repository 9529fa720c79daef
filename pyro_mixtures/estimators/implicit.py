"""Implicit reparameterization of all parameters."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from pyro_mixtures.distributions.normal_mixture import NormalMixture
from pyro_mixtures.estimators.estimated_mixture import check_normals
from pyro_mixtures.estimators.quantiles import QuantileMixture
from pyro_mixtures.velocity.full_covariance import triangular_inverse
from pyro_mixtures.velocity.implicit import conditional_cdf
from pyro_mixtures.velocity.telescoping import normal_factors


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


def implicit(mixture: NormalMixture) -> ImplicitMixture:
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
        mixture: of any class made for Normal components.

    Returns:
        A distribution with the mixture's law.

    Raises:
        ValueError: for what is no mixture of this package.
        NotImplementedError: for ``MixtureSameFamily`` and ``Mixture``.

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


def full_conditional_cdf(
    z: Tensor, log_weights: Tensor, locs: Tensor, scale_tril: Tensor
) -> tuple[Tensor, Tensor]:
    r"""The distributional transform of a mixture of Normals with covariances of their own.

    With :math:`y_k = L_k^{-1} (z - \mu_k)` the conditionals of the components are
    :math:`F_{ki} = \Phi(y_{ki})`, and with the responsibilities :math:`r_k^{(i)}` given the
    coordinates before the i-th

    .. math::
        S_i = \sum_k r_k^{(i)} F_{ki}, \qquad
        J_{il} = \sum_k r_k^{(i)} \Big[ \phi(y_{ki}) (L_k^{-1})_{il}
        - (F_{ki} - S_i) \sum_{m < i} y_{km} (L_k^{-1})_{ml} \Big]

    Args:
        z: samples, ``(*B, S, D)``.
        log_weights: of the components, ``(*B, K)``.
        locs: ``(*B, K, D)``.
        scale_tril: ``(*B, K, D, D)``.

    Returns:
        S, ``(*B, S, D)``, differentiable in the parameters, and J, ``(*B, S, D, D)``, without
        gradient.
    """
    offset = (z.unsqueeze(-2) - locs.unsqueeze(-3)).movedim(-3, -1)  # (*B, K, D, S)
    standard = torch.linalg.solve_triangular(scale_tril, offset, upper=False)
    standard = standard.movedim(-1, -3)  # (*B, S, K, D)
    diagonal = scale_tril.diagonal(dim1=-2, dim2=-1).unsqueeze(-3)
    own = normal_factors(standard, diagonal)
    before = pad(own.log_pdf[..., :-1].cumsum(-1), (1, 0))  # of the coordinates before
    responsibility = (before + log_weights[..., None, :, None]).softmax(-2)
    cdf = (responsibility * own.cdf).sum(-2)  # (*B, S, D)
    with torch.no_grad():
        inverse = triangular_inverse(scale_tril).unsqueeze(-4)  # (*B, 1, K, D, D)
        density = responsibility * own.log_pdf.exp() * diagonal  # of the y
        excess = responsibility * (own.cdf - cdf.unsqueeze(-2))
        slope = -standard.unsqueeze(-1) * inverse  # of log q_km, (*B, S, K, D, D)
        slope = pad(slope[..., :-1, :].cumsum(-2), (0, 0, 1, 0))  # of all before the i-th
        flow = density.unsqueeze(-1) * inverse + excess.unsqueeze(-1) * slope
    return cdf, flow.sum(-3)
