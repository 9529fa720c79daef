"""Fits whose steps see all data: leaf tensors by Adam."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from experiments.lab.loop import Fit, Loop, check_finite
from experiments.lab.random_state import get_rng_state, set_rng_state
from experiments.lab.run import Run


@dataclass
class Schedule:
    """Adam's settings.

    The learning rate falls linearly to ``final_fraction`` of itself over the second half.
    """

    steps: int
    learning_rate: float = 5e-3
    final_fraction: float = 1.0
    log_every: int = 50

    def factor(self, step: int) -> float:
        """The learning rate at a step, as a fraction of the first one."""
        progress = max(0.0, 2 * step / self.steps - 1)
        return 1 - progress * (1 - self.final_fraction)


def train(
    run: Run | None,
    name: str,
    parameters: Iterable[Tensor] | Iterable[dict[str, Any]],
    loss: Callable[[], Tensor],
    evaluate: Callable[[], dict[str, Any]],
    schedule: Schedule,
    extra_state: dict[str, Tensor] | None = None,
) -> list[dict[str, Any]]:
    """Minimize ``loss``, from the stage's last checkpoint if there is one.

    Args:
        run: the folder of the run, or None for a job of a sweep, which is short and shows and
            keeps nothing before its end.
        name: of the stage.
        parameters: leaf tensors, changed in place, or Adam's parameter groups: mappings with
            ``params`` and, where they differ from the others, ``lr`` and ``betas``.
        loss: a surrogate whose gradient is the estimate; it also gives the loss by its value.
        evaluate: figures for a row of ``metrics.csv``, called every ``log_every`` steps. It leaves
            the random state as it was.
        schedule: steps and learning rates.
        extra_state: further tensors that ``loss`` changes in place.

    Returns:
        The rows.

    Raises:
        FloatingPointError: when the loss or a gradient is not finite; the last checkpoint stays.
    """
    adam = torch.optim.Adam(parameters, lr=schedule.learning_rate)
    leaves = [leaf for group in adam.param_groups for leaf in group["params"]]
    tensors = [*leaves, *(extra_state or {}).values()]

    def row(step: int) -> dict[str, Any]:
        with torch.random.fork_rng(range(torch.cuda.device_count())), torch.no_grad():
            return {"stage": name, "step": step, **evaluate()}

    def state() -> dict[str, Any]:
        return {"tensors": [tensor.detach() for tensor in tensors], "rng": get_rng_state()}

    @torch.no_grad()
    def restore(state: dict[str, Any]) -> None:
        set_rng_state(state["rng"])
        for tensor, stored in zip(tensors, state["tensors"], strict=True):
            tensor.copy_(stored)

    def backward(value: Tensor) -> None:
        value.backward()
        for place, leaf in enumerate(leaves):
            if leaf.grad is not None and not bool(leaf.grad.isfinite().all()):
                of = f"tensor {place} of shape {tuple(leaf.shape)}"
                raise FloatingPointError(f"the gradient of {of} is not finite")

    fit = Fit(lambda: check_finite("loss", loss()), row, state, restore, backward)
    scheduler = torch.optim.lr_scheduler.LambdaLR(adam, schedule.factor)
    if run is None:
        loop = Loop(name, fit, adam, scheduler, progress=False)
        return loop.run(schedule.steps, schedule.log_every)
    loop = Loop(name, fit, adam, scheduler, checkpoint=run.checkpoint(name))
    if (checkpoint := run.load(name)) is not None:
        loop.restore(checkpoint)
    rows = loop.run(schedule.steps, schedule.log_every)
    run.log(rows)
    return rows
