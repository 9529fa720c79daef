"""Elliptical distributions whose samples move with a field of our own: the base, and two."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.score_parts import ScoreParts
from pyro.ops.provenance import get_provenance, track_provenance
from torch import Size, Tensor

from pyro_mixtures.distributions.parametric import ParametricDistribution
from pyro_mixtures.numerics.pathwise_function import pathwise
from pyro_mixtures.numerics.precision import at_least_single, double
from pyro_mixtures.numerics.whitening import whiten
from pyro_mixtures.samples.remembering import recall, remember
from pyro_mixtures.samples.score_parts import IndependentParts, mask_tensor
from pyro_mixtures.samples.shapes import folded, unfolded


class EllipticalDistribution(ParametricDistribution):
    r"""The affine image of a spherical distribution.

    .. math:: q(z) = \frac{1}{\det L}\, g\left(|L^{-1} (z - \mu)|^2\right), \qquad
              z = \mu + L \varepsilon

    A distribution (:class:`EllipticalNormal` is an example) supplies

    - ``_rsample_white(shape)``: samples :math:`\varepsilon` of the spherical one, ``(*B, S, D)``,
      with gradients to parameters of its own, if it has any;
    - ``_log_density(squared_radius)``: :math:`\log g`, ``(*B, S) -> (*B, S)``.

    An estimator supplies the ``field`` with which samples move when L changes:
    ``field(white, grad, scale_tril, *further)`` returns the gradients at the first, third and
    further arguments, as :func:`~pyro_mixtures.velocity.rotations.rotations` does.
    """

    has_rsample = True
    field: Any  # a function, of the class or of the instance
    loc: Tensor
    scale_tril: Tensor

    def _rsample_white(self, shape: Size) -> Tensor:
        raise NotImplementedError

    def _log_density(self, squared_radius: Tensor) -> Tensor:
        raise NotImplementedError

    @classmethod
    def _parameter_shapes(cls) -> dict[str, str]:
        return {"loc": "D", "scale_tril": "DD"}

    @property
    def field_parameters(self) -> tuple[Tensor, ...]:
        """The last of the parameters, which belong to the field and not to the distribution."""
        return ()

    @property
    def _unbroadcasted_scale_tril(self) -> Tensor:
        """Where the properties that a distribution inherits look for the factor."""
        return self.core.scale_tril

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        core, shape = self.core, torch.Size(sample_shape) + self.batch_shape
        z, white = core.draw(shape[: len(shape) - len(core.batch_shape)].numel())
        value = unfolded(z, shape + self.event_shape)
        value = value.contiguous()  # some transforms of torch ask for it
        if torch.is_grad_enabled():  # samples without gradient have nothing to spare
            remember(self, value, white)
        return value

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        r"""Samples with their gradients, and their :math:`\varepsilon`, each ``(*B, S, D)``."""
        white = self._rsample_white(self.batch_shape + (count,) + self.event_shape)
        parameters = (white, self.loc, self.scale_tril, *self.field_parameters)
        with torch.no_grad():
            z = self.loc.unsqueeze(-2) + white @ self.scale_tril.mT  # (*B, S, D)
        return pathwise(z, functools.partial(self._vjp, self.field), *parameters), white

    @staticmethod
    def _vjp(field, z: Tensor, grad: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        grad, white, _, *further = at_least_single(grad, *parameters)
        grad_white, *rest = field(white, grad, *further)
        gradients = (grad_white, grad.sum(-2), *rest)
        return tuple(g.to(p.dtype) for g, p in zip(gradients, parameters, strict=True))

    def log_prob(self, value: Tensor) -> Tensor:
        core, z, shape = folded(self, self._validated(value))
        density = core.log_prob_of_white(core.white(z))
        dtype = torch.promote_types(value.dtype, self.loc.dtype)
        return density.movedim(-1, 0).reshape(shape).to(dtype)

    def score_parts(self, x: Tensor, *args: Any, **kwargs: Any) -> ScoreParts:
        r"""Pyro's terms of a surrogate objective.

        For the sample just drawn the density is that of its :math:`\varepsilon`, over det L: of
        the same value, and of the same gradient in the parameters, for whatever the field, the
        distribution is carried along with the sample. So no gradient of :math:`\log q` comes in at
        the sample, and ``control_var`` learns from that of the model alone.
        """
        white = recall(self, x)
        if white is None or not self.has_rsample:
            return super().score_parts(x)
        white = track_provenance(white, get_provenance(x))
        density = self.core.log_prob_of_white(white)  # (*B, S)
        density = density.movedim(-1, 0).reshape(x.shape[:-1]).to(x.dtype)
        return ScoreParts(density, 0, density)  # type: ignore[arg-type]

    @property
    def device(self) -> torch.device:
        """Of the parameters."""
        return self.loc.device

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> Any:
        event = super().to_event(reinterpreted_batch_ndims)
        return event if event is self else IndependentParts(self, event.reinterpreted_batch_ndims)

    def mask(self, mask: Tensor | bool) -> Any:
        return super().mask(mask_tensor(mask, self.batch_shape, self.device))

    def log_prob_of_white(self, white: Tensor) -> Tensor:
        r"""Of the points :math:`\mu + L \varepsilon`, ``(*B, S, D) -> (*B, S)``."""
        white, scale_tril = at_least_single(white, self.scale_tril)
        volume = scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
        return self._log_density(white.square().sum(-1)) - volume

    def white(self, z: Tensor) -> Tensor:
        r""":math:`L^{-1} (z - \mu)`, ``(*B, S, D) -> (*B, S, D)``."""
        z, loc, scale_tril = at_least_single(z, self.loc, self.scale_tril)
        return whiten(z - loc.unsqueeze(-2), scale_tril)


class EllipticalNormal(EllipticalDistribution, torch.distributions.MultivariateNormal):  # type: ignore[override]
    """The multivariate Normal as an elliptical distribution."""

    arg_constraints = {
        "loc": dist.constraints.real_vector,
        "scale_tril": dist.constraints.lower_cholesky,
    }

    def _rsample_white(self, shape):
        return torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)

    def _log_density(self, squared_radius):
        return -0.5 * (squared_radius + self.event_shape[0] * math.log(2 * math.pi))


class EllipticalStudentT(EllipticalDistribution, dist.MultivariateStudentT):  # type: ignore[misc]
    r"""The multivariate Student t distribution as an elliptical distribution.

    .. math:: \varepsilon = n / \sqrt\tau, \qquad n \sim N(0, 1), \quad
              \tau \sim \mathrm{Gamma}(\nu / 2, \nu / 2)
    """

    arg_constraints = {"df": dist.constraints.positive, **EllipticalNormal.arg_constraints}
    df: Tensor

    @classmethod
    def _parameter_shapes(cls):
        return {"df": "", **super()._parameter_shapes()}

    def _rsample_white(self, shape):
        normal = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        (df,) = at_least_single(self.df)  # torch has no Gamma of less
        half = df.unsqueeze(-1).expand(shape[:-1]) / 2
        tau = torch.distributions.Gamma(half, half, validate_args=False).rsample()
        return normal * tau.rsqrt().unsqueeze(-1).to(normal.dtype)

    def _log_density(self, squared_radius):
        (df,), dim = at_least_single(self.df.unsqueeze(-1)), self.event_shape[0]
        (nu,) = double(df)  # of which large terms nearly cancel
        normalizer = torch.lgamma((nu + dim) / 2) - torch.lgamma(nu / 2)
        normalizer = (normalizer - dim / 2 * (nu * math.pi).log()).to(df.dtype)
        return normalizer - (df + dim) / 2 * torch.log1p(squared_radius / df)
