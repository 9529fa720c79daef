"""Multivariate Normal whose samples move by optimal transport."""

from __future__ import annotations

from torch import Tensor

from pyro_mixtures.distributions.elliptical import EllipticalNormal
from pyro_mixtures.velocity.optimal_transport import optimal_transport


class OMTMultivariateNormal(EllipticalNormal):
    r"""Multivariate Normal with the gradient of optimal mass transport for its Cholesky factor.

    .. math:: q(z) = N(z \mid \mu, L L^T)

    A drop-in for ``MultivariateNormal(loc, scale_tril=scale_tril)`` with the same samples and
    densities. When ``scale_tril`` changes, samples move with the velocity field of least kinetic
    energy: a reference to compare other estimators with. It costs a singular value decomposition,
    O(D^3).

    Args:
        loc: the mean :math:`\mu`, shape ``(*B, D)``.
        scale_tril: the lower triangular L with a positive diagonal, shape ``(*B, D, D)``.
        validate_args: check the values of the arguments and of ``log_prob``'s argument.

    Raises:
        ValueError: for shapes that do not fit, D of zero, a factor that is not lower triangular
            with a positive diagonal, or NaN.

    Reference:
        Jankowiak and Obermeyer, *Pathwise Derivatives Beyond the Reparameterization Trick* (2018),
        https://arxiv.org/abs/1806.01851.

    Example:
        >>> import torch
        >>> scale_tril = torch.eye(2).requires_grad_()
        >>> q = OMTMultivariateNormal(torch.zeros(2), scale_tril)
        >>> q.rsample((10,)).square().mean().backward()
        >>> bool(scale_tril.grad[0, 1] == 0)
        True
    """

    field = staticmethod(optimal_transport)

    def __init__(
        self, loc: Tensor, scale_tril: Tensor, *, validate_args: bool | None = None
    ) -> None:
        super().__init__({"loc": loc, "scale_tril": scale_tril}, validate_args=validate_args)
