"""Implicit reparameterization of components with covariances of their own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from pyro_mixtures.numerics.chunks import map_chunks
from pyro_mixtures.numerics.opaque import opaque
from pyro_mixtures.numerics.precision import double
from pyro_mixtures.velocity.diagonal_implicit import condition, coordinates, share_of_group
from pyro_mixtures.velocity.full_components import triangular_inverse
from pyro_mixtures.velocity.telescoping import normal_factors


@opaque
def normal_implicit(
    z: Tensor,
    grad: Tensor,
    log_prob: Tensor,
    within: Tensor,
    locs: Tensor,
    scale_tril: Tensor,
    *,
    precision: torch.dtype,
) -> Tensor:
    r"""Implicit reparameterization with Cholesky factors ``(*B, K, D, D)``.

    In :math:`y_k = L_k^{-1} (z - \mu_k)` the conditionals of the components are
    :math:`F_{ki} = \Phi(y_{ki})`, and everything depends on the sample by way of the
    :math:`y_k`. With :math:`T` as in
    :func:`~pyro_mixtures.velocity.diagonal_implicit.implicit`, from the last coordinate to the
    first,

    .. math::
        g_l = \sum_k p_k \sum_{m \ge l} t_{km} (L_k^{-1})_{ml}, \qquad
        t_{km} = \lambda_m \frac{r_k^{(m)}}{p_k} \phi(y_{km}) - y_{km} T_k,

    (with the T before coordinate m is added to it) is solved for :math:`\lambda_l`. Each
    coordinate costs arrays of shape ``S x K x D``, in slices. The coordinates are the given ones:
    another order of them has another field.

    Arguments and result, but for the factors, are those of
    :func:`~pyro_mixtures.velocity.displacement.displacement`; ``precision`` has no part, for
    the field is exact. The arithmetic is in float64.

    Reference:
        Figurnov, Mohamed and Mnih, *Implicit Reparameterization Gradients* (2018),
        https://arxiv.org/abs/1805.08498, Section 3.
    """
    dtype = z.dtype
    z, grad, log_prob, within, locs, scale_tril = double(
        z, grad, log_prob, within, locs, scale_tril
    )
    inverse = triangular_inverse(scale_tril)  # (*B, K, D, D)
    diagonal = scale_tril.diagonal(dim1=-2, dim2=-1).unsqueeze(-3)  # (*B, 1, K, D)

    def contributions(z: Tensor, grad: Tensor, log_prob: Tensor) -> Tensor:
        offset = (z.unsqueeze(-2) - locs.unsqueeze(-3)).movedim(-3, -1)  # (*B, K, D, S)
        standard = torch.linalg.solve_triangular(scale_tril, offset, upper=False)
        standard = standard.movedim(-1, -3)  # (*B, S, K, D)
        here = condition(normal_factors(standard, diagonal), within.unsqueeze(-3))
        places, responses = coordinates(standard), coordinates(here.response)
        # the conditional densities of y, by the weights and that of the mixture
        densities = coordinates(here.responsibility[..., 1:] * diagonal)
        total = torch.zeros_like(responses[0])  # (*B, S, K)
        pull = torch.zeros_like(standard)  # the sums over the m so far
        for i in reversed(range(z.shape[-1])):
            row = inverse[..., i, : i + 1].unsqueeze(-3)  # (*B, 1, K, i + 1)
            through = -places[i] * total
            known = pull[..., i] + through * row[..., i]
            rest = grad[..., i : i + 1] - known @ within.mT  # (*B, S, K or 1)
            through = torch.addcmul(through, rest, densities[i])
            pull = torch.addcmul(pull[..., :i], through.unsqueeze(-1), row[..., :i])
            total = torch.addcmul(total, rest, responses[i])
        return share_of_group(here, log_prob, total)

    return map_chunks(contributions, (z, grad, log_prob), 4 * locs.numel()).to(dtype)


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

    Reference:
        As of :func:`~pyro_mixtures.velocity.diagonal_implicit.conditional_cdf`.
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
