"""Mixture of Normals with diagonal covariances."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.components import Diagonal, Normals
from pyro_mixtures.distributions.mixture_of_normals import MixtureOfNormals
from pyro_mixtures.distributions.parametric_mixture import ParametricMixture


class MixtureOfDiagNormals(ParametricMixture):
    r"""Mixture of K Normals in D dimensions, each with its own mean and diagonal covariance.

    .. math::
        q(z) = \sum_{j=1}^K \pi_j \prod_{i=1}^D N(z_i \mid \mu_{ji}, \sigma_{ji}), \qquad
        \pi = \mathrm{softmax}(\text{component\_logits})

    ``rsample`` carries unbiased gradients to all three parameters. For K, D >= 1, coinciding
    components and logits of ``-inf`` (a component without weight) they stay finite and right.

    Args:
        locs: means :math:`\mu`, shape ``(*B, K, D)``.
        coord_scale: standard deviations :math:`\sigma > 0`, shape ``(*B, K, D)``.
        component_logits: unnormalized log weights, shape ``(*B, K)``.
        transport: the velocity field for the weights, ``"auto"`` for the first of them, or the
            second in one dimension, where all are the same: ``"displacement"`` (components slide
            to a moment-matched hub; matrix products only), ``"telescoping"`` (one coordinate at a
            time, to the product of the marginals; exact, but arrays of shape ``S x K x D``) or
            ``"implicit"`` (samples keep their conditional quantiles, coordinate after coordinate:
            Figurnov et al., to compare with; arrays of shape ``S x K x D``, in slices).
        weight_gradient: ``"clustered"``, ``"pathwise"`` or ``"hybrid"``: how the weights get
            their gradient (:class:`~pyro_mixtures.distributions.MixtureDistribution`).
        validate_args: check the values of the arguments and of ``log_prob``'s argument (to be set
            to False under ``torch.func.vmap``, where values cannot be looked at).

    The batch shapes ``B`` of the arguments broadcast against each other. ``batch_shape`` is ``B``
    and ``event_shape`` is ``(D,)``.

    Raises:
        ValueError: for shapes that do not fit, K or D of zero, scales that are not positive, NaN,
            logits of ``+inf``, or an unknown ``transport`` or ``weight_gradient``.

    References:
        Jankowiak and Karaletsos, *Pathwise Derivatives for Multivariate Distributions* (2019),
        https://arxiv.org/abs/1806.01856, Eq. 12 for the components; the fields for the weights
        are described at :func:`~pyro_mixtures.velocity.displacement.displacement` and
        :func:`~pyro_mixtures.velocity.telescoping.diag_normal_telescoping`.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> locs = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
        >>> q = MixtureOfDiagNormals(locs, torch.ones(2, 2), logits)
        >>> z = q.rsample((100_000,))
        >>> z[:, 0].mean().backward()  # the exact gradient is [-1/2, 1/2]
        >>> torch.allclose(logits.grad, torch.tensor([-0.5, 0.5]), atol=0.02)
        True
    """

    arg_constraints = {
        "locs": constraints.independent(constraints.real, 2),
        "coord_scale": constraints.independent(constraints.positive, 2),
        "component_logits": constraints.real_vector,
    }
    component_parameters = {"locs": "KD", "coord_scale": "KD"}
    transports = Diagonal.transports
    linear_image = MixtureOfNormals

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
        return Normals(locs, Diagonal(coord_scale))
