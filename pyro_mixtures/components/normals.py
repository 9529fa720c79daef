"""Normal components."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Size, Tensor

from pyro_mixtures.components.base import Components
from pyro_mixtures.components.compiled_normals import CompiledNormals
from pyro_mixtures.components.scale import Diagonal
from pyro_mixtures.components.shared import Shared, Sized
from pyro_mixtures.numerics.compiled import serves
from pyro_mixtures.numerics.linkage import plainly
from pyro_mixtures.numerics.precision import at_least_single, double
from pyro_mixtures.velocity.adaptive_displacement import Transported, variance_gradient
from pyro_mixtures.velocity.displacement import displacement
from pyro_mixtures.velocity.telescoping import normal_cdf

MOST = 2**18
"""Numbers S x K x D of a mixture with several samples up to which compiled loops are faster than
torch's matrix products; few dimensions cost as much as 16."""


class Normals(Components):
    r"""K Normals :math:`N(\mu_j, L_j L_j^T)`.

    Args:
        locs: means, ``(*B, K, D)``, or None for zero, with
            :class:`~pyro_mixtures.components.shared.Sized` alone.
        scale: :class:`~pyro_mixtures.components.scale.Diagonal`,
            :class:`~pyro_mixtures.components.scale.Cholesky`, or one that they share.
        event_shape: of D numbers, ``(D,)`` unless told.
    """

    name = "Normals"

    def __init__(
        self,
        locs: Tensor | None,
        scale: Diagonal | Shared | Sized,
        event_shape: Size | None = None,
    ) -> None:
        self.locs: Any = locs
        self.scale: Any = scale
        self.given = scale.parameters(locs)  # type: ignore[arg-type]
        shape = scale.shape if locs is None else locs.shape  # type: ignore[union-attr]
        *batch, self.num_components, size = shape
        super().__init__(
            torch.Size(batch), torch.Size([size] if event_shape is None else event_shape)
        )

    @property
    def transports(self):
        return self.scale.transports

    @property
    def best_transport(self):
        """In one dimension there is but one field, and one way to it has no integral."""
        one = self.event_shape.numel() == 1 and self.scale.own is self.scale
        if one and self.scale.compiles and "telescoping" in self.transports:
            return "telescoping"
        return next(iter(self.transports))

    @property
    def parameters(self):
        return self.given

    @property
    def numbers(self):
        return self.given

    def rebuilt(self, *parameters):
        locs, scale = self.scale.rebuilt(*parameters)
        return Normals(locs, scale, self.event_shape)

    def expand(self, batch_shape):
        first = len(self.batch_shape)
        return self.rebuilt(*(x.expand(batch_shape + x.shape[first:]) for x in self.parameters))

    def to(self, dtype):
        if all(x.dtype == dtype for x in self.parameters):
            return self
        return self.rebuilt(*(x.to(dtype) for x in self.parameters))

    def draw(self, index):
        return self.scale.draw(index, *self.given)

    def log_prob(self, z, log_weights):
        return self.scale.log_prob(z, log_weights, *self.given)

    def compiled(self, *samples):
        if not self.scale.compiles or not serves(*self.given, *samples):
            return None
        shape = self.batch_shape, self.event_shape.numel()
        if any((x.shape[:-2], x.shape[-1]) != shape for x in samples):
            return None
        locs, factor = self.given
        shared = isinstance(self.scale, Shared)
        if factor.shape != (locs.shape[:-2] + locs.shape[-1:] if shared else locs.shape):
            return None
        count = samples[0].shape[-2] if samples else 1
        if count > 1 and count * self.num_components * max(self.event_shape.numel(), 16) > MOST:
            return None
        return CompiledNormals(locs, factor, self.scale.compiled_transports(count))

    def pullback(self, here, grad, weighting):
        gradients = self.scale.vjp(here.z, grad, here.responsibilities, *self.given)
        if weighting is None:
            return gradients, None
        transport, within, precision, _ = weighting
        samples = (here.z, grad, here.log_prob, within)
        return gradients, transport(*samples, *self.parameters, precision=precision)

    def distances(self):
        return plainly(self.scale.distances, *double(*self.given))

    @property
    def mean(self):
        if self.locs is not None:
            return self.locs
        like = self.scale.own.factor
        return like.new_zeros(()).expand_as(like)

    @property
    def stddev(self) -> Tensor:
        """Of the coordinates, ``(*B, K, D)``."""
        return self.scale.own.stddev.expand_as(self.mean)

    @property
    def variance(self):
        return self.stddev.square()

    @property
    def covariance(self):
        return self.scale.own.covariance

    def spread(self):
        return self.mean, self.stddev

    def _noise(self, count: int) -> Tensor:
        shape = (count, *self.batch_shape, self.event_shape.numel())
        like = self.parameters[0]
        return torch.randn(shape, dtype=like.dtype, device=like.device).movedim(0, -2)

    def rsample(self, count):
        """With random numbers that the components share."""
        return self.mean.unsqueeze(-3) + self.scale.own.spread(self._noise(count))

    def sample(self, count):
        with torch.no_grad():
            return self.rsample(count)

    def log_prob_of_own(self, z):
        own = self.scale.own
        z, locs, factor = at_least_single(z, self.mean, own.factor)
        factor = type(own)(factor.unsqueeze(-2 - own.event_dim))  # (*B, 1, K, ...)
        square = factor.whiten(z - locs.unsqueeze(-3)).square().sum(-1)
        return -square / 2 - factor.log_volume - z.shape[-1] / 2 * math.log(2 * math.pi)

    def normals(self, purpose):
        return self.mean, self.scale.own.factor

    def tails(self, z):
        locs, stddev = (x.unsqueeze(-3) for x in self.spread())
        standard = (z.unsqueeze(-2) - locs) / stddev
        return normal_cdf(standard), normal_cdf(-standard)

    def ends(self, dtype):
        high = torch.full_like(self.mean, math.inf, dtype=dtype)
        return -high, high

    def marginal(self, dims):
        return Normals(
            self.locs if self.locs is None else self.locs[..., dims], self.scale.marginal(dims)
        )

    def condition(self, value):
        r"""By the factor, whose blocks hold those of the conditional distribution.

        .. math::
            L = \begin{pmatrix} L_{11} & 0 \\ L_{21} & L_{22} \end{pmatrix}: \qquad
            \mu_{2 \mid 1} = \mu_2 + L_{21} L_{11}^{-1} (z_1 - \mu_1), \qquad
            L_{2 \mid 1} = L_{22}
        """
        count = value.shape[-1]
        here = self.expand(torch.broadcast_shapes(value.shape[:-1], self.batch_shape))
        scale, locs = here.scale.rest(count), here.locs
        if locs is not None:
            offset = value.unsqueeze(-2) - locs[..., :count]  # (*X, K, N)
            locs = locs[..., count:] + here.scale.own.response(offset)
        return Normals(locs, scale)

    def affine(self, matrix, offset):
        here = self
        if offset is not None:
            here = self.expand(torch.broadcast_shapes(offset.shape[:-1], self.batch_shape))
        if matrix.dim() == 1:
            scale = here.scale.rescaled(matrix)
            locs = None if here.locs is None else here.locs * matrix
        else:
            scale, locs = here.scale.image(matrix), here.mean @ matrix.mT
        if offset is not None:
            locs = (here.mean if locs is None else locs) + offset.to(matrix).unsqueeze(-2)
        return Normals(locs, scale)


