"""Scales of components that share one factor, and may have a size each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from pyro_mixtures.components.scale import Diagonal, Transport
from pyro_mixtures.numerics.whitening import whiten
from pyro_mixtures.velocity.diagonal_implicit import spherical_implicit
from pyro_mixtures.velocity.displacement import displacement
from pyro_mixtures.velocity.radial import radial
from pyro_mixtures.velocity.spherical import (
    shared_displacement,
    spherical_displacement,
    spherical_distance,
    spherical_log_prob,
    spherical_pairwise,
    spherical_telescoping,
    whitened,
)


def _of_one_size(transport: Transport) -> Transport:
    """A transport for components of one shape as one for components of one covariance."""
    shaped = whitened(transport)

    def unit(z, grad, log_prob, within, locs, factor, *, precision):
        sizes = torch.ones_like(locs[..., 0])
        return shaped(z, grad, log_prob, within, factor, sizes, locs, precision=precision)

    return unit


_whitened_displacement = _of_one_size(shared_displacement)


def _displacement(z, grad, log_prob, within, locs, factor, *, precision):
    if z.shape[-2] == 1 and factor.dim() < locs.dim():  # to whiten one sample does not pay
        scales = factor.unsqueeze(-2).expand_as(locs)
        return displacement(z, grad, log_prob, within, locs, scales, precision=precision)
    return _whitened_displacement(z, grad, log_prob, within, locs, factor, precision=precision)


def _sized_displacement(x, grad, log_prob, within, sizes, means=None, *, precision):
    if means is None:  # the same field
        return radial(x, grad, log_prob, within, sizes, precision=precision)
    return spherical_displacement(x, grad, log_prob, within, sizes, means, precision=precision)


class Shared:
    """One factor of all components.

    It has the methods of :class:`~pyro_mixtures.components.scale.Diagonal`, for K components.

    Args:
        factor: of shape ``(*B, D)`` or ``(*B, D, D)``.
    """

    transports: ClassVar[Mapping[str, Transport]] = {
        "displacement": _displacement,
        "pairwise": _of_one_size(spherical_pairwise),
        "telescoping": _of_one_size(spherical_telescoping),
        "implicit": _of_one_size(spherical_implicit),
    }

    def __init__(self, factor: Diagonal) -> None:
        self.factor, self.kind = factor, f"shared {factor.kind}"
        self.compiles = factor.compiles

    def compiled_transports(self, count: int) -> Mapping[str, Transport]:
        """Of several samples the displacement goes to another hub than that of one."""
        return {"displacement": self.transports["displacement"]} if count == 1 else {}

    @property
    def own(self) -> Diagonal:
        """The scale with a factor for each component, ``(*B, K or 1, ...)``."""
        return type(self.factor)(self.factor.factor.unsqueeze(-1 - self.factor.event_dim))

    def _with(self, factor: Diagonal):
        return Shared(factor)

    def marginal(self, dims):
        """Of some coordinates."""
        return self._with(self.factor.marginal(dims))

    def rest(self, count):
        """Of the coordinates after the first ``count``, given those."""
        return self._with(self.factor.rest(count))

    def rescaled(self, vector):
        """Of each coordinate times a number, ``(D,)``."""
        return self._with(self.factor.rescaled(vector))

    def image(self, matrix):
        return Shared(self.factor.image(matrix))

    def parameters(self, locs):
        return locs, self.factor.factor

    def rebuilt(self, locs, factor):
        return locs, Shared(type(self.factor)(factor))

    def draw(self, index, locs, factor):
        loc = locs.gather(-2, index.unsqueeze(-1).expand(*index.shape, locs.shape[-1]))
        return loc + self.factor.colored(torch.randn_like(loc))

    @staticmethod
    def log_prob(z, log_weights, locs, factor):
        return spherical_log_prob(z, log_weights, factor, torch.ones_like(log_weights), locs)

    def vjp(self, z, grad, responsibilities, locs, factor):
        center = locs.mean(-2, keepdim=True)
        offset = (z - center).sub_(responsibilities @ (locs - center))  # from the likely means
        return responsibilities.mT @ grad, self.factor.pull(whiten(offset, factor), grad)

    @staticmethod
    def distances(locs, factor):
        return spherical_distance(factor, torch.ones_like(locs[..., 0]), locs)


class Sized(Shared):
    r"""One diagonal factor :math:`\sigma` of all components, in sizes :math:`\lambda`.

    Args:
        factor: of shape ``(*B, D)``.
        sizes: ``(*B, K)``, positive.
    """

    transports = {
        "displacement": whitened(_sized_displacement),
        "radial": whitened(radial),
        "telescoping": whitened(spherical_telescoping),
        "implicit": whitened(spherical_implicit),
    }

    def __init__(self, factor: Diagonal, sizes: Tensor) -> None:
        self.factor, self.sizes, self.kind = factor, sizes, f"sized {factor.kind}"
        self.compiles = False

    @property
    def shape(self) -> tuple[int, ...]:
        """That of means, ``(*B, K, D)``."""
        return *self.sizes.shape, self.factor.factor.shape[-1]

    @property
    def own(self):
        return Diagonal(self.sizes.unsqueeze(-1) * self.factor.factor.unsqueeze(-2))

    def _with(self, factor):
        return Sized(factor, self.sizes)

    def image(self, matrix):
        return self.own.image(matrix)

    def parameters(self, locs):
        return self.factor.factor, self.sizes, *(() if locs is None else (locs,))

    def rebuilt(self, factor, sizes, locs=None):  # type: ignore[override]
        return locs, Sized(Diagonal(factor), sizes)

    log_prob = staticmethod(spherical_log_prob)  # type: ignore[assignment]
    distances = staticmethod(spherical_distance)  # type: ignore[assignment]

    @staticmethod
    def draw(index, factor, sizes, locs=None):  # type: ignore[override]
        scale = sizes.gather(-1, index).unsqueeze(-1) * factor.unsqueeze(-2)  # (*B, S, D)
        noise = torch.randn_like(scale)
        if locs is None:
            return noise * scale
        return torch.addcmul(locs.gather(-2, index.unsqueeze(-1).expand_as(scale)), noise, scale)

    @staticmethod
    def vjp(z, grad, responsibilities, factor, sizes, locs=None):  # type: ignore[override]
        weights = responsibilities.mT  # (*B, K, S)
        if locs is None:
            product = grad * z
            grad_sizes = (weights @ product.sum(-1, keepdim=True)).squeeze(-1) / sizes
            return product.sum(-2) / factor, grad_sizes
        center = locs.mean(-2, keepdim=True)
        z, offset = z - center, locs - center
        grad_locs = weights @ grad  # (*B, K, D)
        along = weights @ (grad * z).sum(-1, keepdim=True)  # (*B, K, 1)
        grad_sizes = (along.squeeze(-1) - (grad_locs * offset).sum(-1)) / sizes
        grad_factor = (grad * (z - responsibilities @ offset)).sum(-2) / factor
        return grad_factor, grad_sizes, grad_locs
