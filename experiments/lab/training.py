"""One loop for all fits: Adam, a progress bar, checkpoints and a stop at the first NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

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
    checkpoint_every: int = 1000

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
        evaluate: figures for a row of ``metrics.csv``, called every ``log_every`` steps; the first
            of them is shown in the progress bar. It leaves the random state as it was.
        schedule: steps and learning rates.
        extra_state: further tensors that ``loss`` changes in place.

    Returns:
        The rows.

    Raises:
        FloatingPointError: when the loss is not finite; the last checkpoint stays.
    """
    optimizer = torch.optim.Adam(parameters, lr=schedule.learning_rate)
    leaves = [leaf for group in optimizer.param_groups for leaf in group["params"]]
    state = [*leaves, *(extra_state or {}).values()]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.factor)
    rows: list[dict[str, Any]] = []
    start = 0
    checkpoint = None if run is None else run.load(name)
    if checkpoint is not None:
        start, rows = checkpoint["step"], checkpoint["rows"]
        optimizer.load_state_dict(checkpoint["optimizer"])
        scheduler.load_state_dict(checkpoint["scheduler"])
        torch.set_rng_state(checkpoint["rng"])
        torch.cuda.set_rng_state_all(checkpoint["cuda_rng"])
        with torch.no_grad():
            for tensor, stored in zip(state, checkpoint["tensors"], strict=True):
                tensor.copy_(stored)

    def save(step: int) -> None:
        if run is None:
            return
        run.save(
            name,
            {
                "step": step,
                "rows": rows,
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "rng": torch.get_rng_state(),
                "cuda_rng": torch.cuda.get_rng_state_all(),
                "tensors": [tensor.detach().clone() for tensor in state],
            },
        )

    progress = tqdm(
        range(start, schedule.steps), name, schedule.steps, initial=start, disable=run is None
    )
    for step in progress:
        if step % schedule.log_every == 0:
            figures = _apart(evaluate)
            rows.append({"stage": name, "step": step, **figures})
            key, value = next(iter(figures.items()))
            progress.set_postfix({key: f"{value:.5g}"}, refresh=False)
        optimizer.zero_grad()
        value = loss()
        if not bool(value.isfinite()):
            kept = f"; the last checkpoint in {run.checkpoints} is untouched" if run else ""
            raise FloatingPointError(
                f"the loss of stage {name} is {value.item()} at step {step}{kept}"
            )
        value.backward()
        optimizer.step()
        scheduler.step()
        if (step + 1) % schedule.checkpoint_every == 0 or step + 1 == schedule.steps:
            save(step + 1)
    rows.append({"stage": name, "step": schedule.steps, **_apart(evaluate)})
    if run is not None:
        run.log(rows)
    return rows


def _apart(evaluate: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Evaluate without touching the random state or gradients of the training."""
    with torch.random.fork_rng(range(torch.cuda.device_count())), torch.no_grad():
        return evaluate()
