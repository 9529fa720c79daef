"""Gradients through discrete variables: surrogates of E f(z), whose gradient is the estimate.

z are d independent variables: one of K unit vectors each, or one of two values. The gradient goes
to the logits of their probabilities and to whatever else f depends on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, OneHotCategorical

from pyro_mixtures.distributions import (
    RelaxedBernoulli,
    RelaxedBernoulliStraightThrough,
    RelaxedCategorical,
    RelaxedCategoricalStraightThrough,
)
from pyro_mixtures.distributions.relaxed import straight_through as with_gradient_of


@dataclass(frozen=True)
class Kind:
    """Of discrete variables: their distribution by logits, and those that relax it.

    Logits are ``(*B, d, K)`` of unit vectors, and ``(*B, d)`` of binary variables; values have the
    shape of the logits behind dimensions of samples.

    Attributes:
        discrete: torch's class.
        relaxed: by a temperature and logits.
        snapped: the same with discrete values.
        event_dim: dimensions of one variable.
    """

    discrete: Any
    relaxed: Any
    snapped: Any
    event_dim: int

    def distribution(self, logits: Tensor) -> Any:
        """The discrete distribution."""
        return self.discrete(logits=logits, validate_args=False)

    def log_prob(self, logits: Tensor, z: Tensor) -> Tensor:
        """Of all variables together, ``(S, *B)``."""
        log_prob: Tensor = self.distribution(logits).log_prob(z)
        return log_prob.sum(-1)

    def values(self, logits: Tensor) -> Tensor:
        """All values that the variables can have, ``(V, 1, ..., 1, d[, K])``."""
        sizes = logits.shape[-1 - self.event_dim :]
        states = torch.eye(sizes[-1]) if self.event_dim else torch.tensor([0.0, 1.0])
        index = torch.cartesian_prod(*[torch.arange(len(states))] * sizes[0])
        each = states[index.reshape(-1, sizes[0])]  # (V, d[, K])
        ones = [1] * (logits.dim() - len(sizes))
        return each.reshape(len(each), *ones, *sizes).to(logits)

    def divergence(self, logits: Tensor) -> Tensor:
        """From the uniform distribution, ``(*B)``."""
        states = logits.shape[-1] if self.event_dim else 2
        entropy: Tensor = self.distribution(logits).entropy()
        return (torch.tensor(float(states)).log() - entropy).sum(-1)


KINDS = {
    "categorical": Kind(
        OneHotCategorical, RelaxedCategorical, RelaxedCategoricalStraightThrough, 1
    ),
    "binary": Kind(Bernoulli, RelaxedBernoulli, RelaxedBernoulliStraightThrough, 0),
}

Cost = Callable[[Tensor], Tensor]
"""f: from values ``(S, *B, d[, K])``, where B may be of ones, to ``(S, *B)``."""


def marginalized(kind: Kind, logits: Tensor, cost: Cost) -> Tensor:
    """The expectation itself, by all values that z can have."""
    values = kind.values(logits)
    return (kind.log_prob(logits, values).exp() * cost(values)).sum(0)


def score(kind: Kind, logits: Tensor, cost: Cost) -> Tensor:
    """The score function without a baseline, of one sample."""
    z = kind.distribution(logits).sample((1,))
    f = cost(z)
    return (f + f.detach() * _score(kind.log_prob(logits, z))).mean(0)


def leave_one_out(kind: Kind, logits: Tensor, cost: Cost, num_samples: int) -> Tensor:
    """The score function, whose baseline of each sample is the mean of the others."""
    z = kind.distribution(logits).sample((num_samples,))
    f = cost(z)  # (S, *B)
    advantage = (f - f.mean(0)).detach() * num_samples / (num_samples - 1)
    return (f + advantage * _score(kind.log_prob(logits, z))).mean(0)


def straight_through(kind: Kind, logits: Tensor, cost: Cost) -> Tensor:
    """A sample with the gradient of its probabilities."""
    distribution = kind.distribution(logits)
    z = distribution.sample((1,))
    return cost(with_gradient_of(z, distribution.probs.expand_as(z))).mean(0)


def gumbel(kind: Kind, logits: Tensor, cost: Cost, temperature: float) -> Tensor:
    """A relaxed sample."""
    return cost(_relaxed(kind.relaxed, temperature, logits)).mean(0)


def gumbel_straight_through(kind: Kind, logits: Tensor, cost: Cost, temperature: float) -> Tensor:
    """A sample with the gradient of the relaxed one that it is snapped from."""
    return cost(_relaxed(kind.snapped, temperature, logits)).mean(0)


ESTIMATORS: Mapping[str, Callable[[Kind, Tensor, Cost], Tensor]] = {
    "marginalized": marginalized,
    "score": score,
    "leave-one-out": functools.partial(leave_one_out, num_samples=4),
    "straight-through": straight_through,
    "Gumbel 0.3": functools.partial(gumbel, temperature=0.3),
    "Gumbel 1": functools.partial(gumbel, temperature=1.0),
    "Gumbel straight-through 0.3": functools.partial(gumbel_straight_through, temperature=0.3),
    "Gumbel straight-through 1": functools.partial(gumbel_straight_through, temperature=1.0),
}
"""By name, with their temperature."""
UNBIASED = ("score", "leave-one-out")
EVALUATIONS = {"leave-one-out": 4}
"""Of the cost; one where it is not told."""


def _score(log_prob: Tensor) -> Tensor:
    """Zero, with the gradient of the log probability."""
    return log_prob - log_prob.detach()


def _relaxed(family: Any, temperature: float, logits: Tensor) -> Tensor:
    z: Tensor = family(temperature, logits=logits, validate_args=False).rsample((1,))
    return z
