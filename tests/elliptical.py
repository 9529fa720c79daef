"""Every elliptical law with what the tests need to judge it: a new law is one more entry.

The reference of a law shares no code with this package: torch's class, Pyro's, or one that inverts
a covariance matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from unittest import mock

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_mixtures.distributions import (
    AVFElliptical,
    AVFMultivariateNormal,
    AVFMultivariateStudentT,
    OMTMultivariateNormal,
)
from pyro_mixtures.distributions.elliptical import EllipticalDistribution
from tests.registry import Parameters, leaves, random_factor


@dataclass(frozen=True)
class Law:
    """An elliptical distribution, random parameters for it, and the same in others' terms.

    Args:
        distribution: the class.
        reference: a distribution with ``log_prob`` and, where they exist, moments.
        options: further arguments of the class.
        light_tails: parameters with which costs that grow have finite variance.
        radius: where the density of whitened samples with ``light_tails`` has vanished, even when
            a quartic cost is expected.
        exponential_moments: whether the expectation of an exponential cost exists.
    """

    distribution: type[EllipticalDistribution]
    reference: Callable[[Parameters], dist.TorchDistribution | MultivariateNormal]
    options: dict[str, str] = field(default_factory=dict)
    light_tails: dict[str, float] = field(default_factory=dict)
    radius: float = 9.0
    exponential_moments: bool = True

    @property
    def adapts(self) -> bool:
        """Whether it has a ``control_var``."""
        return issubclass(self.distribution, AVFElliptical)

    def parameters(
        self,
        batch_shape: tuple[int, ...] = (),
        D: int = 3,
        M: int = 2,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        scales: tuple[float, float] = (0.5, 1.5),
        shift: float = 0.7,
        light_tails: bool = False,
    ) -> Parameters:
        """Random parameters with gradient. The coordinates' scales run from the first of
        ``scales`` to the second in random order."""
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        order = randn(*batch_shape, D).argsort(-1).double() / max(D - 1, 1)
        scale = scales[0] * (scales[1] / scales[0]) ** order
        drawn = {
            "loc": shift + randn(*batch_shape, D),
            "scale_tril": random_factor(scale, randn),
            "control_var": 0.7 * randn(*batch_shape, 2, M, D),
            "df": 3 + randn(*batch_shape).exp(),
        }
        drawn["control_var"][..., 0, :, :] /= scale.unsqueeze(-2)  # rotations of any size alike
        names = self.distribution._parameter_shapes()
        parameters = {name: drawn[name].to(dtype) for name in names}
        if light_tails:
            for name, value in self.light_tails.items():
                parameters[name] = torch.full_like(parameters[name], value)
        return leaves(parameters)

    def build(self, parameters: Parameters, **options) -> EllipticalDistribution:
        return self.distribution(**parameters, **self.options, **options)

    def velocity(self, parameters: Parameters, z: Tensor, samples: int = 1) -> Tensor:
        """Of a sample at ``z``, ``(D,)``, when an entry of ``scale_tril`` changes: ``(D, D, D)``
        with the coordinate first.

        It is read off the code: the incoming gradient of a unit vector gives one coordinate.
        Several ``samples`` take another path through it; but one have no gradient.
        """
        dim = len(z)
        offset = (z - parameters["loc"]).unsqueeze(-1)
        white = torch.linalg.solve_triangular(parameters["scale_tril"], offset, upper=False)
        white, z = (x.reshape(1, 1, dim).expand(dim, samples, dim) for x in (white, z))
        unit = torch.eye(dim, dtype=z.dtype).unsqueeze(-2)
        grad = torch.cat([unit, torch.zeros(dim, samples - 1, dim, dtype=z.dtype)], -2)
        names = [name for name in ("loc", "scale_tril", "control_var") if name in parameters]
        each = [parameters[name].expand(dim, *parameters[name].shape) for name in names]
        field = self.build(parameters).field
        return self.distribution._vjp(field, z, grad, white, *each)[2]


class AVFPowerExponential(AVFElliptical):
    """``exp(-|L^-1 (z - mu)|^4 / 2)``: a law of the tests' own."""

    arg_constraints = AVFMultivariateNormal.arg_constraints

    def __init__(self, loc, scale_tril, control_var, *, planes="axes", validate_args=None):
        given = {"loc": loc, "scale_tril": scale_tril, "control_var": control_var}
        super().__init__(given, planes=planes, validate_args=validate_args)

    def _rsample_white(self, shape):
        direction = torch.nn.functional.normalize(torch.randn(shape, dtype=self.loc.dtype), dim=-1)
        gamma = 2 * torch._standard_gamma(torch.full(shape[:-1], shape[-1] / 4))
        return direction * gamma.pow(0.25).unsqueeze(-1).to(direction.dtype)

    def _log_density(self, squared_radius):
        return _power_exponential_constant(self.event_shape[0]) - squared_radius.square() / 2


