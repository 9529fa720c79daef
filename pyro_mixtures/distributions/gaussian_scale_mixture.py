"""Mixture of Normals whose covariances are multiples of one diagonal matrix."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.components import Diagonal, Normals, Sized
from pyro_mixtures.distributions.mixture_of_normals import MixtureOfNormals
from pyro_mixtures.distributions.parametric_mixture import ParametricMixture


class GaussianScaleMixture(ParametricMixture):
    r"""Mixture of K Normals in D dimensions of the same shape and different size.

    .. math::
        q(z) = \sum_{j=1}^K \pi_j \prod_{i=1}^D N(z_i \mid \mu_{ji}, \lambda_j \sigma_i), \qquad
        \pi = \mathrm{softmax}(\text{component\_logits})

    Without ``locs`` all means are zero: an elliptical distribution with the tails that the scales
    give it, whose densities and transport depend on the whitened radius alone.
    ``rsample`` carries unbiased gradients to all parameters.

    Args:
        coord_scale: the common shape :math:`\sigma > 0`, shape ``(*B, D)``.
        component_logits: unnormalized log weights, shape ``(*B, K)``.
        component_scale: the sizes :math:`\lambda > 0`, shape ``(*B, K)``.
        locs: means :math:`\mu`, shape ``(*B, K, D)``, or None for zero.
        transport: the velocity field for the weights, ``"auto"`` for the first of them:
            ``"displacement"`` (components flow to a moment-matched hub), ``"radial"`` (they shrink
            or grow about their means, which then move along lines; without ``locs`` the same field
            as displacement), ``"telescoping"`` (one coordinate at a time; arrays of shape ``S x K
            x D``) or ``"implicit"`` (samples keep their conditional quantiles, coordinate after
            coordinate: Figurnov et al., to compare with; arrays of shape ``S x K x D``, in
            slices).
        weight_gradient: ``"clustered"``, ``"pathwise"`` or ``"hybrid"``: how the weights get
            their gradient (:class:`~pyro_mixtures.distributions.MixtureDistribution`).
        validate_args: check the values of the arguments and of ``log_prob``'s argument (to be set
            to False under ``torch.func.vmap``, where values cannot be looked at).

    Raises:
        ValueError: for shapes that do not fit, K or D of zero, scales that are not positive, NaN,
            logits of ``+inf``, or an unknown ``transport`` or ``weight_gradient``.

    References:
        Jankowiak and Karaletsos, *Pathwise Derivatives for Multivariate Distributions* (2019),
        https://arxiv.org/abs/1806.01856, Eq. 12, 40 and 53-55
        (:func:`~pyro_mixtures.velocity.radial.radial`).

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> q = GaussianScaleMixture(torch.ones(3), logits, torch.tensor([0.5, 2.0]))
        >>> z = q.rsample((100_000,))
        >>> z.square().mean().backward()  # exactly (4 - 1/4) / 4 of [-1, 1]
        >>> torch.allclose(logits.grad, torch.tensor([-0.9375, 0.9375]), atol=0.05)
        True
    """

    arg_constraints = {
        "coord_scale": constraints.independent(constraints.positive, 1),
        "component_logits": constraints.real_vector,
        "component_scale": constraints.independent(constraints.positive, 1),
        "locs": constraints.independent(constraints.real, 2),
    }
    component_parameters = {"coord_scale": "D", "component_scale": "K", "locs": "KD"}
    optional_parameters = ("locs",)
    transports = Sized.transports
    linear_image = MixtureOfNormals

    coord_scale: Tensor
    component_scale: Tensor
    locs: Tensor | None = None

    def __init__(
        self,
        coord_scale: Tensor,
        component_logits: Tensor,
        component_scale: Tensor,
        locs: Tensor | None = None,
        *,
        transport: str = "auto",
        weight_gradient: str = "clustered",
        validate_args: bool | None = None,
    ) -> None:
        components = {
            "coord_scale": coord_scale,
            "component_scale": component_scale,
            "locs": locs,
        }
        super().__init__(
            components,
            component_logits,
            transport=transport,
            weight_gradient=weight_gradient,
            validate_args=validate_args,
        )

    @staticmethod
    def _components(coord_scale, component_scale, locs=None):
        return Normals(locs, Sized(Diagonal(coord_scale), component_scale))
