"""Samples that keep their conditional quantiles: what ``implicit`` and ``graves`` share."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_mixtures.distributions.mixture_distribution import MixtureDistribution
from pyro_mixtures.estimators.estimated_mixture import EstimatedMixture
from pyro_mixtures.numerics.chunks import map_chunks
from pyro_mixtures.numerics.pathwise_function import pathwise
from pyro_mixtures.numerics.precision import double
from pyro_mixtures.samples.shapes import folded, unfolded


class QuantileMixture(EstimatedMixture):
    r"""A mixture of Normals whose samples keep :math:`S_i = P(Z_i \le z_i \mid Z_{<i} = z_{<i})`.

    When the parameters change they move by :math:`-J^{-1} \partial S`, with the lower triangular
    :math:`J = \partial S / \partial z`. A subclass supplies ``_moved`` and ``_elements``. The
    arithmetic is in float64 and in slices of samples.
    """

    mixture: MixtureDistribution

    @staticmethod
    def _moved(z: Tensor, log_weights: Tensor, locs: Tensor, scales: Tensor) -> Tensor:
        """Samples ``(*B, S, D)`` as functions, of the same value, of all parameters.

        Args:
            z: ``(*B, S, D)``, without gradient.
            log_weights: normalized, ``(*B, K)``.
            locs: ``(*B, K, D)``.
            scales: standard deviations ``(*B, K, D)`` or Cholesky factors ``(*B, K, D, D)``.
        """
        raise NotImplementedError

    @staticmethod
    def _elements(locs: Tensor, scales: Tensor) -> int:
        """Of the largest array that ``_moved`` makes of one sample of each mixture."""
        raise NotImplementedError

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        z = self.sample(sample_shape)
        core, points, _ = folded(self.mixture, z)
        locs, scales = core.components.normals("quantiles")
        scales = scales.expand(*locs.shape, *scales.shape[locs.dim() :])
        points, logits, locs, scales = double(points, core.component_logits, locs, scales)
        moved = functools.partial(
            self._moved, log_weights=logits.log_softmax(-1), locs=locs, scales=scales
        )
        points = map_chunks(moved, (points,), self._elements(locs, scales))
        live = unfolded(points, z.shape).to(z.dtype)
        return pathwise(z, _pass_on, live)  # whose second derivatives are refused: J is held fixed


def _pass_on(z: Tensor, grad: Tensor, live: Tensor) -> tuple[Tensor]:
    return (grad,)
