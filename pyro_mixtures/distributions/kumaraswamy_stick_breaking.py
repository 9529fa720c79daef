"""Random weights of Kumaraswamy sticks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Kumaraswamy, constraints

from pyro_mixtures.distributions.stick_breaking import StickBreaking
from pyro_mixtures.numerics.validation import broadcast_shapes, check_shapes


class KumaraswamyStickBreaking(StickBreaking):
    r"""Weights of Kumaraswamy sticks, as a posterior of mixture weights that a network can have.

    .. math:: v_k = (1 - u_k^{1 / b_k})^{1 / a_k}, \quad u_k \sim \mathrm{Uniform}(0, 1), \qquad
              p(v) = a b v^{a - 1} (1 - v^a)^{b - 1}

    .. math:: \pi_k = v_k \prod_{l < k} (1 - v_l), \qquad
              E \pi_k = E v_k \prod_{l < k} (1 - E v_l), \quad E v = b B(1 + 1 / a, b)

    The ``kl_divergence`` from ``StickBreaking.gem``, ``StickBreaking.dirichlet`` and ``Dirichlet``
    is in closed form but for :math:`E \log(1 - v)`, an integral with 12 digits in double and 6 in
    single precision (a from 0.05 on, any b). In single precision, too, samples and gradients are
    right and logarithms of weights finite for a and b from 0.05 to 1000, where torch's own
    ``Kumaraswamy`` rounds to 0 and to 1.

    All else is as in :class:`~pyro_mixtures.distributions.StickBreaking`.

    Args:
        a: positive, ``(*B, K - 1)``.
        b: positive, ``(*B, K - 1)``.

    Raises:
        ValueError: for parameters of the wrong shape or value, or none at all: K is at least 2.

    Reference:
        Nalisnick, Hertel and Smyth, *Approximate Inference for Deep Latent Gaussian Mixtures*,
        2016.

    Example:
        >>> a, b = torch.full((3,), 0.05), torch.full((3,), 1000.0)
        >>> q = KumaraswamyStickBreaking(a, b)
        >>> weights = q.rsample()
        >>> weights.tolist(), bool(q.log_weights(weights)[0] > -1000)
        ([0.0, 0.0, 0.0, 1.0], True)
        >>> torch.distributions.kl_divergence(q, StickBreaking.gem(1.0, 4)) > 0
        tensor(True)
    """

    arg_constraints = {
        "a": constraints.independent(constraints.positive, 1),
        "b": constraints.independent(constraints.positive, 1),
    }

    def __init__(self, a: Tensor, b: Tensor, *, validate_args: bool | None = None) -> None:
        given = {"a": a, "b": b}
        if any(isinstance(x, Tensor) and x.shape[-1:] == (0,) for x in given.values()):
            raise ValueError(
                "Expected a and b of shape (*B, K - 1) for K >= 2 weights, since one weight alone"
                f" is 1, but got {tuple(a.shape)} and {tuple(b.shape)}"
            )
        batch_shape, sizes = check_shapes(given, {"a": "S", "b": "S"})
        dtype = torch.promote_types(a.dtype, b.dtype)
        a, b = (x.to(dtype).expand(*batch_shape, sizes["S"]) for x in given.values())
        super().__init__(Kumaraswamy(a, b, validate_args=False), validate_args=validate_args)

    @property
    def a(self) -> Tensor:
        """That of the sticks."""
        return self.sticks.concentration1

    @property
    def b(self) -> Tensor:
        """That of the sticks."""
        return self.sticks.concentration0

    @classmethod
    def infer_shapes(cls, **arg_shapes: Sequence[int]) -> tuple[torch.Size, torch.Size]:
        shapes = [torch.Size(shape) for shape in arg_shapes.values()]
        batch_shape = torch.Size()
        for shape in shapes:
            batch_shape = broadcast_shapes(batch_shape, shape[:-1])
        return batch_shape, torch.Size([shapes[0][-1] + 1])
