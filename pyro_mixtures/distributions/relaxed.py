"""What relaxed discrete distributions share: parameters, and samples that keep coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions.utils import lazy_property

from pyro_mixtures.distributions.parametric import ParametricDistribution
from pyro_mixtures.numerics.pathwise_function import pathwise
from pyro_mixtures.numerics.precision import double_dtype
from pyro_mixtures.numerics.validation import broadcast_shapes, check_shapes
from pyro_mixtures.samples.coordinates import keep_coordinates, kept_coordinates


class RelaxedDistribution(ParametricDistribution):
    """Values that are functions of real coordinates, where they are drawn and evaluated.

    Values near the corners have lost most digits of their coordinates, or all. So a sample carries
    its coordinates along, as an attribute of the tensor, and ``log_prob`` of a tensor that
    does is the density there, in each of these distributions: in the guide that drew it as in the
    model that it is replayed in. A tensor made of it (a slice, a copy, ``detach()``), or a sample
    that was changed in place or asked to collect a gradient of its own, is a value like any other.

    Coordinates are drawn, kept and evaluated in float64, since the density is a sum of large terms
    of which many cancel.

    A family supplies

    - ``_parameter_shapes()``: as any ``ParametricDistribution``, for temperature and logits;
    - ``_check(name, given)``: an error for logits or probs that belong to no distribution;
    - ``_logits(probs)``, ``_probs(logits)`` and ``_normalized(logits)``;
    - ``_rsample_coordinates(shape)`` with gradients to the parameters;
    - ``_value(x)`` of coordinates, ``_coordinates(value)`` of a value from elsewhere;
    - ``_log_density(x)``: the log density of the value at ``x``.
    """

    has_rsample = True
    support: Any  # a constraint, of each family its own
    temperature: Tensor
    logits: Tensor
    _is_rounded = False
    """Whether values are rounded: the coordinates are then those of another point."""

    def __init__(
        self,
        temperature: Tensor | float,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if (probs is None) == (logits is None):
            count = "none" if probs is None else "both"
            raise ValueError(f"Expected one of probs and logits, but got {count} of them")
        name, given = ("logits", logits) if probs is None else ("probs", probs)
        given, number = _as_tensor(given), _as_tensor(temperature)
        letters = self._parameter_shapes()
        batch_shape, sizes = check_shapes(
            {"temperature": number, name: given}, {**letters, name: letters["logits"]}
        )
        if batch_shape.numel() == 0:
            validate_args = False  # torch's constraints fail for empty tensors
        if self._validate_args if validate_args is None else validate_args:
            self._check(name, given.detach())
        logits = self._normalized(given if probs is None else self._logits(given))
        event_shape = torch.Size(sizes[letter] for letter in letters["logits"])
        self.temperature = number.to(logits).expand(batch_shape)
        self.logits = logits.expand(batch_shape + event_shape)
        self._set_shapes(batch_shape, event_shape, validate_args)

    @classmethod
    def _check(cls, name: str, given: Tensor) -> None:
        raise NotImplementedError

    @classmethod
    def _logits(cls, probs: Tensor) -> Tensor:
        raise NotImplementedError

    @classmethod
    def _probs(cls, logits: Tensor) -> Tensor:
        raise NotImplementedError

    @classmethod
    def _normalized(cls, logits: Tensor) -> Tensor:
        return logits

    def _rsample_coordinates(self, shape: Size) -> Tensor:
        raise NotImplementedError

    def _value(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _coordinates(self, value: Tensor) -> Tensor:
        raise NotImplementedError

    def _log_density(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    @classmethod
    def infer_shapes(cls, **arg_shapes: Sequence[int]) -> tuple[torch.Size, torch.Size]:
        count = len(cls._parameter_shapes()["logits"])
        batch_shape = event_shape = torch.Size()
        for name, shape in arg_shapes.items():
            shape = torch.Size(shape)
            if name in ("probs", "logits"):
                shape, event_shape = shape[: len(shape) - count], shape[len(shape) - count :]
            batch_shape = broadcast_shapes(batch_shape, shape)
        return batch_shape, event_shape

    @lazy_property
    def probs(self) -> Tensor:
        """Of the discrete distribution that is relaxed here, in the shape of ``logits``."""
        return self._probs(self.logits)

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        x = self._rsample_coordinates(self._extended_shape(torch.Size(sample_shape)))
        value = self._value(x).to(self.logits.dtype)
        keep_coordinates(value, x, self.event_shape, rounded=self._is_rounded)
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        # a rounded value has the density of the point that was rounded
        x = kept_coordinates(value, self.event_shape, of_rounded=True)
        if x is None:
            x = self._coordinates(self._validated(value))
        return self._log_density(x).to(torch.promote_types(value.dtype, self.logits.dtype))


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """``hard`` in the forward pass, with the gradient of ``soft``, of the same shape.

    Reference:
        Bengio, Leonard and Courville, *Estimating or Propagating Gradients Through Stochastic
        Neurons for Conditional Computation*, 2013.

    Example:
        >>> soft = torch.tensor([0.2, 0.8], requires_grad=True)
        >>> hard = straight_through(soft.detach().round(), soft)
        >>> (hard * torch.tensor([2.0, 3.0])).sum().backward()
        >>> hard.tolist(), soft.grad.tolist()
        ([0.0, 1.0], [2.0, 3.0])
    """
    return pathwise(hard, _gradient_itself, soft)


def uniform(shape: Size, like: Tensor) -> Tensor:
    """Random numbers in the open interval (0, 1).

    In float64: float32 has few numbers next to 1, of which the largest samples would be made.
    """
    u = torch.rand(shape, dtype=double_dtype(like), device=like.device)
    return u.clamp_min(torch.finfo(u.dtype).tiny)


def refusal(distribution: RelaxedDistribution, discrete: str) -> ValueError:
    """Why there is no straight-through density of a value that is not known as a sample."""
    return ValueError(
        f"Expected a value that a relaxed distribution returned as a sample, since log_prob of"
        f" {type(distribution).__name__} is the density of the relaxed sample behind it, but got"
        f" one from elsewhere: a copy, a slice, detached, changed in place or not a sample. Of"
        f" discrete values {discrete} has the probability."
    )


def _gradient_itself(_hard: Tensor, grad: Tensor, _soft: Tensor) -> tuple[Tensor]:
    return (grad,)


def _as_tensor(number: Any) -> Any:
    return torch.tensor(float(number)) if isinstance(number, Real) else number
