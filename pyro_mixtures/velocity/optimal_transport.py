"""Optimal transport of elliptical distributions: the velocity field of least kinetic energy."""

from __future__ import annotations

import torch
from torch import Tensor


def optimal_transport(white: Tensor, grad: Tensor, scale_tril: Tensor) -> tuple[Tensor, Tensor]:
    r"""Gradients when samples move with L as optimal transport moves them.

    The velocity is linear and symmetric,

    .. math:: v^{ab} = S^{ab} (z - \mu), \qquad
              S^{ab} \Sigma + \Sigma S^{ab} = \partial \Sigma / \partial L_{ab}

    With the singular values of :math:`L = U \operatorname{diag}(\sigma) V^T` the equation for S is
    solved entry by entry, and the gradient is

    .. math::
        G = U K V^T, \qquad
        K_{ij} = \frac{\sigma_j^2 N_{ij} + \sigma_i \sigma_j N_{ji}}{\sigma_i^2 + \sigma_j^2},
        \qquad N = \sum_s (U^T g_s) (V^T \varepsilon_s)^T

    No matrix is inverted, and the covariance, whose condition number is the square of that of L,
    is not formed.

    Args:
        white: :math:`\varepsilon`, ``(*B, S, D)``.
        grad: gradient of the cost at the samples, :math:`g`, ``(*B, S, D)``.
        scale_tril: L, ``(*B, D, D)``.

    Returns:
        The gradient at ``white``, :math:`L^T g`, and that of ``scale_tril``, lower triangular.

    Reference:
        Jankowiak and Obermeyer, *Pathwise Derivatives Beyond the Reparameterization Trick* (2018),
        https://arxiv.org/abs/1806.01851, section 5.
    """
    u, singular, vt = torch.linalg.svd(scale_tril)
    moment = (grad @ u).mT @ (white @ vt.mT)  # N, (*B, D, D)
    rows, columns = singular.unsqueeze(-1), singular.unsqueeze(-2)
    size = torch.hypot(rows, columns)
    rows, columns = rows / size, columns / size
    weighted = columns * (columns * moment + rows * moment.mT)
    return grad @ scale_tril, (u @ weighted @ vt).tril()
