"""A linear Gaussian model of which all terms of the ELBO are known."""

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import MultivariateNormal

from tests.registry import randn


class SigmaNormal(dist.Normal):
    """Its draws are in turn the 2 D points whose mean of any quadratic function is exact."""

    turn = 0

    def rsample(self, sample_shape=()):
        assert sample_shape == torch.Size()
        size = self.loc.shape[-1]
        point = torch.zeros(size, dtype=self.loc.dtype)
        point[SigmaNormal.turn // 2 % size] = size**0.5 * (-1) ** SigmaNormal.turn
        SigmaNormal.turn += 1
        return self.loc + self.scale * point


class LinearGaussian:
    """z ~ N(0, 1), x ~ N(A z + b, s^2), with a posterior of means W x + c."""

    def __init__(self, size=2, seen=3, normal=dist.Normal):
        self.factor, self.offset, self.noise = randn(seen, size), randn(seen), 0.7
        self.weight, self.shift = 0.4 * randn(size, seen), randn(size)
        self.scale = 0.3 + randn(size).abs()
        self.size, self.normal = size, normal

    def prior(self):
        return dist.Normal(torch.zeros(self.size).double(), 1.0).to_event(1)

    def decoder(self, z):
        return dist.Normal(z @ self.factor.mT + self.offset, self.noise).to_event(1)

    def encoder(self, x):
        loc = self.means(x)
        return self.normal(loc, self.scale.expand_as(loc)).to_event(1)

    def means(self, x):
        return x @ self.weight.mT + self.shift

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decoder(z), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encoder(x))

    def evidence(self):
        """p(x)."""
        covariance = self.factor @ self.factor.mT + self.noise**2 * torch.eye(len(self.factor))
        return MultivariateNormal(self.offset, covariance)

    def posterior(self, x):
        """p(z | x)."""
        size = self.factor.shape[1]
        precision = torch.eye(size) + self.factor.mT @ self.factor / self.noise**2
        right = (x - self.offset) @ self.factor / self.noise**2
        loc = torch.linalg.solve(precision, right.mT).mT
        return MultivariateNormal(loc, precision_matrix=precision)