class LearnedHub(Normals):
    r"""Diagonal Normals whose displacement goes to a hub that learns.

    Args:
        locs: means, ``(*B, K, D)``.
        scale: :class:`~pyro_mixtures.components.scale.Diagonal`.
        control_var: the hub's departure, ``(*B, 2, K, D)``.
    """

    transports: Any = {"displacement": displacement}

    def compiled(self, *samples):
        return None

    def __init__(self, locs: Tensor, scale: Diagonal, control_var: Tensor) -> None:
        super().__init__(locs, scale)
        self.control_var = control_var

    @property
    def parameters(self):
        return *self.given, self.control_var

    @property
    def field_parameters(self):
        return (self.control_var,)

    def rebuilt(self, locs, factor, control_var):  # type: ignore[override]
        return LearnedHub(locs, Diagonal(factor), control_var)

    def pullback(self, here, grad, weighting):
        gradients, contributions = super().pullback(here, grad, weighting)
        if weighting is None or not weighting.learns:
            return (*gradients, torch.zeros_like(self.control_var)), contributions
        _, within, precision, _ = weighting
        weights = here.log_weights.to(contributions).exp().unsqueeze(-2)
        arguments = (here.z, grad, here.log_prob, within, *self.parameters, contributions, weights)
        by_hub = variance_gradient(Transported(*arguments), precision=precision)
        return (*gradients, by_hub), contributions

    def distances(self):
        return Normals(self.locs, self.scale).distances()

    def _beside(self, normals: Normals, control_var: Tensor) -> LearnedHub:
        shape = normals.batch_shape + control_var.shape[-3:]
        return LearnedHub(normals.locs, normals.scale, control_var.expand(shape))

    def marginal(self, dims):
        return self._beside(super().marginal(dims), self.control_var[..., dims])

    def condition(self, value):
        return self._beside(super().condition(value), self.control_var[..., value.shape[-1] :])

    def affine(self, matrix, offset):
        normals = super().affine(matrix, offset)
        if matrix.dim() == 2:
            return normals
        # a distance in standard deviations, and a logarithm of scales
        signs = torch.stack([matrix.sign(), torch.ones_like(matrix)]).unsqueeze(-2)
        return self._beside(normals, self.control_var * signs)
