"""Quantiles in place of samples, and the mixture that moves with them: the matrix's reference."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal

from pyro_mixtures.components import family
from pyro_mixtures.distributions import MixtureDistribution
from pyro_mixtures.estimators.stratified import StratifiedMixture

NUM_POINTS = 4000
IN_A_PAIR = 100
PAIRS = IN_A_PAIR**2


class Points:
    """Quantiles in a random order, all at once or one after the other.

    Or all pairs of few, for two particles in a plate: an objective that has a logarithm of two
    particles for each element sums over the pairs, and a mean over both draws is an integral.
    """

    count = NUM_POINTS
    in_pairs = False

    def __init__(self, parameters: Any, kind: type = Normal) -> None:
        locs, scales, logits = (x.detach().double() for x in parameters)
        mixture = MixtureSameFamily(
            Categorical(logits=logits), kind(locs.squeeze(-1), scales.squeeze(-1))
        )
        shape = mixture.batch_shape
        u = (torch.arange(self.count, dtype=torch.float64) + 0.5) / self.count
        u = u.reshape(-1, *(1,) * len(shape)).expand(-1, *shape)
        low, high = torch.full_like(u, -60.0), torch.full_like(u, 60.0)
        for _ in range(70):
            middle = (low + high) / 2
            below = mixture.cdf(middle) < u
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(0))
        self.values = low[order].unsqueeze(-1).to(torch.get_default_dtype())  # (N, *B, 1)
        self.position = 0

    def of_rows(self, rows: Any) -> Points:
        new = copy.copy(self)
        new.values = self.values[:, rows]
        return new

    def take(self, shape: torch.Size) -> Tensor:
        if self.in_pairs:
            step = len(self.values) // IN_A_PAIR
            few = self.values.sort(0).values[step // 2 :: step]
            rows = torch.cartesian_prod(*[torch.arange(len(few))] * 2).T  # (2, N^2)
            return few[rows].reshape(shape)
        count = shape.numel() // self.values[0].numel()
        if count == len(self.values):
            return self.values.reshape(shape)
        rows = (self.position + torch.arange(count)) % len(self.values)
        self.position += count
        return self.values[rows].reshape(shape)


class Reference(dist.TorchDistribution):
    """A one-dimensional mixture that moves with the quantiles of torch's own."""

    arg_constraints = {}
    has_rsample = True
    support = dist.constraints.real_vector

    def __init__(self, locs, scales, logits, kind=Normal, batch_shape=None, points=None):
        self.parts, self.points = (locs, scales, logits, kind), points
        self.mixture = MixtureSameFamily(
            Categorical(logits=logits), kind(locs.squeeze(-1), scales.squeeze(-1))
        )
        if batch_shape is None:
            batch_shape = self.mixture.batch_shape
        super().__init__(batch_shape, torch.Size([1]), validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return Reference(*self.parts, batch_shape=torch.Size(batch_shape), points=self.points)

    def rsample(self, sample_shape=torch.Size()):
        z = self.points.take(self._extended_shape(sample_shape)).squeeze(-1)
        cdf, density = self.mixture.cdf(z), self.mixture.log_prob(z).exp().detach()
        return (z - (cdf - cdf.detach()) / density).unsqueeze(-1)

    def log_prob(self, value):
        return self.mixture.log_prob(value.squeeze(-1))


@contextlib.contextmanager
def quantiles_for_samples(points: Points) -> Iterator[None]:
    """Have all mixtures of the package take the points in place of random draws."""

    def rsample(self, sample_shape=torch.Size()):
        return self.reparameterize(sample(self, sample_shape))

    def sample(self, sample_shape=torch.Size()):
        return points.take(self._extended_shape(sample_shape))

    def sample_of_estimator(self, sample_shape=torch.Size()):
        return sample(self.mixture, sample_shape)

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(MixtureDistribution, "rsample", rsample))
        stack.enter_context(mock.patch.object(MixtureDistribution, "sample", sample))
        stack.enter_context(mock.patch.object(StratifiedMixture, "sample", sample_of_estimator))
        yield


@contextlib.contextmanager
def quantiles_for_components(wanted: bool) -> Iterator[None]:
    """Have the draws of each component be quantiles, too."""

    def uniform(count: int, dim: int) -> Tensor:
        u = (torch.arange(count) + 0.5) / count
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        return u[order].reshape(-1, *(1,) * (dim - 1))

    def randn(*size, **options):
        shape = torch.Size(size[0] if isinstance(size[0], tuple) else size)
        noise = Normal(0.0, 1.0).icdf(uniform(shape[0], len(shape)))
        return noise.expand(shape).to(**options)

    def rsample(component, count):
        shape = component._extended_shape((count,))
        return component.base_dist.icdf(uniform(shape[0], len(shape)).expand(shape))

    if wanted:
        with (
            mock.patch.object(torch, "randn", randn),
            mock.patch.object(family, "rsample", rsample),
        ):
            yield
    else:
        yield
