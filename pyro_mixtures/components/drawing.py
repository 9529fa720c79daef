"""Drawing under ``torch.func.vmap``: torch's own samplers work in place or look at values."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_mixtures.velocity.precision import at_least_single, is_transformed


def draw(family: Callable[..., Distribution], parameters: dict[str, Tensor]) -> Tensor:
    """One sample of a family for each element of its parameters, without gradient.

    It is drawn in float32 at least, for torch has no Gamma numbers of less. Under ``vmap``
    parameters get the dimension that it hides, and its ``randomness`` is kept.
    """
    dtype = next(iter(parameters.values())).dtype
    parameters = dict(zip(parameters, at_least_single(*parameters.values()), strict=True))
    return _draw(family, parameters).to(dtype)


def _draw(family: Callable[..., Distribution], parameters: dict[str, Tensor]) -> Tensor:
    if not is_transformed():
        return family(**parameters, validate_args=False).sample()
    return _Draw.apply(family, tuple(parameters), *parameters.values())


class _Draw(torch.autograd.Function):
    @staticmethod
    def forward(family, names, *values):
        return family(**dict(zip(names, values, strict=True)), validate_args=False).sample()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx, grad):
        raise NotImplementedError("samples are drawn without gradient")

    @staticmethod
    def vmap(info, in_dims, family, names, *values):
        rows = [
            value.expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)
            for value, dim in zip(values, in_dims[2:], strict=True)
        ]
        if info.randomness == "different":
            return _Draw.apply(family, names, *rows), 0
        *others, last = zip(*rows, strict=True)
        device = rows[0].device
        samples = []
        for each in others:  # all from one state of the random number generator
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                samples.append(_Draw.apply(family, names, *each))
        return torch.stack([*samples, _Draw.apply(family, names, *last)]), 0
