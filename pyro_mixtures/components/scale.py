"""Scales of Normals as values: the algebra of a factor L of the covariance.

A scale is of K components, each with a factor of its own, ``(*B, K, D)`` if diagonal and else
``(*B, K, D, D)``; or it is the factor ``(*B, D)`` or ``(*B, D, D)`` that all components share:
:class:`~pyro_mixtures.components.shared.Shared` makes a scale of that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_mixtures.numerics.chunks import map_chunks
from pyro_mixtures.numerics.linkage import bhattacharyya_diag_normal, linkage_cut
from pyro_mixtures.numerics.precision import at_least_single
from pyro_mixtures.velocity import full_components
from pyro_mixtures.velocity.diagonal_components import diag_normal_log_prob, location_scale_vjp
from pyro_mixtures.velocity.diagonal_implicit import implicit
from pyro_mixtures.velocity.displacement import displacement
from pyro_mixtures.velocity.full_components import (
    apply_each,
    bhattacharyya_normal,
    normal_log_prob,
    normal_vjp,
)
from pyro_mixtures.velocity.full_implicit import normal_implicit
from pyro_mixtures.velocity.full_transports import normal_displacement, normal_telescoping
from pyro_mixtures.velocity.telescoping import diag_normal_telescoping

Transport = Callable[..., Tensor]


class Diagonal:
    r"""Standard deviations.

    Args:
        factor: ``(..., D)``, positive.

    Functions of Normals with such a scale are of their parameters, in one order:
    ``log_prob(z, log_weights, *parameters)``, log densities ``(*B, S, K)``;
    ``vjp(z, grad, responsibilities, *parameters)``, the gradients of Eq. 12;
    ``distances(*parameters)``, those of Bhattacharyya, ``(*B, K, K)``;
    ``draw(index, *parameters)``; and the ``transports``.
    """

    event_dim: ClassVar[int] = 1
    transports: ClassVar[Mapping[str, Transport]] = {
        "displacement": displacement,
        "telescoping": diag_normal_telescoping,
        "implicit": implicit,
    }

    kind = "diagonal"
    compiles = True
    """Whether there are compiled loops for Normals of it."""

    def __init__(self, factor: Tensor) -> None:
        self.factor = factor

    def compiled_transports(self, count: int) -> Mapping[str, Transport]:
        """Those that the loops compute, too, for so many samples of a mixture."""
        return self.transports

    @property
    def own(self) -> Diagonal:
        """The scale with a factor for each component, ``(*B, K or 1, ...)``."""
        return self

    @property
    def stddev(self) -> Tensor:
        """Of the coordinates, ``(..., D)``."""
        return self.factor

    @property
    def covariance(self) -> Tensor:
        """``(..., D, D)``."""
        return self.factor.square().diag_embed()

    @property
    def log_volume(self) -> Tensor:
        """Of the determinants, ``(...)``."""
        return self.factor.log().sum(-1)

    def whiten(self, offset: Tensor) -> Tensor:
        """Differences of places in units of the factor, ``(..., D) -> (..., D)``."""
        return offset / self.factor

    def spread(self, noise: Tensor) -> Tensor:
        """The same noise in the scale of every component, ``(*B, S, D) -> (*B, S, K, D)``."""
        return noise.unsqueeze(-2) * self.factor.unsqueeze(-3)

    def colored(self, noise: Tensor) -> Tensor:
        """Noise in the factor that all components share, ``(*B, S, D) -> (*B, S, D)``."""
        return noise * self.factor.unsqueeze(-2)

    def pull(self, standard: Tensor, grad: Tensor) -> Tensor:
        """The gradient of that factor by those at whitened samples, ``(*B, S, D)`` both."""
        return (standard * grad).sum(-2)

    def marginal(self, dims: list[int]):
        """Of some coordinates."""
        return type(self)(self.factor[..., dims])

    def rest(self, count: int):
        """Of the coordinates after the first ``count``, given those."""
        return type(self)(self.factor[..., count:])

    def response(self, offset: Tensor) -> Tensor | float:
        """The change of their mean with that of the first ones, ``(..., N) -> (..., D - N)``."""
        return 0.0

    def rescaled(self, vector: Tensor):
        """Of each coordinate times a number, ``(D,)``."""
        return type(self)(self.factor * vector.abs())

    def image(self, matrix: Tensor) -> Cholesky:
        """Of a matrix times the vectors, ``(D', D)``."""
        return Cholesky(_lower_factor(matrix * self.factor.unsqueeze(-2)))

    # of Normals with a factor each, which are made of ``locs, factor``

    log_prob: Any = staticmethod(diag_normal_log_prob)
    vjp: Any = staticmethod(location_scale_vjp)
    distances: Any = staticmethod(bhattacharyya_diag_normal)

    def parameters(self, locs: Tensor) -> tuple[Tensor, ...]:
        """What Normals of this scale are made of, in the order of their functions."""
        return locs, self.factor

    def rebuilt(self, locs: Tensor, factor: Tensor):
        """Means and scale of other parameters."""
        return locs, type(self)(factor)

    @staticmethod
    def draw(index: Tensor, locs: Tensor, factor: Tensor) -> Tensor:
        """Samples of the components ``index (*B, S)``, ``(*B, S, D)``."""
        index = index.unsqueeze(-1).expand(*index.shape, locs.shape[-1])  # (*B, S, D)
        loc = locs.gather(-2, index)
        return torch.addcmul(loc, torch.randn_like(loc), factor.gather(-2, index))


class Cholesky(Diagonal):
    """Lower triangular factors.

    What stands above the diagonal is no parameter: ``tril`` keeps gradients from there.

    Args:
        factor: ``(..., D, D)``, with a positive diagonal.
    """

    event_dim, kind, compiles = 2, "triangular", False
    transports = {
        "displacement": normal_displacement,
        "telescoping": normal_telescoping,
        "implicit": normal_implicit,
    }

    @property
    def stddev(self):
        return self.factor.square().sum(-1).sqrt()

    @property
    def covariance(self):
        factor = self.factor.tril()
        return factor @ factor.mT

    @property
    def log_volume(self):
        return self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def whiten(self, offset):
        columns = offset.unsqueeze(-1)
        return torch.linalg.solve_triangular(self.factor, columns, upper=False).squeeze(-1)

    def spread(self, noise):
        return torch.einsum("...kij,...sj->...ski", self.factor.tril(), noise)

    def colored(self, noise):
        return noise @ self.factor.mT

    def pull(self, standard, grad):
        return (grad.mT @ standard).tril()

    def marginal(self, dims):
        return Cholesky(_lower_factor(self.factor.tril()[..., dims, :]))

    def rest(self, count):
        return Cholesky(self.factor[..., count:, count:])

    def response(self, offset):
        r""":math:`L_{21} L_{11}^{-1} (z_1 - \mu_1)`."""
        count, dtype = offset.shape[-1], offset.dtype
        first, second = self.factor[..., :count, :count], self.factor[..., count:, :count]
        offset, first, second = at_least_single(offset, first, second)
        gain = torch.linalg.solve_triangular(first, second, upper=False, left=False)
        return torch.einsum("...ij,...j->...i", gain, offset).to(dtype)

    def rescaled(self, vector):
        return Cholesky(self.factor * vector.unsqueeze(-1) * vector.sign())

    def image(self, matrix):
        return Cholesky(_lower_factor(matrix @ self.factor.tril()))

    log_prob = staticmethod(normal_log_prob)
    vjp = staticmethod(normal_vjp)

    @staticmethod
    def distances(locs, factor):
        return bhattacharyya_normal(locs, factor, linkage_cut(locs.shape[-1]))

    @staticmethod
    def draw(index, locs, factor):
        index = index.unsqueeze(-1).expand(*index.shape, locs.shape[-1])  # (*B, S, D)
        loc = locs.gather(-2, index)

        def turned(normal: Tensor, index: Tensor) -> Tensor:
            """By all factors, of which each sample then takes its own."""
            each = apply_each(factor, normal).movedim(-1, -3)  # (*B, S, K, D)
            return each.gather(-2, index.unsqueeze(-2)).squeeze(-2)

        return loc + map_chunks(turned, (torch.randn_like(loc), index), locs.numel())


def _lower_factor(matrix: Tensor) -> Tensor:
    """:func:`~pyro_mixtures.velocity.full_components.lower_factor`, also in half precision."""
    return full_components.lower_factor(*at_least_single(matrix)).to(matrix.dtype)
