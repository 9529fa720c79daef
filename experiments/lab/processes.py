"""The processes of a fit, by Lightning Fabric."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from typing import Any

import torch
from lightning.fabric import Fabric


def launch(device: str = "auto", precision: Any = None) -> Fabric:
    """This process on its device, among those that ``torchrun`` or ``fabric run`` started.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``32-true``, the default, or ``bf16-mixed``.

    Raises:
        ValueError: for another precision, of those that Fabric knows: samples and densities need
            float32, and float16 a loss that is scaled.
    """
    processes = int(os.environ.get("WORLD_SIZE", 1))
    on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    fabric = Fabric(
        accelerator=device,
        strategy="ddp" if processes > 1 else "auto",
        devices=on_this_machine,
        num_nodes=processes // on_this_machine,
        precision=precision,
    )
    if "LT_CLI_USED" not in os.environ:  # `fabric run` has launched it
        fabric.launch()
    found = fabric.strategy.precision.precision
    if found not in ("32-true", "bf16-mixed"):
        raise ValueError(f"Expected precision '32-true' or 'bf16-mixed', but got {found!r}")
    atexit.register(_leave)
    return fabric


def _leave() -> None:
    """End the threads of the group before the interpreter goes.

    A thread of gloo lets go of the tensors of its work when that is done already, and for this it
    takes the interpreter's lock: once the interpreter goes, that aborts the process. It is the
    group's destructor that waits for the threads, and not ``destroy_process_group``, so nothing
    may hold the group any longer.
    """
    if torch.distributed.is_initialized():
        group = torch.distributed.group.WORLD
        torch.distributed.destroy_process_group()
        for name in ("last_exc", "last_value", "last_traceback"):
            vars(sys).pop(name, None)  # an error that was told; its frames may hold the module
        gc.collect()  # the module for several processes is part of circles
        del group  # as the last holder: this one waits without the lock


def mean_over_processes(fabric: Fabric, total: Any, count: int) -> float:
    """The mean of what each process has the sum and the number of."""
    both = torch.tensor([float(total), count], dtype=torch.float64, device=fabric.device)
    total, count = fabric.all_reduce(both, reduce_op="sum")
    return (total / count).item()


def gathered(fabric: Fabric, state: Any) -> list[Any]:
    """What each process has, in all processes."""
    if fabric.world_size == 1:
        return [state]
    states = [None] * fabric.world_size
    torch.distributed.all_gather_object(states, state)
    return states
