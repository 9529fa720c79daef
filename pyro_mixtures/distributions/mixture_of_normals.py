"""Mixture of Normals with covariances of their own."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.components import Cholesky, Normals
from pyro_mixtures.distributions.parametric_mixture import ParametricMixture


class MixtureOfNormals(ParametricMixture):
    r"""Mixture of K Normals in D dimensions, each with its own mean and covariance.

    .. math::
        q(z) = \sum_{j=1}^K \pi_j N(z \mid \mu_j, L_j L_j^T), \qquad
        \pi = \mathrm{softmax}(\text{component\_logits})

    ``rsample`` carries unbiased gradients to all three parameters; those of the L are lower
    triangular.

    Args:
        locs: means :math:`\mu`, shape ``(*B, K, D)``.
        scale_tril: the lower triangular L with positive diagonals, shape ``(*B, K, D, D)``.
        component_logits: unnormalized log weights, shape ``(*B, K)``.
        transport: the velocity field for the weights, ``"auto"`` for the first of them:
            ``"displacement"`` (components flow to a Normal with the mean and covariance of the
            mixture), ``"telescoping"`` (one coordinate at a time, by conditional distribution
            functions) or ``"implicit"`` (samples keep the mixture's conditional quantiles,
            coordinate after coordinate: Figurnov et al., to compare with).
        weight_gradient: ``"clustered"``, ``"pathwise"`` or ``"hybrid"``: how the weights get
            their gradient (:class:`~pyro_mixtures.distributions.MixtureDistribution`).
        validate_args: check the values of the arguments and of ``log_prob``'s argument (to be set
            to False under ``torch.func.vmap``, where values cannot be looked at).

    Raises:
        ValueError: for shapes that do not fit, K or D of zero, factors that are not lower
            triangular with a positive diagonal, NaN, logits of ``+inf``, or an unknown
            ``transport`` or ``weight_gradient``.

    References:
        Jankowiak and Karaletsos, *Pathwise Derivatives for Multivariate Distributions* (2019),
        https://arxiv.org/abs/1806.01856, Eq. 12 for the components; the fields for the weights
        are described at
        :func:`~pyro_mixtures.velocity.full_transports.normal_displacement` and
        :func:`~pyro_mixtures.velocity.full_transports.normal_telescoping`.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> up = torch.tensor([[1.0, 0.0], [0.9, 0.5]])
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> q = MixtureOfNormals(torch.zeros(2, 2), torch.stack([up, up.inverse()]), logits)
        >>> q.rsample((100_000,)).prod(-1).mean().backward()  # exactly (0.9 + 1.8) / 4 of [1, -1]
        >>> torch.allclose(logits.grad, torch.tensor([0.675, -0.675]), atol=0.05)
        True
    """

    arg_constraints = {
        "locs": constraints.independent(constraints.real, 2),
        "scale_tril": constraints.independent(constraints.lower_cholesky, 1),
        "component_logits": constraints.real_vector,
    }
    component_parameters = {"locs": "KD", "scale_tril": "KDD"}
    transports = Cholesky.transports

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
        return Normals(locs, Cholesky(scale_tril))
