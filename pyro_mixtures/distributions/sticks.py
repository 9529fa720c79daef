"""What is asked of the sticks that weights are broken from, by families of distributions."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import (
    Beta,
    Distribution,
    Gamma,
    Kumaraswamy,
    SigmoidTransform,
    TransformedDistribution,
    register_kl,
)
from torch.nn.functional import logsigmoid

from pyro_mixtures.distributions import transformed_distribution
from pyro_mixtures.distributions.kumaraswamy import (
    kumaraswamy_expected_log,
    kumaraswamy_expected_log_rest,
    kumaraswamy_log_density,
    kumaraswamy_logits,
    kumaraswamy_moment,
)
from pyro_mixtures.distributions.relaxed import uniform
from pyro_mixtures.distributions.transformed_distribution import base_score_term
from pyro_mixtures.families.interior import within
from pyro_mixtures.numerics.incomplete import beta_tails
from pyro_mixtures.numerics.pathwise_function import pathwise
from pyro_mixtures.numerics.precision import double
from pyro_mixtures.samples.score_parts import ScoreTerm


class Result(NamedTuple):
    """A tensor, in double precision where it was computed so, and the dtype of the sticks."""

    value: Tensor
    dtype: torch.dtype


class Draw(NamedTuple):
    """Samples of sticks.

    Args:
        logits: with gradients, in double precision.
        dtype: of the sticks.
        point: what was drawn.
    """

    logits: Tensor
    dtype: torch.dtype
    point: Tensor


class Sticks:
    r"""Of any family that has ``rsample``: next to 0 and 1 as exact as its own samples.

    Sticks v are drawn and evaluated at their logits in double precision, from which
    :math:`\log v` and :math:`\log(1 - v)` follow with all their digits.

    Args:
        distribution: over the unit interval, or over several sticks at once.
    """

    def __init__(self, distribution: Any) -> None:
        self.distribution = distribution

    def draw(self, sample_shape: torch.Size) -> Draw:
        """Of each stick, or of all at once."""
        point = self.distribution.rsample(sample_shape)
        (v,) = double(within(point, 0, 1))
        return Draw(v.log() - (-v).log1p(), point.dtype, point)

    def score_term(self, point: Tensor) -> ScoreTerm | None:
        """That goes with what was drawn, of distributions that have any: mixtures."""
        return base_score_term(self.distribution, point)

    def log_density(self, logits: Tensor, dtype: torch.dtype) -> Result:
        """Of the sticks that have these logits, in this dtype or a wider one."""
        density = self.distribution.log_prob(within(logits.sigmoid().to(dtype), 0, 1))
        return Result(density, density.dtype)

    def moments(self) -> tuple[Result, Result]:
        """The means of v and of its square."""
        try:
            mean, variance = self.distribution.mean, self.distribution.variance
        except NotImplementedError:
            raise self._lacks("a mean and a variance") from None
        first, spread = double(mean, variance)
        return Result(first, mean.dtype), Result(first.square() + spread, mean.dtype)

    def expected_logs(self) -> tuple[Tensor, Tensor]:
        r""":math:`E \log v` and :math:`E \log(1 - v)`, in double precision."""
        raise self._lacks("an entropy in closed form, as Beta and Kumaraswamy")

    def entropy(self) -> Result:
        """Of each stick."""
        raise self._lacks("an entropy in closed form, as Beta and Kumaraswamy")

    def _lacks(self, what: str) -> NotImplementedError:
        name = type(self.distribution).__name__
        return NotImplementedError(f"Expected sticks that have {what}, but got {name}")


class _TwoConcentrations(Sticks):
    """A family with the parameters a and b, for which torch has names of its own."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return self.distribution.concentration1.dtype

    @property
    def concentrations(self) -> list[Tensor]:
        """In double precision."""
        return double(self.distribution.concentration1, self.distribution.concentration0)

    def score_term(self, point: Tensor) -> None:
        return None


class BetaSticks(_TwoConcentrations):
    """Drawn in logarithms, with the implicit gradients of the Beta distribution."""

    def draw(self, sample_shape: torch.Size) -> Draw:
        shape = sample_shape + self.distribution.batch_shape
        own = (self.distribution.concentration1, self.distribution.concentration0)
        a, b = (x.expand(shape) for x in own)
        with torch.no_grad():
            logits = _log_gamma(a) - _log_gamma(b)
        velocities = beta_tails(a, b, *(x.to(a.dtype) for x in log_parts(logits))).velocities
        if velocities:
            logits = pathwise(logits, _carried, a, b, *velocities)
        return Draw(logits, self.dtype, logits)

    def log_density(self, logits: Tensor, dtype: torch.dtype) -> Result:
        log_density = beta_log_density(*log_parts(logits), self.distribution)
        return Result(log_density, torch.promote_types(dtype, self.dtype))

    def moments(self) -> tuple[Result, Result]:
        a, b = self.concentrations
        mean = a / (a + b)
        return Result(mean, self.dtype), Result(mean * (a + 1) / (a + b + 1), self.dtype)

    def expected_logs(self) -> tuple[Tensor, Tensor]:
        a, b = self.concentrations
        total = (a + b).digamma()
        return a.digamma() - total, b.digamma() - total

    def entropy(self) -> Result:
        return Result(-beta_log_density(*self.expected_logs(), self.distribution), self.dtype)


