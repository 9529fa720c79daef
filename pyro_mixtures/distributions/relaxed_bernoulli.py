"""Relaxed Bernoulli distributions, drawn and evaluated by their logits."""

from __future__ import annotations

import math

import torch
from pyro.distributions import constraints
from torch import Size, Tensor
from torch.nn.functional import logsigmoid

from pyro_mixtures.distributions.relaxed import (
    RelaxedDistribution,
    refusal,
    straight_through,
    uniform,
)
from pyro_mixtures.numerics.precision import double


class RelaxedBernoulli(RelaxedDistribution):
    r"""A relaxed Bernoulli variable: a number between zero and one.

    .. math:: y = \sigma(t), \qquad t = (\mathrm{logits} + l) / \tau, \qquad
              l \sim \mathrm{Logistic}(0, 1)

    .. math:: \log p(y) = \log \tau + \log \sigma(u) + \log \sigma(-u)
              - \log \sigma(t) - \log \sigma(-t), \qquad u = \mathrm{logits} - \tau t

    In place of ``pyro.distributions.RelaxedBernoulli``: a sample carries its logit t along, for
    ``log_prob`` in this distribution or another one of its kind, as with
    :class:`~pyro_mixtures.distributions.RelaxedCategorical`. Any other value is taken at its word:
    zero counts as the smallest normal number of the dtype, and one as the largest number below it.

    Parameters broadcast against each other; samples have the dtype and the device of the logits.
    A logit of ``inf`` or ``-inf`` belongs to the value one or zero, whose log density is 0; it
    gets no gradient. There are no moments in closed form.

    Args:
        temperature: :math:`\tau > 0`, ``(*B)``, or a number.
        probs: probabilities of one, ``(*B)``, or a number.
        logits: log odds of one, ``(*B)``, or a number; either these or ``probs``.

    Raises:
        ValueError: for parameters of the wrong shape, type or value.

    Reference:
        Maddison, Mnih and Teh, *The Concrete Distribution: A Continuous Relaxation of Discrete
        Random Variables*, 2017, Appendix B.

    Example:
        >>> q = RelaxedBernoulli(0.01, probs=torch.tensor([0.2, 0.5]))
        >>> y = q.rsample((5,))
        >>> y.shape, bool(q.log_prob(y).isfinite().all())
        (torch.Size([5, 2]), True)
    """

    arg_constraints = {
        "temperature": constraints.positive,
        "probs": constraints.unit_interval,
        "logits": constraints.real,
    }
    support = constraints.unit_interval

    @classmethod
    def _parameter_shapes(cls) -> dict[str, str]:
        return {"temperature": "", "logits": ""}

    @classmethod
    def _check(cls, name, given):
        if name == "probs" and not bool(((given >= 0) & (given <= 1)).all()):
            raise ValueError(f"Expected probs between 0 and 1, but got {given}")

    @classmethod
    def _logits(cls, probs):
        certain = (probs == 0) | (probs == 1)  # where the logit has no gradient
        corner = (probs.detach() - 0.5) * math.inf
        return torch.where(certain, corner, _logit(probs.masked_fill(certain, 0.5)))

    @classmethod
    def _probs(cls, logits):
        return logits.sigmoid()

    def _rsample_coordinates(self, shape: Size) -> Tensor:
        logits, temperature = double(self.logits, self.temperature)
        certain = logits.isinf()
        u = uniform(shape, logits)
        logistic = (u.log() - (-u).log1p()).to(logits)
        t = (logits.masked_fill(certain, 0) + logistic) / temperature
        return torch.where(certain, logits, t)

    def _value(self, t: Tensor) -> Tensor:
        return t.sigmoid()

    def _coordinates(self, value: Tensor) -> Tensor:
        kind = torch.finfo(value.dtype)
        t = _logit(value.clamp(kind.tiny, 1 - kind.eps / 2))
        corner = (value == self.logits.sigmoid()) & self.logits.isinf()
        return torch.where(corner, self.logits, t)

    def _log_density(self, t: Tensor) -> Tensor:
        t, logits, temperature = double(t, self.logits, self.temperature)
        certain, corner = logits.isinf(), t.isinf()
        finite = t.masked_fill(corner, 0)
        u = logits.masked_fill(certain, 0) - temperature * finite
        density = temperature.log() + _log_variance(u) - _log_variance(finite)
        certainty = torch.zeros_like(density).masked_fill(t != logits, -math.inf)
        return torch.where(certain | corner, certainty, density)


class RelaxedBernoulliStraightThrough(RelaxedBernoulli):
    r"""Zeros and ones with the gradient of a :class:`RelaxedBernoulli` variable.

    .. math:: [t > 0] \text{ forward}, \qquad \sigma(t) \text{ backward}, \qquad
              t = (\mathrm{logits} + l) / \tau

    ``log_prob`` of a sample is the density of the relaxed sample behind it, in this distribution
    or in another relaxed one; of other values it raises an error, as
    :class:`~pyro_mixtures.distributions.RelaxedCategoricalStraightThrough` does and for its
    reasons. Arguments are those of :class:`RelaxedBernoulli`.

    Raises:
        ValueError: for parameters of the wrong shape, type or value, and by ``log_prob`` for
            values that are not samples, untouched, of a relaxed distribution.

    Reference:
        Jang, Gu and Poole, *Categorical Reparameterization with Gumbel-Softmax*, 2017, Section
        2.2.

    Example:
        >>> logits = torch.zeros(3, requires_grad=True)
        >>> q = RelaxedBernoulliStraightThrough(0.5, logits=logits)
        >>> z = q.rsample((2,))
        >>> bool(((z == 0) | (z == 1)).all()), q.log_prob(z).shape
        (True, torch.Size([2, 3]))
    """

    support = constraints.boolean  # type: ignore[assignment]
    _is_rounded = True

    def _value(self, t: Tensor) -> Tensor:
        return straight_through((t.detach() > 0).to(t.dtype), t.sigmoid())

    def _coordinates(self, value: Tensor) -> Tensor:
        raise refusal(self, "Bernoulli")


def _logit(probs: Tensor) -> Tensor:
    return probs.log() - (-probs).log1p()


def _log_variance(t: Tensor) -> Tensor:
    r"""Of a Bernoulli variable: :math:`\log \sigma(t) \sigma(-t)`."""
    return logsigmoid(t) + logsigmoid(-t)
