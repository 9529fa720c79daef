"""Drawing of chosen components, also under ``vmap``: torch's own samplers work in place."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Size, Tensor
from torch.distributions import Distribution

from pyro_mixtures.numerics.precision import at_least_single, is_transformed, largest


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


def pick(
    index: Tensor, num_components: int, sample_each: Callable[[int], Tensor], event_shape: Size
) -> Tensor:
    """Samples of chosen components, of as many of each as the most frequent asks.

    Args:
        index: of the components, ``(S, B)``.
        num_components: K, the number of components.
        sample_each: samples of all components, ``(count, B, K, *E)`` of a count.
        event_shape: E, of an event.

    Returns:
        ``(S B, *E)``.
    """
    count, batch = index.shape
    chosen = index.unsqueeze(-1) == torch.arange(num_components, device=index.device)  # (S, B, K)
    turn = (chosen.cumsum(0) * chosen).sum(-1) - 1  # among those of its component, (S, B)
    most = largest(turn)
    if most is None:
        turn = torch.arange(count, device=index.device).unsqueeze(-1)
    else:
        count = int(most) + 1
    place = turn * batch + torch.arange(batch, device=index.device)
    rows = sample_each(count).reshape(-1, *event_shape)  # (count B K, *E)
    return rows[(place * num_components + index).flatten()]


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
