"""The random state of this process, as tensors and plain values."""

from __future__ import annotations

from typing import Any

import numpy
import pyro.util
import torch


def get_rng_state() -> dict[str, Any]:
    """That of torch, Python and NumPy, and of the CUDA device in use, if there is one."""
    state = pyro.util.get_rng_state()
    algorithm, keys, *rest = state["numpy"]
    state["numpy"] = (algorithm, torch.from_numpy(keys.astype(numpy.int64)), *rest)
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Go back to a state of :func:`get_rng_state`."""
    algorithm, keys, *rest = state["numpy"]
    keys = keys.numpy().astype(numpy.uint32)
    pyro.util.set_rng_state({**state, "numpy": (algorithm, keys, *rest)})
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
