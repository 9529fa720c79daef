"""Every relaxed discrete law with what the tests need to judge it: a new law is one more entry."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.relaxed_bernoulli import RelaxedBernoulli as TorchRelaxedBernoulli
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical as TorchExp
from torch.distributions.relaxed_categorical import RelaxedOneHotCategorical

from pyro_mixtures.distributions import (
    ExpRelaxedCategorical,
    RelaxedBernoulli,
    RelaxedBernoulliStraightThrough,
    RelaxedCategorical,
    RelaxedCategoricalStraightThrough,
)
from pyro_mixtures.distributions.relaxed import RelaxedDistribution
from tests.registry import Parameters, leaves


@dataclass(frozen=True)
class Law:
    """A relaxed law, random parameters for it, and torch's class.

    Args:
        distribution: the class.
        reference: torch's class of the same law, or of the relaxed law behind it.
        soft: the relaxed law behind straight-through samples, or the law itself.
    """

    distribution: type[RelaxedDistribution]
    reference: type[Distribution]
    soft: type[RelaxedDistribution]

    @property
    def snaps(self) -> bool:
        return self.soft is not self.distribution

    @property
    def is_categorical(self) -> bool:
        return "K" in self.distribution._parameter_shapes()["logits"]

    def event_shape(self, K: int = 3) -> tuple[int, ...]:
        return (K,) if self.is_categorical else ()

    def parameters(
        self,
        batch_shape: tuple[int, ...] = (),
        K: int = 3,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        temperature: float | None = None,
    ) -> Parameters:
        """Random parameters with gradient."""
        generator = torch.Generator().manual_seed(seed)
        random = torch.rand(batch_shape, generator=generator, dtype=torch.float64)
        shape = (*batch_shape, *self.event_shape(K))
        logits = torch.randn(shape, generator=generator, dtype=torch.float64)
        given = random + 0.5 if temperature is None else torch.full_like(random, temperature)
        return leaves({"temperature": given.to(dtype), "logits": logits.to(dtype)})

    def build(self, parameters: Parameters, **options) -> RelaxedDistribution:
        return self.distribution(**parameters, **options)

    def at_log_ratios(self, r: Tensor) -> Tensor:
        """The value whose logarithms have these differences to that of the last category."""
        if not self.is_categorical:
            return r.sigmoid().squeeze(-1)
        x = torch.cat([r, torch.zeros_like(r[..., :1])], -1).log_softmax(-1)
        return x if self.distribution is ExpRelaxedCategorical else x.exp()


LAWS = {
    "exp_categorical": Law(ExpRelaxedCategorical, TorchExp, ExpRelaxedCategorical),
    "categorical": Law(RelaxedCategorical, RelaxedOneHotCategorical, RelaxedCategorical),
    "hard_categorical": Law(
        RelaxedCategoricalStraightThrough, RelaxedOneHotCategorical, RelaxedCategorical
    ),
    "bernoulli": Law(RelaxedBernoulli, TorchRelaxedBernoulli, RelaxedBernoulli),
    "hard_bernoulli": Law(
        RelaxedBernoulliStraightThrough, TorchRelaxedBernoulli, RelaxedBernoulli
    ),
}


def laws(keep):
    chosen = [pytest.param(law, id=name) for name, law in LAWS.items() if keep(law)]
    return pytest.mark.parametrize("law", chosen)


each_law = laws(lambda law: True)
each_soft_law = laws(lambda law: not law.snaps)
each_hard_law = laws(lambda law: law.snaps)
# those whose samples are not their own coordinates
each_image = laws(lambda law: law.distribution is not ExpRelaxedCategorical)


def drawn(distribution: Distribution, sample_shape: tuple[int, ...] = (), seed: int = 1) -> Tensor:
    """``rsample`` with random numbers of its own: the same in all dtypes and related laws."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return distribution.rsample(torch.Size(sample_shape))
