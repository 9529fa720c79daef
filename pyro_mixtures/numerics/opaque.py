"""Transports that look at values, where a graph is recorded to run with others."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_mixtures.numerics.precision import records_graph

_SCHEMA = (
    "(Tensor z, Tensor grad, Tensor log_prob, Tensor within, Tensor first, Tensor? second=None,"
    " Tensor? third=None, *, ScalarType precision) -> Tensor"
)


def opaque(transport: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let ``torch.compile`` and ``torch.jit.trace`` take a transport as one operator.

    A transport looks at values to choose its nodes and its precision. As an operator it neither
    breaks a compiled graph nor loses that choice. Called directly it is the function itself. It
    has one to three component parameters, and a name that no other such transport has.
    """

    def as_announced(z, *args, **options):
        return transport(z, *args, **options).to(z.dtype).contiguous()

    operator = torch.library.custom_op(
        f"pyro_mixtures::{transport.__name__}", as_announced, mutates_args=(), schema=_SCHEMA
    )

    @operator.register_fake
    def _(z, grad, log_prob, within, first, second=None, third=None, *, precision):
        return z.new_empty(*z.shape[:-1], within.shape[-1])

    @functools.wraps(transport)
    def chosen(*args, **options):
        if records_graph():
            return operator(*args, **options)
        return transport(*args, **options)

    return chosen
