"""A backend of ``opt_einsum`` for sums of exponentials, which can be mapped and differentiated.

Pyro's own, ``pyro.ops.einsum.torch_log``, has a logarithm that ``torch.func`` does not take.
"""

from __future__ import annotations

from functools import reduce

import torch
from pyro.ops.einsum.util import Tensordot
from torch import Tensor


def transpose(operand: Tensor, axes: tuple[int, ...]) -> Tensor:
    """With dimensions in another order."""
    return operand.permute(axes)


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """The logarithm of ``torch.einsum`` of exponentials."""
    inputs, output = equation.split("->")
    summed = "".join(sorted(set(inputs) - set(output) - {","}))
    order = output + summed
    aligned = (
        _aligned(operand, symbols, order)
        for operand, symbols in zip(operands, inputs.split(","), strict=True)
    )
    total = reduce(torch.add, aligned)
    return total.logsumexp(tuple(range(len(output), len(order)))) if summed else total.clone()


def _aligned(operand: Tensor, symbols: str, order: str) -> Tensor:
    """To be broadcast, with a dimension for each symbol of the order."""
    present = [symbol for symbol in order if symbol in symbols]
    operand = operand.permute([symbols.index(symbol) for symbol in present])
    index = tuple(slice(None) if symbol in symbols else None for symbol in order)
    return operand[index]


tensordot = Tensordot(einsum)
