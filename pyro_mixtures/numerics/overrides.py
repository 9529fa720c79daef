"""Functions that ask tensors of other classes, such as those that tell their origin."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

FunctionT = TypeVar("FunctionT", bound=Callable)


def overridable(function: FunctionT) -> FunctionT:
    """Let ``__torch_function__`` of the arguments have its way.

    An ``autograd.Function`` does not ask them, and would drop their gradients.
    """

    @functools.wraps(function)
    def asking(*arguments):
        tensors = tuple(x for x in arguments if isinstance(x, Tensor))
        if has_torch_function(tensors):
            return handle_torch_function(asking, tensors, *arguments)
        return function(*arguments)

    return asking  # type: ignore[return-value]
