"""What is timed: the ELBO step of a distribution, and the floor that it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import Distribution

Step = Callable[[], None]


def elbo_step(
    distribution: Callable[..., Distribution], arguments: tuple[Tensor, ...], sample_shape: Size
) -> Step:
    """Construct, ``rsample``, ``log_prob`` and backward of a reverse KL to a standard Normal."""
    parameters = leaves(arguments)

    def run() -> None:
        forget_gradients(parameters)
        _loss(distribution, parameters, sample_shape).backward()

    return run


def compiled_elbo_step(
    distribution: Callable[..., Distribution], arguments: tuple[Tensor, ...], sample_shape: Size
) -> Step:
    """The same with the loss in the hands of ``torch.compile``."""
    parameters = leaves(arguments)

    def loss(*parameters: Tensor) -> Tensor:
        return _loss(distribution, parameters, sample_shape)

    compiled = torch.compile(loss, dynamic=False)

    def run() -> None:
        forget_gradients(parameters)
        with without_validation():
            compiled(*parameters).backward()

    return run


def without_loops(step: Step) -> Step:
    """The same by torch's operations alone."""
    return pyro.settings.context(compiled_mixtures=False)(step)


def density_step(
    distribution: Callable[..., Distribution], arguments: tuple[Tensor, ...], sample_shape: Size
) -> Step:
    """Construct, ``log_prob`` at given points and backward for all parameters: the floor."""
    parameters = leaves(arguments)
    with torch.no_grad():
        z = distribution(*parameters).sample(sample_shape)

    def run() -> None:
        forget_gradients(parameters)
        distribution(*parameters).log_prob(z).mean().backward()

    return run


def _loss(
    distribution: Callable[..., Distribution], parameters: tuple[Tensor, ...], sample_shape: Size
) -> Tensor:
    q = distribution(*parameters)
    z = q.rsample(sample_shape)
    return ((z**2).sum(-1) / 2 + q.log_prob(z)).mean()


def leaves(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Copies that collect gradients."""
    return tuple(tensor.detach().clone().requires_grad_() for tensor in tensors)


def forget_gradients(parameters: tuple[Tensor, ...]) -> None:
    """As ``zero_grad`` of an optimizer does."""
    for parameter in parameters:
        parameter.grad = None


@contextmanager
def without_validation() -> Iterator[None]:
    """As under ``torch.compile``, which turns validation off for the whole process."""
    classes = (Distribution, TorchDistribution)
    before = [cls._validate_args for cls in classes]
    try:
        for cls in classes:
            cls._validate_args = False
        yield
    finally:
        for cls, value in zip(classes, before, strict=True):
            cls._validate_args = value
