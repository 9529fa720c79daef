"""Reference densities, made of those of torch and Pyro: they share no code with this package."""

import math

import torch
from pyro.distributions.transforms import LowerCholeskyAffine
from torch import Tensor
from torch.distributions import Categorical, Distribution, VonMises


class ReferenceMixture(Distribution):
    """What ``torch.distributions.MixtureSameFamily`` is to one family, for a list of components.

    Args:
        mixture_distribution: weights of batch shape ``B``.
        components: K distributions of batch shape ``B``.
    """

    def __init__(self, mixture_distribution: Categorical, components: list[Distribution]) -> None:
        self.mixture_distribution, self.components = mixture_distribution, components
        event_shape = components[0].event_shape
        super().__init__(mixture_distribution.batch_shape, event_shape, validate_args=False)

    @property
    def support(self):
        return self.components[0].support

    def log_prob(self, value):
        each = torch.stack([component.log_prob(value) for component in self.components], -1)
        return (each + self.mixture_distribution.logits).logsumexp(-1)

    def _expected(self, each: list[Tensor]) -> Tensor:
        probs = self.mixture_distribution.probs
        probs = probs.reshape(probs.shape + (1,) * len(self.event_shape))
        return (probs * torch.stack(each, len(self.batch_shape))).sum(len(self.batch_shape))

    @property
    def mean(self):
        return self._expected([component.mean for component in self.components])

    @property
    def variance(self):
        square = [component.variance + component.mean.square() for component in self.components]
        return self._expected(square) - self.mean.square()


class ExactVonMises(VonMises):
    """The Bessel functions of torch's density have seven digits, which would hide errors."""

    def log_prob(self, value):
        log_norm = torch.special.i0e(self.concentration).log() + math.log(math.tau)
        return self.concentration * ((value - self.loc).cos() - 1) - log_norm


class BatchedAffine(LowerCholeskyAffine):
    """Pyro's has no determinant for a batch of factors."""

    def log_abs_det_jacobian(self, x, y):
        log_det = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return log_det.expand(x.shape[:-1])
