"""Normals that move by natural gradients, all at once: full covariances or diagonal ones."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)

RIDGE = 1.0
"""How many samples a coordinate Stein's estimate counts for, beside the regression."""

BISECTIONS, MOST_BISECTIONS = 20, 80
"""Of the size of a step, and where none has fit by then, as of a Normal that is far too wide."""


class Steps(NamedTuple):
    """What a natural step did: its sizes, and the divergences of new from old, each ``(K,)``."""

    sizes: Tensor
    divergences: Tensor


class FullNormals:
    r"""K Normals :math:`N(\mu_k, L_k L_k^T)` as a value.

    Args:
        locs: ``(K, D)``.
        factor: lower triangular ``(K, D, D)``.
    """

    event_dim: ClassVar[int] = 2

    def __init__(self, locs: Tensor, factor: Tensor) -> None:
        self.locs, self.factor = locs, factor

    def __len__(self) -> int:
        return len(self.locs)

    def __getitem__(self, index: Tensor):
        return type(self)(self.locs[index], self.factor[index])

    def beside(self, other: FullNormals):
        """These and the others."""
        return type(self)(
            torch.cat([self.locs, other.locs]), torch.cat([self.factor, other.factor])
        )

    @classmethod
    def of_stddevs(cls, locs: Tensor, stddevs: Tensor):
        """Without correlations, ``(K, D)`` both."""
        return cls(locs, stddevs.diag_embed())

    @property
    def stddevs(self) -> Tensor:
        """Of the coordinates, ``(K, D)``."""
        return self.factor.square().sum(-1).sqrt()

    @property
    def log_volumes(self) -> Tensor:
        """Of the factors, ``(K,)``."""
        return self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def inverse(self) -> Tensor:
        """Of the factors, for :meth:`whiten` and :meth:`score`."""
        identity = torch.eye(self.factor.shape[-1], dtype=self.factor.dtype)
        return torch.linalg.solve_triangular(
            self.factor, identity.expand_as(self.factor), upper=False
        )

    def whiten(self, z: Tensor, inverse: Tensor) -> Tensor:
        """Points ``(S, D)`` in units of each Normal, ``(S, K, D)``."""
        count, dimension = self.locs.shape
        origin = inverse @ self.locs.unsqueeze(-1)
        every = z @ inverse.flatten(0, 1).mT  # one product of matrices for all
        return every.view(len(z), count, dimension) - origin.squeeze(-1)

    def log_prob(self, whitened: Tensor) -> Tensor:
        """Log densities of whitened points, ``(S, K)``."""
        constant = self.log_volumes + whitened.shape[-1] / 2 * LOG_2PI
        return -whitened.square().sum(-1) / 2 - constant

    def score(self, whitened: Tensor, shares: Tensor, inverse: Tensor) -> Tensor:
        """Sum of the gradients of the log densities by z, with shares ``(S, K)``: ``(S, D)``."""
        return -(shares.unsqueeze(-1) * whitened).flatten(1) @ inverse.flatten(0, 1)

    def scores(self, whitened: Tensor, inverse: Tensor) -> Tensor:
        """Gradients of the log densities by z, ``(S, K, D)``."""
        return -(whitened.transpose(0, 1) @ inverse).transpose(0, 1)

    def spread(self, own: Tensor, noise: Tensor) -> Tensor:
        """Noise ``(N, D)`` in the scale of the Normals ``own (N,)``."""
        return (self.factor[own] @ noise.unsqueeze(-1)).squeeze(-1)

    def moved(
        self,
        whitened: Tensor,
        weights: Tensor,
        gradients: Tensor,
        trusts: Tensor,
        jumps: Tensor | None = None,
    ) -> tuple[FullNormals, Steps]:
        r"""A step of each Normal along the natural gradient of its expectation of a function.

        The gradient and the Hessian of that expectation come from a weighted regression of the
        function's gradients on the points, which is exact if the function is quadratic, whatever
        the points. Where few points count it falls back on Stein's identity. In whitened
        coordinates, with eigenvalues a of the Hessian, a step of size s takes the precision from
        1 to :math:`p = 1 - s a + (s a)^2 / 2 > 0` and the mean by :math:`s\, b / p`, with b the
        expected gradient. A Normal whose step has no finite numbers stays where it is.

        Args:
            whitened: points, ``(S, K, D)``.
            weights: that make them draws of each Normal, ``(S, K)``, summing to one over S.
            gradients: of the function by z, ``(S, D)``, or ``(S, K, D)`` if each has its own.
            trusts: the largest divergences of the new Normals from the old ones, ``(K,)``.
            jumps: of a part of the function that is constant but for jumps, which gradients do
                not see, ``(S,)`` or ``(S, K)``: its score function gradient is added.

        Returns:
            The new Normals, and :class:`Steps`.

        Reference:
            Lin, Schmidt and Khan, *Handling the positive-definite constraint in the Bayesian
            learning rule* (ICML 2020), https://arxiv.org/abs/2002.10060. Arenz, Dahlinger, Ye,
            Volpp and Neumann, *A unified perspective on natural gradient variational inference
            with Gaussian mixture models* (TMLR 2023), https://arxiv.org/abs/2209.11533.
        """
        gradient, curvature = self._expectations(whitened, weights, gradients)
        if jumps is not None:
            by_jumps = _by_score(whitened, weights, jumps)
            gradient = gradient + by_jumps.sum(0)
            curvature = curvature + torch.einsum("skd,ske->kde", by_jumps, whitened)
        curvatures, basis = torch.linalg.eigh(curvature)
        along = (basis.mT @ gradient.unsqueeze(-1)).squeeze(-1)
        precisions, shifts, steps = _largest_steps(along, curvatures, trusts)
        shift = (self.factor @ (basis @ shifts.unsqueeze(-1))).squeeze(-1)
        covariance = (basis / precisions.unsqueeze(-2)) @ basis.mT
        change, failed = torch.linalg.cholesky_ex(covariance)
        factor = self.factor @ change
        return self._where_finite(self.locs + shift, factor, failed == 0), steps

    def _where_finite(self, locs: Tensor, factor: Tensor, allowed: Tensor | bool):
        finite = locs.isfinite().all(-1) & factor.flatten(1).isfinite().all(-1) & allowed
        shape = (-1,) + (1,) * self.event_dim
        return type(self)(
            torch.where(finite.unsqueeze(-1), locs, self.locs),
            torch.where(finite.view(shape), factor, self.factor),
        )

    def _expectations(
        self, whitened: Tensor, weights: Tensor, gradients: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of the gradient ``(K, D)`` and the Hessian ``(K, D, D)``, in whitened coordinates."""
        points = whitened.transpose(0, 1)  # (K, S, D)
        weighted = (weights.unsqueeze(-1) * whitened).permute(1, 2, 0)  # (K, D, S)
        if gradients.dim() == 2:
            mean = weights.mT @ gradients  # (K, D)
        else:
            gradients = gradients.transpose(0, 1)
            mean = (weights.mT.unsqueeze(-2) @ gradients).squeeze(-2)
        mean = (mean.unsqueeze(-2) @ self.factor).squeeze(-2)
        center = weighted.sum(-1)
        moments = weighted @ points - center.unsqueeze(-1) * center.unsqueeze(-2)
        products = (weighted @ gradients) @ self.factor
        products = products - center.unsqueeze(-1) * mean.unsqueeze(-2)
        ridge = _ridge(weights, whitened.shape[-1])[:, None, None]
        moments.diagonal(dim1=-2, dim2=-1).add_(ridge.squeeze(-1))
        hessian, _ = torch.linalg.solve_ex(moments / (1 + ridge), products)
        hessian = ((hessian + hessian.mT) / 2).nan_to_num(0.0, 0.0, 0.0)
        return mean - (hessian @ center.unsqueeze(-1)).squeeze(-1), hessian


class DiagonalNormals(FullNormals):
    """The same with diagonal covariances, for many dimensions.

    Args:
        locs: ``(K, D)``.
        factor: standard deviations, ``(K, D)``.
    """

    event_dim = 1

    @classmethod
    def of_stddevs(cls, locs, stddevs):
        return cls(locs, stddevs)

    @property
    def stddevs(self):
        return self.factor

    @property
    def log_volumes(self):
        return self.factor.log().sum(-1)

    def inverse(self):
        return self.factor.reciprocal()

    def whiten(self, z, inverse):
        return (z.unsqueeze(-2) - self.locs) * inverse

    def score(self, whitened, shares, inverse):
        return -torch.einsum("sk,skd,kd->sd", shares, whitened, inverse)

    def scores(self, whitened, inverse):
        return -whitened * inverse

    def spread(self, own, noise):
        return self.factor[own] * noise

    def moved(self, whitened, weights, gradients, trusts, jumps=None):
        if gradients.dim() == 2:
            gradients = gradients.unsqueeze(-2)
        gradients = gradients * self.factor  # (S, K, D)
        center, mean = _mean(weights, whitened), _mean(weights, gradients)
        moments = _mean(weights, whitened.square()) - center.square()
        products = _mean(weights, whitened * gradients) - center * mean
        ridge = _ridge(weights, 1).unsqueeze(-1)
        curvatures = products * (1 + ridge) / (moments + ridge)
        along = mean - curvatures * center
        if jumps is not None:
            by_jumps = _by_score(whitened, weights, jumps)
            along = along + by_jumps.sum(0)
            curvatures = curvatures + (by_jumps * whitened).sum(0)
        precisions, shifts, steps = _largest_steps(along, curvatures, trusts)
        locs, factor = self.locs + self.factor * shifts, self.factor * precisions.rsqrt()
        return self._where_finite(locs, factor, True), steps


def _mean(weights: Tensor, values: Tensor) -> Tensor:
    """``(S, K), (S, K, D) -> (K, D)``."""
    return torch.einsum("sk,skd->kd", weights, values)


def _by_score(whitened: Tensor, weights: Tensor, jumps: Tensor) -> Tensor:
    """Weighted points, times what the function jumps above its mean there, ``(S, K, D)``."""
    jumps = jumps if jumps.dim() == 2 else jumps.unsqueeze(-1)  # (S, K or 1)
    above = weights * (jumps - (weights * jumps).sum(0))
    return above.unsqueeze(-1) * whitened


def _ridge(weights: Tensor, unknowns: int) -> Tensor:
    """Weight of Stein's estimate against that of the effective number of samples, ``(K,)``."""
    return RIDGE * unknowns * weights.square().sum(0)


def _largest_steps(
    gradient: Tensor, curvatures: Tensor, trusts: Tensor
) -> tuple[Tensor, Tensor, Steps]:
    """Precisions and shifts of the largest steps within the trust region, ``(K, D)``."""

    def stepped(size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bent = size.unsqueeze(-1) * curvatures
        precision = 1 - bent + bent.square() / 2
        shift = size.unsqueeze(-1) * gradient / precision
        spread = precision.reciprocal() - 1 + precision.log()
        return precision, shift, (spread + shift.square()).sum(-1) / 2

    low, high = torch.zeros_like(trusts), torch.ones_like(trusts)
    size = high
    for turn in range(MOST_BISECTIONS):
        if turn >= BISECTIONS and bool((low > 0).all()):
            break
        fits = stepped(size)[2] <= trusts
        low, high = torch.where(fits, size, low), torch.where(fits, high, size)
        if bool((low == high).all()):
            break
        size = (low + high) / 2
    precision, shift, divergence = stepped(low)
    return precision, shift, Steps(low, divergence)
