"""Loops compiled by numba, where that is installed and plain tensors on the CPU are at hand.

Torch's operations cost about a microsecond each before they compute anything. Where arrays are
small, a compiled loop takes the place of a hundred of them; the torch operations are the
reference and the fallback. ``pyro.settings.set(compiled_mixtures=False)`` turns the loops off.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
import os
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import pyro.settings
import torch
from torch import Tensor
from torch.autograd import forward_ad

from pyro_mixtures.numerics.precision import is_transformed, records_graph

ENABLED = importlib.util.find_spec("numba") is not None
"""Whether compiled loops are used where they serve."""

WORTH_A_THREAD = 2**18
"""Elements that pay for one more thread."""

PATIENCE = 1.0
"""Seconds of compiling after which a line says so."""

FLOATS = (torch.float32, torch.float64)

logger = logging.getLogger("pyro_mixtures")

_pool: tuple[int, int, ThreadPoolExecutor] | None = None


@pyro.settings.register("compiled_mixtures", __name__, "ENABLED")
def _validate(enabled: bool) -> None:
    if not isinstance(enabled, bool):
        raise ValueError(f"Expected compiled_mixtures to be True or False, but got {enabled!r}")
    if enabled and importlib.util.find_spec("numba") is None:
        raise ValueError(
            "Expected numba for compiled_mixtures=True, but it is not installed:"
            " pip install 'pyro-mixtures[fast]'"
        )


def serves(*tensors: Tensor) -> bool:
    """Whether compiled loops can work on these: plain tensors of one dtype on the CPU.

    Nothing may look over torch's shoulder: no transform, no compiler, no mode, no derivative that
    goes forward, no batch of backward passes. What tensors say has to be what is in their memory.
    """
    if not ENABLED or records_graph() or is_transformed():
        return False
    dtype = tensors[0].dtype
    if dtype not in FLOATS or torch._C._len_torch_dispatch_stack():
        return False
    if forward_ad._current_level >= 0:
        return False
    for x in tensors:
        kind = type(x)
        if (kind is not Tensor and kind is not torch.nn.Parameter) or x.dtype != dtype:
            return False
        if not x.is_cpu or not torch._C._has_storage(x) or x.is_neg() or x._is_zerotensor():
            return False
    return True


class Loops:
    """The compiled functions of a module, which is imported when the first of them is called.

    Args:
        module: its name. Its functions take addresses of contiguous arrays and their sizes, and
            last the rows of the batch to work on, from the first to before the last.
    """

    def __init__(self, module: str) -> None:
        self._name = module
        self._module: ModuleType | None = None
        self._known: set[tuple[str, Any]] = set()

    def run(self, name: str, unit: Any, arguments: tuple, rows: int, elements: int) -> Any:
        """Call a function for all rows of a batch, in several threads where that pays.

        Args:
            name: of the function.
            unit: a one of the dtype of the arrays.
            arguments: of the function.
            rows: B, of the batch.
            elements: that it works on in all.

        Returns:
            The largest of the functions' results, 0 of none; None where numba cannot compile
            here: a warning has said so, once, and from then on torch does the work.
        """
        function = self._function(name, unit, arguments)
        if function is None:
            return None
        count = 1
        if elements > 2 * WORTH_A_THREAD and rows > 1:
            count = min(torch.get_num_threads(), rows, elements // WORTH_A_THREAD)
        if count == 1:
            return function(unit, *arguments, 0, rows)
        edges = [rows * i // count for i in range(count + 1)]
        parts = _threads(count).map(
            lambda first, last: function(unit, *arguments, first, last), edges[:-1], edges[1:]
        )
        return max(parts)

    def _function(self, name: str, unit: Any, arguments: tuple) -> Callable[..., Any] | None:
        key = name, type(unit)
        if key in self._known:
            return getattr(self._module, name)
        said = threading.Timer(PATIENCE, _say)
        said.daemon = True
        said.start()
        try:
            if self._module is None:
                self._module = importlib.import_module(self._name)
            function = getattr(self._module, name)
            function(unit, *arguments, 0, 0)  # of no rows: it is compiled, or read from disk
        except Exception as error:  # whatever numba may meet on a machine
            _give_up(error)
            return None
        finally:
            said.cancel()
        self._known.add(key)
        return function


def _say() -> None:
    logger.warning("pyro_mixtures compiles its loops (some seconds; the result is kept on disk)")


def _give_up(error: Exception) -> None:
    global ENABLED
    ENABLED = False
    version = importlib.metadata.version("numba")  # which may not even be importable
    first = str(error).strip().splitlines()[:1]
    warnings.warn(
        f"numba {version} cannot compile the loops of pyro_mixtures on this machine"
        f" ({type(error).__name__}: {first[0] if first else ''}): torch does their work, which"
        " is slower for small arrays",
        RuntimeWarning,
        stacklevel=2,
    )


def _threads(count: int) -> ThreadPoolExecutor:
    """At least so many threads of this process: those of a parent do not survive a fork."""
    global _pool
    pool, process = _pool, os.getpid()
    if pool is None or pool[0] != process or pool[1] < count:
        pool = process, count, ThreadPoolExecutor(count, thread_name_prefix="pyro_mixtures")
        _pool = pool
    return pool[2]
