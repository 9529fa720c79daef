"""Mixtures of Normals that share one covariance."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.distributions.normal_mixture import NormalMixture
from pyro_mixtures.velocity.displacement import displacement
from pyro_mixtures.velocity.implicit import spherical_implicit
from pyro_mixtures.velocity.spherical import (
    shared_displacement,
    spherical_distance,
    spherical_log_prob,
    spherical_pairwise,
    spherical_telescoping,
    whitened,
)
from pyro_mixtures.velocity.whitening import whiten


def _of_unit_scale(transport):
    """A transport for components of one shape as one for components of one covariance."""
    shaped = whitened(transport)

    def unit(z, grad, log_prob, within, locs, factor, *, precision):
        scales = torch.ones_like(locs[..., 0])
        return shaped(z, grad, log_prob, within, factor, scales, locs, precision=precision)

    return unit


_whitened_displacement = _of_unit_scale(shared_displacement)


def _displacement(z, grad, log_prob, within, locs, factor, *, precision):
    if z.shape[-2] == 1 and factor.dim() < locs.dim():  # to whiten one sample does not pay
        scales = factor.unsqueeze(-2).expand_as(locs)
        return displacement(z, grad, log_prob, within, locs, scales, precision=precision)
    return _whitened_displacement(z, grad, log_prob, within, locs, factor, precision=precision)


class _SharedCovariance(NormalMixture):
    """The parameters are ``locs`` and a factor of the covariance, diagonal or triangular."""

    transports = {
        "displacement": _displacement,
        "pairwise": _of_unit_scale(spherical_pairwise),
        "telescoping": _of_unit_scale(spherical_telescoping),
        "implicit": _of_unit_scale(spherical_implicit),
    }

    @staticmethod
    def _log_components(z: Tensor, log_weights: Tensor, locs: Tensor, factor: Tensor) -> Tensor:
        return spherical_log_prob(z, log_weights, factor, torch.ones_like(log_weights), locs)

    @staticmethod
    def _component_distance(locs: Tensor, factor: Tensor) -> Tensor:
        return spherical_distance(factor, torch.ones_like(locs[..., 0]), locs)

    @classmethod
    def _component_vjp(
        cls, z: Tensor, grad: Tensor, responsibilities: Tensor, locs: Tensor, factor: Tensor
    ) -> tuple[Tensor, Tensor]:
        center = locs.mean(-2, keepdim=True)
        offset = (z - center).sub_(responsibilities @ (locs - center))  # from the likely means
        return responsibilities.mT @ grad, cls._factor_vjp(whiten(offset, factor), grad)


class MixtureOfDiagNormalsSharedCovariance(_SharedCovariance):
    r"""Mixture of K Normals in D dimensions that differ in their means alone.

    .. math::
        q(z) = \sum_{j=1}^K \pi_j \prod_{i=1}^D N(z_i \mid \mu_{ji}, \sigma_i), \qquad
        \pi = \mathrm{softmax}(\text{component\_logits})

    ``rsample`` carries unbiased gradients to all three parameters.

    Args:
        locs: means :math:`\mu`, shape ``(*B, K, D)``.
        coord_scale: standard deviations :math:`\sigma > 0`, shape ``(*B, D)``.
        component_logits: unnormalized log weights, shape ``(*B, K)``.
        transport: the velocity field for the weights: ``"displacement"`` (components slide to a
            moment-matched hub, in the space that the means span), ``"pairwise"`` (mass moves along
            the lines between the means; arrays of shape ``S x K x K``, in slices),
            ``"telescoping"`` (one coordinate at a time; arrays of shape ``S x K x D``, in slices)
            or ``"implicit"`` (samples keep their conditional quantiles, coordinate after
            coordinate: Figurnov et al., to compare with; arrays as for telescoping).
        weight_gradient: ``"clustered"``, ``"pathwise"`` or ``"hybrid"``: how the weights get
            their gradient (:class:`~pyro_mixtures.distributions.MixtureDistribution`).
        validate_args: check the values of the arguments and of ``log_prob``'s argument (to be set
            to False under ``torch.func.vmap``, where values cannot be looked at).

    Raises:
        ValueError: for shapes that do not fit, K or D of zero, scales that are not positive, NaN,
            logits of ``+inf``, or an unknown ``transport`` or ``weight_gradient``.

    References:
        Jankowiak and Karaletsos, *Pathwise Derivatives for Multivariate Distributions* (2019),
        https://arxiv.org/abs/1806.01856, Eq. 12 and 15 (corrected, see
        :func:`~pyro_mixtures.velocity.pairwise.pairwise`).

    Example:
        >>> _ = torch.manual_seed(0)
        >>> coord_scale = torch.ones(2, requires_grad=True)
        >>> locs = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
        >>> q = MixtureOfDiagNormalsSharedCovariance(locs, coord_scale, torch.zeros(2))
        >>> q.variance
        tensor([2., 1.], grad_fn=<SqueezeBackward1>)
        >>> q.rsample((100_000,)).square().sum(-1).mean().backward()
        >>> torch.allclose(coord_scale.grad, torch.tensor([2.0, 2.0]), atol=0.05)
        True
    """

    arg_constraints = {
        "locs": constraints.independent(constraints.real, 2),
        "coord_scale": constraints.independent(constraints.positive, 1),
        "component_logits": constraints.real_vector,
    }
    component_parameters = {"locs": "KD", "coord_scale": "D"}

    locs: Tensor
    coord_scale: Tensor

    def __init__(
        self,
        locs: Tensor,
        coord_scale: Tensor,
        component_logits: Tensor,
        transport: str = "displacement",
        weight_gradient: str = "clustered",
        validate_args: bool | None = None,
    ) -> None:
        components = {"locs": locs, "coord_scale": coord_scale}
        super().__init__(components, component_logits, transport, weight_gradient, validate_args)

    @property
    def _normals(self) -> tuple[Tensor, Tensor]:
        return self.locs, self.coord_scale.unsqueeze(-2)

    @staticmethod
    def _draw(index: Tensor, locs: Tensor, scale: Tensor) -> Tensor:
        loc = locs.gather(-2, index.unsqueeze(-1).expand(*index.shape, locs.shape[-1]))
        return torch.addcmul(loc, torch.randn_like(loc), scale.unsqueeze(-2))

    @staticmethod
    def _factor_vjp(standard: Tensor, grad: Tensor) -> Tensor:
        return (standard * grad).sum(-2)


class MixtureOfNormalsSharedCovariance(_SharedCovariance):
    r"""Mixture of K Normals in D dimensions with one covariance, that of correlated coordinates.

    .. math::
        q(z) = \sum_{j=1}^K \pi_j N(z \mid \mu_j, L L^T), \qquad
        \pi = \mathrm{softmax}(\text{component\_logits})

    ``rsample`` carries unbiased gradients to all three parameters; that of L is lower triangular.

    Args:
        locs: means :math:`\mu`, shape ``(*B, K, D)``.
        scale_tril: the lower triangular L with positive diagonal, shape ``(*B, D, D)``.
        component_logits: unnormalized log weights, shape ``(*B, K)``.
        transport: as for :class:`MixtureOfDiagNormalsSharedCovariance`, of the whitened samples.
        weight_gradient: ``"clustered"``, ``"pathwise"`` or ``"hybrid"``: how the weights get
            their gradient (:class:`~pyro_mixtures.distributions.MixtureDistribution`).
        validate_args: check the values of the arguments and of ``log_prob``'s argument (to be set
            to False under ``torch.func.vmap``, where values cannot be looked at).

    Raises:
        ValueError: for shapes that do not fit, K or D of zero, a factor that is not lower
            triangular with a positive diagonal, NaN, logits of ``+inf``, or an unknown
            ``transport`` or ``weight_gradient``.

    References:
        Jankowiak and Karaletsos, *Pathwise Derivatives for Multivariate Distributions* (2019),
        https://arxiv.org/abs/1806.01856, Eq. 12 and 15.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> scale_tril = torch.tensor([[1.0, 0.0], [0.5, 1.0]], requires_grad=True)
        >>> locs = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
        >>> q = MixtureOfNormalsSharedCovariance(locs, scale_tril, torch.zeros(2))
        >>> q.rsample((100_000,)).prod(-1).mean().backward()  # of E[z_0 z_1] = L_00 L_10
        >>> torch.allclose(scale_tril.grad, torch.tensor([[0.5, 0.0], [1.0, 0.0]]), atol=0.05)
        True
    """

    arg_constraints = {
        "locs": constraints.independent(constraints.real, 2),
        "scale_tril": constraints.lower_cholesky,
        "component_logits": constraints.real_vector,
    }
    component_parameters = {"locs": "KD", "scale_tril": "DD"}

    locs: Tensor
    scale_tril: Tensor

    def __init__(
        self,
        locs: Tensor,
        scale_tril: Tensor,
        component_logits: Tensor,
        transport: str = "displacement",
        weight_gradient: str = "clustered",
        validate_args: bool | None = None,
    ) -> None:
        components = {"locs": locs, "scale_tril": scale_tril}
        super().__init__(components, component_logits, transport, weight_gradient, validate_args)

    @property
    def _normals(self) -> tuple[Tensor, Tensor]:
        return self.locs, self.scale_tril.unsqueeze(-3)

    @staticmethod
    def _draw(index: Tensor, locs: Tensor, scale_tril: Tensor) -> Tensor:
        loc = locs.gather(-2, index.unsqueeze(-1).expand(*index.shape, locs.shape[-1]))
        return loc + torch.randn_like(loc) @ scale_tril.mT

    @staticmethod
    def _factor_vjp(standard: Tensor, grad: Tensor) -> Tensor:
        return (grad.mT @ standard).tril()
