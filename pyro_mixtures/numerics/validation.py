"""Checks of a distribution's arguments: errors name the argument, what was given and expected."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import torch
from torch import Size, Tensor


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise a ``ValueError`` for a value that is not among the choices."""
    if value not in choices:
        raise ValueError(f"Expected {name} to be one of {', '.join(choices)}, but got {value!r}")


def check_at_least(least: int, **sizes: Any) -> None:
    """Raise a ``ValueError`` for a size that is no integer, or a smaller one."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, Integral) or size < least:
            raise ValueError(f"Expected {name} to be an integer >= {least}, but got {size!r}")


def check_shapes(
    parameters: dict[str, Tensor], shapes: dict[str, str]
) -> tuple[Size, dict[str, int]]:
    """Find the batch shape and the sizes of the lettered dimensions; a digit is a size itself.

    Raises:
        ValueError: naming the argument, its shape and what was expected.
    """
    described = ", ".join(f"{name} ({', '.join(['*B', *shapes[name]])})" for name in parameters)
    sizes: dict[str, int] = {}
    owners: dict[str, str] = {}
    batch_shape = torch.Size()
    for name, value in parameters.items():
        letters = shapes[name]
        if not isinstance(value, Tensor):
            raise ValueError(f"Expected {name} to be a tensor, but got {type(value).__name__}")
        if not value.is_floating_point():
            raise ValueError(f"Expected {name} of a floating point dtype, but got {value.dtype}")
        shape = tuple(value.shape)
        if len(shape) < len(letters):
            raise ValueError(
                f"Expected {name} of at least {len(letters)} dimensions, but got shape {shape};"
                f" expected shapes are {described}"
            )
        batch_dim = len(shape) - len(letters)
        for letter, size in zip(letters, shape[batch_dim:], strict=True):
            if letter.isdigit() and size != int(letter):
                raise ValueError(
                    f"Expected {name} with a dimension of size {letter}, but its shape is"
                    f" {shape}; expected shapes are {described}"
                )
            if size < 1:
                raise ValueError(f"Expected {letter} >= 1, but {name} has shape {shape}")
            if sizes.setdefault(letter, size) != size:
                raise ValueError(
                    f"Expected {letter} = {sizes[letter]} (from {owners[letter]}) in {name}, but"
                    f" its shape is {shape}; expected shapes are {described}"
                )
            owners.setdefault(letter, name)
        batch = value.shape[:batch_dim]
        try:
            batch_shape = broadcast_shapes(batch_shape, batch)
        except RuntimeError:
            raise ValueError(
                f"Expected {name} with a batch shape that broadcasts with {tuple(batch_shape)},"
                f" but got {tuple(batch)} (shape {shape})"
            ) from None
    return batch_shape, sizes


def check_logits(logits: Tensor) -> None:
    """Raise a ``ValueError`` for logits that make no weights."""
    if not float(logits.detach().amax(-1).abs().amax()) < math.inf:
        raise ValueError(
            "Expected component_logits below +inf with a finite entry in each mixture, but got"
            f" {logits}"
        )


def broadcast_shapes(first: Size, second: Size) -> Size:
    """``torch.broadcast_shapes``, which costs more than a small tensor operation, where needed."""
    if first == second or not first:
        return torch.Size(second)
    return torch.Size(first) if not second else torch.broadcast_shapes(first, second)
