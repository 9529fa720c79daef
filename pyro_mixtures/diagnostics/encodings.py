"""The posteriors of all data as Normals, and their mean: the aggregate posterior."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from pyro_mixtures.components import Cholesky, Diagonal, Normals
from pyro_mixtures.normals.divergence import as_normals
from pyro_mixtures.numerics.chunks import map_chunks
from pyro_mixtures.numerics.precision import double

LOG_ROOT = math.log(2 * math.pi) / 2
"""Of the height of a Normal."""

SLICE = 2**24
"""Bytes of the largest array at once: as fast as any other size, where it was measured."""


class _Expanded(NamedTuple):
    """Log densities of coordinates as polynomials of the distance from their center.

    Args:
        center: ``(D,)``.
        bound: of the log densities with their weights, ``(D,)``.
        constant: of the polynomials that are below the bound, ``(D, 1, N K)``.
        factors: of squares and of distances, ``(D, 2, N K)``.
    """

    center: Tensor
    bound: Tensor
    constant: Tensor
    factors: Tensor


@dataclass(frozen=True)
class Encodings:
    """Mixtures of K Normals in D dimensions for each of N data; densities in double precision.

    Args:
        log_weights: ``(N, K)``.
        locs: ``(N, K, D)``.
        scales: standard deviations ``(N, K, D)`` or Cholesky factors ``(N, K, D, D)``.
    """

    log_weights: Tensor
    locs: Tensor
    scales: Tensor

    @classmethod
    def of(cls, distribution: Any, count: int) -> Encodings:
        """Those of a distribution whose batch is that of N data.

        Raises:
            NotImplementedError: for what is no Normal and no mixture of them.
        """
        if isinstance(distribution, Normal):
            loc, scale = (x.unsqueeze(-1) for x in (distribution.loc, distribution.scale))
            distribution = Independent(Normal(loc, scale, validate_args=False), 1)
        log_weights, locs, scales = double(*as_normals(distribution, "elbo_terms"))
        is_full = scales.dim() > locs.dim()
        batch, size = tuple(distribution.batch_shape), locs.shape[-2:]
        log_weights = log_weights.expand(*batch, -1).reshape(count, -1)
        locs = locs.expand(*batch, *size)
        event = scales.shape[-2:] if is_full else scales.shape[-1:]
        scales = (scales.tril() if is_full else scales).expand(*batch, size[0], *event)
        return cls(log_weights, locs.reshape(count, *size), scales.reshape(count, size[0], *event))

    def __getitem__(self, index: Tensor) -> Encodings:
        return Encodings(self.log_weights[index], self.locs[index], self.scales[index])

    def __len__(self) -> int:
        return len(self.locs)

    def equals(self, other: Encodings) -> bool:
        """Whether they are the same numbers."""
        return all(
            torch.equal(one, two)
            for one, two in (
                (self.log_weights, other.log_weights),
                (self.locs, other.locs),
                (self.scales, other.scales),
            )
        )

    @property
    def mean(self) -> Tensor:
        """Of each posterior, ``(N, D)``."""
        return (self.log_weights.exp().unsqueeze(-1) * self.locs).sum(1)

    @property
    def row_elements(self) -> int:
        """Of the largest array that one point takes."""
        return self.locs.numel()

    @property
    def coordinate_scales(self) -> Tensor:
        """Standard deviations of the coordinates, ``(N, K, D)``."""
        return self.scales if self.scales.dim() == 3 else self.scales.square().sum(-1).sqrt()

    def own_log_prob(self, z: Tensor) -> Tensor:
        """Of N points, each under its own posterior, ``(N, D) -> (N,)``."""
        points = z.unsqueeze(1).expand_as(self.locs).unsqueeze(1)  # (N, 1, K, D)
        each = self._normals(self.locs, self.scales).log_prob_of_own(points).squeeze(1)
        return (self.log_weights + each).logsumexp(-1)

    def own_coordinates(self, z: Tensor) -> Tensor:
        """Of their coordinates, ``(N, D) -> (N, D)``; a single posterior is that of all points."""
        scales = self.coordinate_scales
        each = -((z.unsqueeze(1) - self.locs) / scales).square() / 2 - scales.log() - LOG_ROOT
        return (self.log_weights.unsqueeze(-1) + each).logsumexp(1)

    def log_prob(self, z: Tensor) -> Tensor:
        """Of all points under all posteriors, ``(R, D) -> (R, N)``."""
        count, components, _ = self.locs.shape
        normals = self._normals(self.locs.flatten(0, 1), self.scales.flatten(0, 1))
        each = normals.log_prob(z, self.log_weights.flatten()).reshape(len(z), count, components)
        return (self.log_weights + each).logsumexp(-1)

    def coordinate_sums(self, z: Tensor, left_out: Tensor) -> Tensor:
        """Logarithms of summed densities of each coordinate, ``(R, D) -> (R, D)``.

        Exponentials are taken relative to a bound of all densities, and not to the largest term:
        a point that is no posterior's draw may get ``-inf``. Arrays of shape ``D x R x N K``.

        Args:
            z: points.
            left_out: which posteriors are none of the terms, ``(R, N)``.
        """
        count, components, size = self.locs.shape
        x = (z - self._expanded.center).mT  # (D, R)
        powers = torch.stack([x.square(), x], -1)  # (D, R, 2)
        constant = self._expanded.constant
        each = torch.baddbmm(constant, powers, self._expanded.factors).exp_()  # (D, R, N K)
        row, column = left_out.nonzero(as_tuple=True)
        each.view(size, len(z), count, components)[:, row, column] = 0
        return each.sum(-1).log().mT + self._expanded.bound

    @functools.cached_property
    def _expanded(self) -> _Expanded:
        log_weights = self.log_weights.flatten().unsqueeze(-1)  # (N K, 1)
        locs, scales = (x.flatten(0, 1) for x in (self.locs, self.coordinate_scales))
        center, heights = locs.mean(0), log_weights - scales.log()
        bound = heights.amax(0)
        precision, locs = scales.square().reciprocal(), locs - center
        constant = heights - bound - precision * locs.square() / 2
        factors = torch.stack([-precision / 2, precision * locs]).permute(2, 0, 1)
        return _Expanded(
            center, bound - LOG_ROOT, constant.mT.unsqueeze(1).contiguous(), factors.contiguous()
        )

    def _normals(self, locs: Tensor, scales: Tensor) -> Normals:
        return Normals(locs, Diagonal(scales) if self.scales.dim() == 3 else Cholesky(scales))


@dataclass(frozen=True)
class Aggregate:
    r"""Log densities of points under :math:`q(z) = \frac1N \sum_n q(z \mid x_n)`.

    Args:
        own: of :math:`q(z_n \mid x_n)`, ``(N,)``.
        log_prob: of :math:`q(z_n)`, ``(N,)``.
        coordinates: of its coordinates, ``(N, D)``.
        bias: what the logarithm of an estimate is expected to be too low by, negative, ``(N,)``.
    """

    own: Tensor
    log_prob: Tensor
    coordinates: Tensor
    bias: Tensor


def aggregate(sites: list[Encodings], z: list[Tensor], index: Tensor) -> Aggregate:
    r"""The mean of all posteriors at one point of each, or an estimate of it by some of them.

    .. math::
        \hat q(z_n) = \frac1N q(z_n \mid x_n)
        + \frac{N - 1}{N} \operatorname*{mean}_{m \in B, m \ne n} q(z_n \mid x_m)

    It is exact if B is all data, and unbiased if B is drawn at random; its logarithm is too low.

    Args:
        sites: posteriors of each latent site, independent given the datum.
        z: values of these, ``(N, D)`` each.
        index: B, ``(M,)``, of different data.

    Reference:
        Chen, Li, Grosse and Duvenaud, *Isolating sources of disentanglement in variational
        autoencoders* (2018), https://arxiv.org/abs/1802.04942, appendix C: the same mean, where
        the own term is not left to chance.
    """
    total = len(sites[0])
    splits = [value.shape[-1] for value in z]
    chosen = [each[index] for each in sites]
    pairs = list(zip(sites, z, strict=True))
    own = torch.stack([each.own_log_prob(value) for each, value in pairs]).sum(0)  # (N,)
    own_coordinates = torch.cat([each.own_coordinates(value) for each, value in pairs], -1)

    def estimate(points: Tensor, owns: Tensor, number: Tensor) -> Tensor:
        """Of R points with ``owns (R, 1 + D)``: estimates, then the bias of the first."""
        values = list(zip(chosen, points.split(splits, -1), strict=True))
        is_own = index == number  # (R, M)
        joint = torch.stack([each.log_prob(value) for each, value in values]).sum(0)
        joint = joint.masked_fill(is_own, -math.inf)  # (R, M)
        coordinates = [each.coordinate_sums(value, is_own) for each, value in values]
        sums = torch.cat([joint.logsumexp(-1, keepdim=True), *coordinates], -1)  # (R, 1 + D)
        count = (len(index) - is_own.sum(1, keepdim=True)).to(joint)  # (R, 1)
        others = sums - (count * total / (total - 1)).log()
        mean = torch.logaddexp(owns - math.log(total), others)
        ratios = (joint - mean[:, :1]).exp()
        spread = (ratios - ratios.sum(1, keepdim=True) / count).masked_fill(is_own, 0)
        variance = spread.square().sum(1, keepdim=True) / (count - 1).clamp_min(1)
        left = (1 - count / (total - 1)) * ((total - 1) / total) ** 2  # of a finite population
        return torch.cat([mean, -variance * left / count / 2], -1)

    number = torch.arange(total, device=index.device).unsqueeze(-1)
    owns = torch.cat([own.unsqueeze(-1), own_coordinates], -1)
    elements = sum(each.row_elements for each in chosen)
    found = map_chunks(estimate, (torch.cat(z, -1), owns, number), elements, SLICE)
    return Aggregate(own, found[:, 0], found[:, 1:-1], found[:, -1])