class KumaraswamySticks(_TwoConcentrations):
    """Drawn in logarithms: torch's own samples round to 0 and to 1."""

    def draw(self, sample_shape: torch.Size) -> Draw:
        a, b = self.concentrations
        shape = sample_shape + self.distribution.batch_shape
        exponential = -uniform(shape, a).log().to(a)
        logits = kumaraswamy_logits(exponential, a, b)
        return Draw(logits, self.dtype, logits)

    def log_density(self, logits: Tensor, dtype: torch.dtype) -> Result:
        density = kumaraswamy_log_density(logits, *self.concentrations)
        return Result(density, torch.promote_types(dtype, self.dtype))

    def moments(self) -> tuple[Result, Result]:
        first, second = (kumaraswamy_moment(n, *self.concentrations) for n in (1, 2))
        return Result(first, self.dtype), Result(second, self.dtype)

    def expected_logs(self) -> tuple[Tensor, Tensor]:
        a, b = self.concentrations
        return kumaraswamy_expected_log(a, b), kumaraswamy_expected_log_rest(a, b, self.dtype)

    def entropy(self) -> Result:
        a, b = self.concentrations
        log_v = kumaraswamy_expected_log(a, b)
        return Result((b - 1) / b - (a - 1) * log_v - a.log() - b.log(), self.dtype)


class SigmoidSticks(Sticks):
    """The last transform is a sigmoid: drawn and evaluated before it."""

    def __init__(self, distribution: TransformedDistribution) -> None:
        super().__init__(distribution)
        before, base = distribution.transforms[:-1], distribution.base_dist
        self.base = transformed_distribution.TransformedDistribution(base, before)

    def draw(self, sample_shape: torch.Size) -> Draw:
        point = self.base.rsample(sample_shape)
        return Draw(double(point)[0], point.dtype, point)

    def score_term(self, point: Tensor) -> ScoreTerm | None:
        return base_score_term(self.base, point)

    def log_density(self, logits: Tensor, dtype: torch.dtype) -> Result:
        log_density = self.base.log_prob(logits.to(dtype))
        log_v, log_rest = log_parts(logits)
        log_slope = log_v + log_rest
        if self.distribution.event_shape:
            log_slope = log_slope.sum(-1)
        return Result(log_density - log_slope, log_density.dtype)


def sticks_of(distribution: Distribution) -> Sticks:
    """What is known of a family."""
    if isinstance(distribution, Beta):
        return BetaSticks(distribution)
    if isinstance(distribution, Kumaraswamy):
        return KumaraswamySticks(distribution)
    if isinstance(distribution, TransformedDistribution) and isinstance(
        distribution.transforms[-1], SigmoidTransform
    ):
        return SigmoidSticks(distribution)
    return Sticks(distribution)


def log_parts(logits: Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`\log v` and :math:`\log(1 - v)`."""
    return logsigmoid(logits), logsigmoid(-logits)


def beta_log_density(log_v: Tensor, log_rest: Tensor, distribution: Beta) -> Tensor:
    """At sticks, or its expectation over sticks with these expected logarithms."""
    a, b = double(distribution.concentration1, distribution.concentration0)
    density = (a - 1) * log_v + (b - 1) * log_rest
    return density + (a + b).lgamma() - a.lgamma() - b.lgamma()


@register_kl(Kumaraswamy, Beta)
def divergence_from_beta(first: Kumaraswamy | Beta, second: Beta) -> Tensor:
    r"""The divergence of sticks from Beta sticks, in the wider dtype of both.

    .. math:: \mathrm{KL} = -H - (\alpha - 1) E \log v - (\beta - 1) E \log(1 - v)
              + \log B(\alpha, \beta)
    """
    sticks = sticks_of(first)
    entropy, dtype = sticks.entropy()
    cross = beta_log_density(*sticks.expected_logs(), second)
    return (-entropy - cross).to(torch.promote_types(dtype, second.concentration1.dtype))


def _log_gamma(concentration: Tensor) -> Tensor:
    """Logarithms of Gamma variables, which underflow themselves: one of a + 1, times a power."""
    (a,) = double(concentration)
    larger = Gamma(a + 1, 1.0, validate_args=False).sample()
    return larger.log() + uniform(a.shape, a).log() / a


def _carried(_logits: Tensor, grad: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
    a, _, by_a, by_b = given
    return (grad * by_a).to(a), (grad * by_b).to(a)
