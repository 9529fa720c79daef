"""Adaptive velocity fields of elliptical distributions: plain ones and learned rotations."""

from __future__ import annotations

import torch
from torch import Tensor


def rotations(
    white: Tensor, grad: Tensor, scale_tril: Tensor, control_var: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Gradients when samples move by reparameterization and, with L, by rotations as well.

    A sample :math:`z = \mu + L \varepsilon` moves with :math:`L_{ab}` (:math:`a \ge b`) by

    .. math::
        v^{ab} = \hat e_a \varepsilon_b + L A^{ab} \varepsilon, \qquad
        A^{ab}_{jk} = W_{ab} (\delta_{aj} \delta_{bk} - \delta_{ak} \delta_{bj}), \qquad
        W = B^T C

    where the second term turns the whitened sample in the plane of two axes, which leaves every
    elliptical distribution as it is. With :math:`h = L^T g` and
    :math:`\xi_{ab} = h_a \varepsilon_b - h_b \varepsilon_a` the gradient of a sample is

    .. math:: G_{ab} = g_a \varepsilon_b + W_{ab} \xi_{ab}

    Args:
        white: :math:`\varepsilon`, ``(*B, S, D)``.
        grad: gradient of the cost at the samples, :math:`g`, ``(*B, S, D)``.
        scale_tril: L, ``(*B, D, D)``.
        control_var: B and C, ``(*B, 2, M, D)``.

    Returns:
        The gradient at ``white``, h; that of ``scale_tril``, the lower triangular
        :math:`\sum_s G`; and for ``control_var`` an estimate of the gradient of
        :math:`\tfrac12 \sum_{ab} \operatorname{Var} \sum_s G_{ab}`, which is that of
        :math:`\tfrac12 \sum_{s, ab} G_{ab}^2`: samples are independent, and the mean of G does not
        depend on W. The square of the sum over samples would have the same expectation, but carry
        the products of different samples as noise, three to six times that of the sum of squares
        for 8 samples of a cosine or quadratic cost. (Where the cost couples samples, as importance
        weights do, those products depend on W as well, and are left out.)

    Reference:
        Jankowiak and Karaletsos, *Pathwise Derivatives for Multivariate Distributions*, Eq. 7-10
        and 26.
    """
    h = grad @ scale_tril
    gradients = _one_sample if white.shape[-2] == 1 else _many_samples
    return h, *gradients(white, grad, h, *control_var.unbind(-3))


def _one_sample(
    white: Tensor, grad: Tensor, h: Tensor, b: Tensor, c: Tensor
) -> tuple[Tensor, Tensor]:
    """G has rank 2 M + 1 but for the triangle, which spares all other arrays of its size."""
    rank = b.shape[-2]
    rows = torch.cat([grad, b * h, -b * white], -2)  # (*B, 2 M + 1, D)
    columns = torch.cat([white, c * white, c * h], -2)
    below = (rows.mT @ columns).tril_(-1)
    along, across = (columns[..., 1:, :] @ below.mT).split(rank, -2)  # (*B, M, D)
    grad_b = h * along - white * across
    along, across = (rows[..., 1:, :] @ below).split(rank, -2)
    grad_c = white * along + h * across
    below.diagonal(dim1=-2, dim2=-1).copy_((grad * white).squeeze(-2))  # where xi = 0
    return below, torch.stack([grad_b, grad_c], -3)


def _many_samples(
    white: Tensor, grad: Tensor, h: Tensor, b: Tensor, c: Tensor
) -> tuple[Tensor, Tensor]:
    r"""The sums over samples of G and of :math:`G \circ \xi`, as matrix products.

    The second is :math:`\sum_s g_a \varepsilon_b \xi_{ab} + W_{ab} \sum_s \xi_{ab}^2`, of which
    both sums fall apart into products of a factor with the index a and one with the index b.
    """
    weights = b.mT @ c  # W, (*B, D, D)
    turn = _products((h, white), (-white, h))  # sums of xi
    grad_scale_tril = (grad.mT @ white).addcmul_(weights, turn).tril_()
    steep, square, mixed = h.square(), white.square(), h * white
    curvature = _products((steep, square), (square, steep), (-2 * mixed, mixed))  # and of xi^2
    product = _products((grad * h, square), (-grad * white, mixed))
    product = product.addcmul_(weights, curvature).tril_(-1)
    return grad_scale_tril, torch.stack([c @ product.mT, b @ product], -3)


def _products(*pairs: tuple[Tensor, Tensor]) -> Tensor:
    """``sum_s x_sa y_sb`` summed over pairs (x, y): one product, faster than sums of its size."""
    rows, columns = zip(*pairs, strict=True)
    return torch.cat(rows, -2).mT @ torch.cat(columns, -2)
