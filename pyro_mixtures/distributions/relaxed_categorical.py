"""Relaxed categorical distributions, drawn and evaluated in log space."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pyro.distributions import constraints
from torch import Size, Tensor
from torch.distributions import Transform, biject_to, transform_to

from pyro_mixtures.distributions.relaxed import (
    RelaxedDistribution,
    refusal,
    straight_through,
    uniform,
)
from pyro_mixtures.numerics.precision import double


class _LogSimplex(constraints.Constraint):
    """Vectors whose exponentials sum to one, up to the rounding of their dtype."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        (x,) = double(value)
        return x.logsumexp(-1).abs() <= torch.finfo(value.dtype).eps ** 0.75

    def __repr__(self) -> str:
        return "LogSimplex()"


log_simplex = _LogSimplex()


class _LogSoftmax(Transform):
    """From the differences to the last of K logarithms, ``(*X, K - 1) -> (*X, K)``.

    Densities on the logarithms are with respect to these, so that the volume stays as it is.
    """

    domain = constraints.real_vector
    codomain = log_simplex
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _LogSoftmax)

    def _call(self, x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, (0, 1)).log_softmax(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        return y[..., :-1] - y[..., -1:]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return x.new_zeros(x.shape[:-1])

    def forward_shape(self, shape):
        return shape[:-1] + (shape[-1] + 1,)

    def inverse_shape(self, shape):
        return shape[:-1] + (shape[-1] - 1,)


@biject_to.register(log_simplex)
@transform_to.register(log_simplex)
def _(constraint: _LogSimplex) -> Transform:
    return _LogSoftmax()


class _RelaxedCategorical(RelaxedDistribution):
    r"""The coordinates are :math:`x = \log \mathrm{softmax}((\mathrm{logits} + g) / \tau)`.

    Where logits are ``-inf`` they are that, too, and the distribution is the one of the other
    categories.
    """

    arg_constraints = {
        "temperature": constraints.positive,
        "probs": constraints.simplex,
        "logits": constraints.real_vector,
    }

    @classmethod
    def _parameter_shapes(cls) -> dict[str, str]:
        return {"temperature": "", "logits": "K"}

    @classmethod
    def _check(cls, name, given):
        if name == "probs":
            total = given.sum(-1)
            right = (given >= 0).all() & ((total > 0) & (total < math.inf)).all()
            expected = "of finite numbers >= 0 with a positive one in each event"
        else:
            right = (given.amax(-1).abs() < math.inf).all()
            expected = "below +inf with a finite entry in each event"
        if not bool(right):
            raise ValueError(f"Expected {name} {expected}, but got {given}")

    @classmethod
    def _logits(cls, probs):
        absent = probs == 0  # where the logarithm has no gradient
        return probs.masked_fill(absent, 1).log().masked_fill(absent, -math.inf)

    @classmethod
    def _probs(cls, logits):
        return logits.softmax(-1)

    @classmethod
    def _normalized(cls, logits):
        return logits.log_softmax(-1)

    def _rsample_coordinates(self, shape: Size) -> Tensor:
        logits, temperature = double(self.logits, self.temperature)
        absent = logits == -math.inf
        gumbel = -(-uniform(shape, logits).log()).log()
        scores = (logits.masked_fill(absent, 0) + gumbel.to(logits)) / temperature.unsqueeze(-1)
        return scores.masked_fill(absent, -math.inf).log_softmax(-1)

    def _log_density_of_ratios(self, x: Tensor) -> Tensor:
        """With respect to the differences of ``x``, of the categories that have weight."""
        x, logits, temperature = double(x, self.logits, self.temperature)
        absent, zero = logits == -math.inf, x == -math.inf
        scores = logits.masked_fill(absent, 0) - temperature.unsqueeze(-1) * x.masked_fill(zero, 0)
        shares = scores.masked_fill(absent, -math.inf).log_softmax(-1)
        count = (~absent).sum(-1).to(x.dtype)
        density = torch.lgamma(count) + (count - 1) * temperature.log()
        density = density + shares.masked_fill(absent, 0).sum(-1)
        return density.masked_fill((absent != zero).any(-1), -math.inf)


class ExpRelaxedCategorical(_RelaxedCategorical):
    r"""The logarithm of a relaxed categorical variable.

    .. math:: x = \log \mathrm{softmax}((\mathrm{logits} + g) / \tau), \qquad
              g_k \sim \mathrm{Gumbel}(0, 1)

    .. math:: \log p(x) = \log \Gamma(K) + (K - 1) \log \tau
              + \sum_k (\mathrm{logits}_k - \tau x_k)
              - K \log \sum_k \exp(\mathrm{logits}_k - \tau x_k)

    is the density with respect to the K - 1 differences of the log coordinates. Add
    :math:`-\sum_k x_k` for that on the simplex: :class:`RelaxedCategorical`.

    Parameters broadcast against each other; samples have the dtype and the device of the logits.
    There are no moments in closed form. A category of weight zero (a logit of ``-inf``) has
    :math:`x_k = -\infty`, and the density is that of the others; it gets no gradient.

    Args:
        temperature: :math:`\tau > 0`, ``(*B)``, or a number.
        probs: probabilities, normalized here, ``(*B, K)``.
        logits: their logarithms up to a constant, ``(*B, K)``; either these or ``probs``.

    Raises:
        ValueError: for parameters of the wrong shape, type or value.

    Reference:
        Maddison, Mnih and Teh, *The Concrete Distribution: A Continuous Relaxation of Discrete
        Random Variables*, 2017, Appendix C.

    Example:
        >>> q = ExpRelaxedCategorical(0.05, logits=torch.zeros(1000))
        >>> x = q.rsample((2,))
        >>> x.shape, bool(q.log_prob(x).isfinite().all())
        (torch.Size([2, 1000]), True)
    """

    support = log_simplex  # type: ignore[assignment]

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        x = self._rsample_coordinates(self._extended_shape(torch.Size(sample_shape)))
        return x.to(self.logits.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        density = self._log_density_of_ratios(self._validated(value))
        return density.to(torch.promote_types(value.dtype, self.logits.dtype))


class RelaxedCategorical(_RelaxedCategorical):
    r"""A relaxed categorical variable (Gumbel-softmax, Concrete): a point of the simplex.

    .. math:: y = \mathrm{softmax}((\mathrm{logits} + g) / \tau), \qquad
              g_k \sim \mathrm{Gumbel}(0, 1)

    .. math:: p(y) = (K - 1)!\, \tau^{K-1}
              \frac{\prod_k \pi_k y_k^{-\tau-1}}{\left(\sum_k \pi_k y_k^{-\tau}\right)^K}

    In place of ``pyro.distributions.RelaxedOneHotCategorical``, whose log densities of samples at
    low temperatures are infinite, NaN or, worse, wrong: there most :math:`y_k` are zero in
    floating point. Here a sample carries its :math:`\log y` along, so that ``log_prob`` of it, in
    this distribution or another one of its kind, is right at any temperature; gradients go through
    :math:`\log y`, not through the tensor. Any other value, which may be a slice or a detached
    copy of a sample, is taken at its word: coordinates of zero count as the smallest normal
    number of their dtype. Pyro's ``GumbelSoftmaxReparam`` takes its own class alone:
    :class:`~pyro_mixtures.infer.GumbelSoftmaxReparam` takes both.

    Parameters broadcast against each other; samples have the dtype and the device of the logits.
    There are no moments in closed form. A category of weight zero (a logit of ``-inf``) has
    :math:`y_k = 0`, and the density is that of the others; it gets no gradient.

    Args:
        temperature: :math:`\tau > 0`, ``(*B)``, or a number.
        probs: probabilities, normalized here, ``(*B, K)``.
        logits: their logarithms up to a constant, ``(*B, K)``; either these or ``probs``.

    Raises:
        ValueError: for parameters of the wrong shape, type or value.

    Reference:
        Jang, Gu and Poole, *Categorical Reparameterization with Gumbel-Softmax*, 2017; Maddison,
        Mnih and Teh, *The Concrete Distribution*, 2017.

    Example:
        >>> logits = torch.zeros(10, requires_grad=True)
        >>> q = RelaxedCategorical(0.01, logits=logits)
        >>> y = q.rsample((3,))
        >>> bool((y == 0).any()), bool(q.log_prob(y).isfinite().all())
        (True, True)
    """

    support = constraints.simplex  # type: ignore[assignment]

    def _value(self, x: Tensor) -> Tensor:
        return x.exp()

    def _coordinates(self, value: Tensor) -> Tensor:
        x = value.clamp_min(torch.finfo(value.dtype).tiny).log()
        return x.masked_fill((value == 0) & (self.logits == -math.inf), -math.inf)

    def _log_density(self, x: Tensor) -> Tensor:
        volume = x.masked_fill(x == -math.inf, 0).sum(-1)
        return self._log_density_of_ratios(x) - volume


class RelaxedCategoricalStraightThrough(RelaxedCategorical):
    r"""One-hot vectors with the gradient of a :class:`RelaxedCategorical` variable.

    .. math:: \mathrm{SNAP}\big((\mathrm{logits} + g) / \tau\big) \text{ forward}, \qquad
              \mathrm{softmax}\big((\mathrm{logits} + g) / \tau\big) \text{ backward}

    where SNAP is the unit vector of the largest entry. So samples are those of the categorical
    distribution, and gradients are biased unless the cost is linear in the relaxed sample.

    ``log_prob`` of a sample is the density of the relaxed sample behind it, in this distribution
    or in another relaxed one. Of a one-hot vector from elsewhere there is none to tell: the
    relaxed density at the corners of the simplex is zero or infinite, and the categorical
    probability, which is no density at all, must not be weighed against one. ``log_prob`` raises
    an error.

    Arguments are those of :class:`RelaxedCategorical`.

    Raises:
        ValueError: for parameters of the wrong shape, type or value, and by ``log_prob`` for
            values that are not samples, untouched, of a relaxed distribution.

    Reference:
        Jang, Gu and Poole, *Categorical Reparameterization with Gumbel-Softmax*, 2017, Section
        2.2.

    Example:
        >>> logits = torch.zeros(4, requires_grad=True)
        >>> q = RelaxedCategoricalStraightThrough(0.5, logits=logits)
        >>> z = q.rsample()
        >>> z.sort().values
        tensor([0., 0., 0., 1.], grad_fn=<SortBackward0>)
        >>> (z @ torch.arange(4.0) - q.log_prob(z)).backward()
        >>> bool((logits.grad != 0).any())
        True
    """

    support = constraints.one_hot  # type: ignore[assignment]
    _is_rounded = True

    def _value(self, x: Tensor) -> Tensor:
        soft = x.exp()
        with torch.no_grad():
            hard = torch.zeros_like(soft).scatter(-1, x.argmax(-1, keepdim=True), 1)
        return straight_through(hard, soft)

    def _coordinates(self, value: Tensor) -> Tensor:
        raise refusal(self, "OneHotCategorical")
