"""Calls of autograd Functions at less cost, where no transform looks on."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.autograd import Function

from pyro_mixtures.numerics.precision import is_transformed, records_graph


def applied(function: type[Function], *arguments: Any) -> Any:
    """``function.apply(*arguments)`` of a Function with ``setup_context``.

    Torch binds the arguments of such a Function to its signature at each call, which takes longer
    than the call. Only transforms need it.
    """
    transformed = is_transformed() or records_graph()
    return (function if transformed else _eager(function)).apply(*arguments)


@functools.cache
def _eager(function: Any) -> type[Function]:
    """The Function with one method for ``forward`` and ``setup_context``."""

    def forward(ctx, *arguments):
        output = function.forward(*arguments)
        function.setup_context(ctx, arguments, output)
        return output

    methods = {"forward": staticmethod(forward), "backward": staticmethod(function.backward)}
    return type(function.__name__, (torch.autograd.Function,), methods)
