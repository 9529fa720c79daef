"""Adaptive velocity fields of elliptical distributions: rotations in planes that learn, too."""

from __future__ import annotations

import torch
from torch import Tensor


def row_rotations(
    white: Tensor, grad: Tensor, scale_tril: Tensor, control_var: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Gradients when samples move by reparameterization and, with L, by rotations as well.

    As in :func:`~pyro_mixtures.velocity.rotations.rotations`, but that for :math:`L_{ab}` the
    whitened sample turns in the plane of a vector, the row a of U, and of the axis b:

    .. math::
        v^{ab} = \hat e_a \varepsilon_b + L A^{ab} \varepsilon, \qquad
        A^{ab}_{jk} = U_{aj} \delta_{bk} - \delta_{bj} U_{ak}, \qquad
        U = B^T C

    All entries of a row of L share a vector. With :math:`h = L^T g` the gradient of a sample is

    .. math:: G = x \varepsilon^T - y h^T, \qquad x = g + U h, \quad y = U \varepsilon

    of rank two. Where the gradients g of different samples have a direction in common, x can leave
    it out, which no turn in a plane of two axes can. No array but the sum of G has D x D entries.

    Args:
        white: :math:`\varepsilon`, ``(*B, S, D)``.
        grad: gradient of the cost at the samples, :math:`g`, ``(*B, S, D)``.
        scale_tril: L, ``(*B, D, D)``.
        control_var: B and C, ``(*B, 2, M, D)``.

    Returns:
        As :func:`~pyro_mixtures.velocity.rotations.rotations`.

    Reference:
        A choice of A in Eq. 9 of Jankowiak and Karaletsos, *Pathwise Derivatives for Multivariate
        Distributions*, in place of their Eq. 10.
    """
    b, c = control_var.unbind(-3)
    h = grad @ scale_tril
    h_c, white_c = h @ c.mT, white @ c.mT  # (*B, S, M)
    x, y = grad + h_c @ b, white_c @ b
    grad_scale_tril = torch.cat([x, -y], -2).mT @ torch.cat([white, h], -2)
    # of each sample's lower triangular G: G eps and G h, whose sums end at the diagonal
    square, mixed, steep = ((p * q).cumsum(-1) for p, q in ((white, white), (white, h), (h, h)))
    along, across = x * square - y * mixed, x * mixed - y * steep  # (*B, S, D)
    grad_b = h_c.mT @ along - white_c.mT @ across
    grad_c = (along @ b.mT).mT @ h - (across @ b.mT).mT @ white
    return h, grad_scale_tril.tril_(), torch.stack([grad_b, grad_c], -3)