def _power_exponential_constant(dim: int) -> float:
    sphere = math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)
    return -(sphere + dim / 4 * math.log(2) + math.lgamma(dim / 4) - math.log(4))


class DensePowerExponential(dist.TorchDistribution):
    """By the inverse and the determinant of the covariance matrix."""

    arg_constraints = {}
    support = dist.constraints.real_vector

    def __init__(self, parameters: Parameters):
        self.loc, factor = parameters["loc"], parameters["scale_tril"].tril()
        batch_shape = torch.broadcast_shapes(self.loc.shape[:-1], factor.shape[:-2])
        self.shape_matrix = factor @ factor.mT
        super().__init__(batch_shape, self.loc.shape[-1:], validate_args=False)

    def log_prob(self, value):
        offset = (value - self.loc).unsqueeze(-1)
        square = (offset.mT @ self.shape_matrix.inverse() @ offset).squeeze((-1, -2))
        constant = _power_exponential_constant(value.shape[-1])
        return constant - square.square() / 2 - self.shape_matrix.logdet() / 2


def normal(parameters: Parameters) -> MultivariateNormal:
    loc, factor = parameters["loc"], parameters["scale_tril"]
    return MultivariateNormal(loc, scale_tril=factor, validate_args=False)


def student_t(parameters: Parameters) -> dist.MultivariateStudentT:
    df, loc, factor = (parameters[name] for name in ("df", "loc", "scale_tril"))
    return dist.MultivariateStudentT(df, loc, factor, validate_args=False)


ROWS = {"planes": "rows"}
LAWS = {
    "avf_normal": Law(AVFMultivariateNormal, normal),
    "avf_normal_rows": Law(AVFMultivariateNormal, normal, ROWS),
    "avf_student_t": Law(
        AVFMultivariateStudentT,
        student_t,
        light_tails={"df": 30.0},
        radius=25.0,
        exponential_moments=False,
    ),
    "avf_power_exponential_rows": Law(
        AVFPowerExponential, DensePowerExponential, ROWS, radius=4.0
    ),
    "omt_normal": Law(OMTMultivariateNormal, normal),
}


def laws(keep: Callable[[Law], bool]):
    chosen = [pytest.param(law, id=name) for name, law in LAWS.items() if keep(law)]
    return pytest.mark.parametrize("law", chosen)


each_law = laws(lambda law: True)
each_adaptive_law = laws(lambda law: law.adapts)


def sample_at(distribution: EllipticalDistribution, points: Tensor) -> Tensor:
    """``rsample`` with a chosen outcome ``(*sample_shape, *batch_shape, D)``."""
    with torch.no_grad():
        offset = (points - distribution.loc).unsqueeze(-1)
        white = torch.linalg.solve_triangular(distribution.scale_tril, offset, upper=False)
    return sample_from(distribution, white.squeeze(-1))


def sample_from(distribution: EllipticalDistribution, white: Tensor) -> Tensor:
    """``rsample`` with chosen samples of the spherical law, ``(*sample_shape, *batch_shape, D)``.

    Only the drawing is replaced: shapes and the backward pass are the real ones.
    """
    sample_shape = white.shape[: white.dim() - 1 - len(distribution.batch_shape)]
    batch_shape = distribution.core.batch_shape
    white = white.reshape(-1, *batch_shape, white.shape[-1]).movedim(0, -2)
    with mock.patch.object(type(distribution), "_rsample_white", return_value=white):
        return distribution.rsample(sample_shape)


def sampled(parameters: Parameters) -> Parameters:
    """Those that samples at given points move with: all but those of the spherical law."""
    return {name: value for name, value in parameters.items() if name != "df"}


def grid(law: Law, parameters: Parameters) -> tuple[Tensor, Tensor]:
    """Points ``(S, D)`` of a trapezoidal rule and the probability of their cells.

    Smooth densities and costs of few waves in a step make it exact to rounding.
    """
    loc, scale_tril = parameters["loc"].detach(), parameters["scale_tril"].detach()
    step = min(0.4, law.radius / 30)
    axis = torch.arange(-law.radius, law.radius, step, dtype=loc.dtype)
    white = torch.cartesian_prod(*[axis] * len(loc)).reshape(-1, len(loc))
    points = loc + white @ scale_tril.mT
    cell = step ** len(loc) * scale_tril.diagonal().prod()
    return points, law.reference(parameters).log_prob(points).exp().detach() * cell
