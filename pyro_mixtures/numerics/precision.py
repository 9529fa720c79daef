"""The precision of the arithmetic: as low as the digits of the result allow."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_mixtures.numerics.chunks import map_chunks

LARGEST_TERM = {torch.float32: 1.7e3, torch.float64: 1e9}
"""Expanded squares lose about their largest term times the rounding unit: with these sizes 1e-4
of a log density in float32 and 1e-7 in float64."""

LEAST_EXPONENT = {torch.float32: -80.0, torch.float64: -701.0}
"""Below these exponentials take a processor up to thirty times as long, for numbers that have lost
digits or are zero: as a bound they save that."""

LONGEST_SUM = 300
"""Terms of the order of one that float32 may sum: more, and the sum itself has lost digits."""


def widest(*tensors: Tensor) -> torch.dtype:
    """The common dtype of tensors, or float32 if that is narrower."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def at_least_single(*tensors: Tensor) -> list[Tensor]:
    """Tensors in the dtype that is the :func:`widest`."""
    dtype = widest(*tensors)
    return [tensor.to(dtype) for tensor in tensors]


def double_dtype(tensor: Tensor) -> torch.dtype:
    """float64, or float32 on a device that has no more."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def double(*tensors: Tensor) -> list[Tensor]:
    """Tensors in :func:`double_dtype`."""
    return [tensor.to(double_dtype(tensor)) for tensor in tensors]


def records_graph() -> bool:
    """Whether ``torch.compile`` or ``torch.jit.trace`` records what is to run with other values.

    What is chosen by values then would stay chosen.
    """
    is_tracing = torch.jit.is_tracing  # type: ignore[attr-defined]
    return torch.compiler.is_compiling() or is_tracing()


def in_enough_precision(
    products: Callable[..., tuple[Tensor, Tensor]],
    differences: Callable[..., Tensor],
    z: Tensor,
    log_weights: Tensor,
    *components: Tensor,
) -> Tensor:
    """Log densities of the components, as fast as their digits allow.

    A single sample is compared with the components directly. For several the squares are expanded,
    so that sums are matrix products; where that would lose digits, in float64, and if even that is
    not enough, the samples are compared directly as well, in slices. Where a graph is recorded,
    for which nothing can be chosen by values, it is float64.

    Args:
        products: maps ``(z, log_weights, *components)`` to log densities by expanded squares,
            ``(*B, S, K)``, and the sizes of the terms of their sums.
        differences: maps ``(z, *components)`` to log densities by differences, ``(*B, S, K)``.
        z: ``(*B, S, D)``.
        log_weights: ``(*B, K)``; where they are ``-inf`` digits may be lost.
        components: their parameters.

    Returns:
        ``(*B, S, K)``, in the dtype of ``z`` or in float64.
    """
    if z.shape[-2] == 1:
        if z.shape[-1] > LONGEST_SUM:
            return differences(*double(z, *components))
        return differences(z, *components)
    if records_graph():
        return products(*double(z, log_weights, *components))[0]
    log_prob, terms = products(z, log_weights, *components)
    if not keeps_digits(terms, log_weights):
        z, log_weights, *promoted = double(z, log_weights, *components)
        log_prob, terms = products(z, log_weights, *promoted)
        if not keeps_digits(terms, log_weights):

            def rows(z: Tensor) -> Tensor:
                return differences(z, *promoted)

            return map_chunks(rows, (z,), log_weights.numel() * z.shape[-1])
    return log_prob


def keeps_digits(terms: Tensor, log_weights: Tensor) -> bool:
    """Whether sums with terms of these sizes are exact enough in their dtype.

    Args:
        terms: ``(*B, S or 1, K)``.
        log_weights: ``(*B, K)``; components without weight have no part.

    ``torch.func.vmap`` does not let us look at values, and where a graph is recorded they may
    change: there float64 has to do.
    """
    if terms.numel() == 0:
        return True
    if records_graph():
        return terms.dtype == torch.float64
    alive = (log_weights.detach() > -torch.inf).unsqueeze(-2)
    try:
        return float((terms * alive).amax()) < LARGEST_TERM[terms.dtype]
    except RuntimeError:
        return terms.dtype == torch.float64


def largest(x: Tensor) -> float | None:
    """The largest element, or -1 of none; None where ``vmap`` hides it or a graph is recorded."""
    if x.numel() == 0:
        return -1.0
    if records_graph():
        return None
    try:
        return float(x.amax())
    except RuntimeError:
        return None


def is_transformed() -> bool:
    """Whether ``torch.func`` transforms what runs, and hides values and who needs a gradient."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def surely_all(mask: Tensor) -> bool:
    """Whether all are true; recorded graphs and ``torch.func.vmap`` cannot know."""
    if records_graph():
        return False
    try:
        return bool(mask.all())
    except RuntimeError:
        return False
