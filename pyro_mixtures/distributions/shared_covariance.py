"""Mixtures of Normals that share one covariance."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.components import Cholesky, Diagonal, Normals, Shared
from pyro_mixtures.distributions.parametric_mixture import ParametricMixture


class MixtureOfNormalsSharedCovariance(ParametricMixture):
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
        >>> import torch
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
    transports = Shared.transports

    locs: Tensor
    scale_tril: Tensor

    def __init__(
        self,
        locs: Tensor,
        scale_tril: Tensor,
        component_logits: Tensor,
        *,
        transport: str = "auto",
        weight_gradient: str = "clustered",
        validate_args: bool | None = None,
    ) -> None:
        components = {"locs": locs, "scale_tril": scale_tril}
        super().__init__(
            components,
            component_logits,
            transport=transport,
            weight_gradient=weight_gradient,
            validate_args=validate_args,
        )

    @staticmethod
    def _components(locs, scale_tril):
        return Normals(locs, Shared(Cholesky(scale_tril)))


class MixtureOfDiagNormalsSharedCovariance(ParametricMixture):
    r"""Mixture of K Normals in D dimensions that differ in their means alone.

    .. math::
        q(z) = \sum_{j=1}^K \pi_j \prod_{i=1}^D N(z_i \mid \mu_{ji}, \sigma_i), \qquad
        \pi = \mathrm{softmax}(\text{component\_logits})

    ``rsample`` carries unbiased gradients to all three parameters.

    Args:
        locs: means :math:`\mu`, shape ``(*B, K, D)``.
        coord_scale: standard deviations :math:`\sigma > 0`, shape ``(*B, D)``.
        component_logits: unnormalized log weights, shape ``(*B, K)``.
        transport: the velocity field for the weights, ``"auto"`` for the first of them:
            ``"displacement"`` (components slide to a moment-matched hub, in the space that the
            means span), ``"pairwise"`` (mass moves along the lines between the means; arrays of
            shape ``S x K x K``, in slices), ``"telescoping"`` (one coordinate at a time; arrays of
            shape ``S x K x D``, in slices) or ``"implicit"`` (samples keep their conditional
            quantiles, coordinate after coordinate: Figurnov et al., to compare with; arrays as for
            telescoping).
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
        >>> import torch
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
    transports = Shared.transports
    linear_image = MixtureOfNormalsSharedCovariance

    locs: Tensor
    coord_scale: Tensor

    def __init__(
        self,
        locs: Tensor,
        coord_scale: Tensor,
        component_logits: Tensor,
        *,
        transport: str = "auto",
        weight_gradient: str = "clustered",
        validate_args: bool | None = None,
    ) -> None:
        components = {"locs": locs, "coord_scale": coord_scale}
        super().__init__(
            components,
            component_logits,
            transport=transport,
            weight_gradient=weight_gradient,
            validate_args=validate_args,
        )

    @staticmethod
    def _components(locs, coord_scale):
        return Normals(locs, Shared(Diagonal(coord_scale)))
