"""One loop for all fits: an optimizer, a bar, checkpoints and a stop at the first NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from experiments.lab.run import save_checkpoint, write_csv


@dataclass
class Fit:
    """What is fitted, as a loop sees it.

    Attributes:
        loss: of the next step: a finite value, whose gradient is the estimate.
        evaluate: from the number of steps to a row that has it as ``step``; it leaves the random
            state as it was.
        state: what to keep, the random state included, of tensors and plain values.
        restore: goes back to what was kept.
        backward: puts the gradient of the loss where the optimizer finds it.
    """

    loss: Callable[[], Tensor]
    evaluate: Callable[[int], dict[str, Any]]
    state: Callable[[], dict[str, Any]]
    restore: Callable[[dict[str, Any]], None]
    backward: Callable[[Tensor], Any] = Tensor.backward


class Loop:
    """Steps of a fit, with a row of figures at the start, after each so many steps and at the end.

    With each row goes a checkpoint. A fit that was stopped goes on from the last one, to the
    numbers of an unbroken fit.

    Args:
        name: of the fit, for the bar and errors.
        fit: what is fitted.
        optimizer: of its parameters.
        scheduler: of the learning rate.
        checkpoint: the file of the checkpoint.
        table: a CSV file of the rows.
        progress: show a bar.
    """

    def __init__(
        self,
        name: str,
        fit: Fit,
        optimizer: Any,
        scheduler: Any,
        *,
        checkpoint: Path | None = None,
        table: Path | None = None,
        progress: bool = True,
    ) -> None:
        self.name, self.fit, self.optimizer, self.scheduler = name, fit, optimizer, scheduler
        self.checkpoint, self.table, self.progress = checkpoint, table, progress
        self.step = 0
        self.rows: list[dict[str, Any]] = []

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Go on from what a checkpoint holds."""
        self.step, self.rows = checkpoint["step"], checkpoint["rows"]
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.scheduler.load_state_dict(checkpoint["scheduler"])
        self.fit.restore(checkpoint)

    def run(
        self, steps: int, every: int, finished: Callable[[], bool] = lambda: False
    ) -> list[dict[str, Any]]:
        """Take the steps that are left; all rows.

        Args:
            steps: how many in all.
            every: steps between rows.
            finished: whether the last row is a reason to stop before.

        Raises:
            FloatingPointError: where the fit raises one, with the step and the last checkpoint,
                which stays as it is.
        """
        shown = {"desc": self.name, "disable": not self.progress}
        with self.naming_the_step(), tqdm(total=steps, initial=self.step, **shown) as bar:
            if not self.rows:
                self._keep(bar)
            while self.step < steps and not finished():
                self._update()
                bar.update()
                if self.step % every == 0 or self.step == steps:
                    self._keep(bar)
        return self.rows

    @contextmanager
    def naming_the_step(self) -> Iterator[None]:
        """A ``FloatingPointError`` tells where the fit was and what is left of it."""
        try:
            yield
        except FloatingPointError as error:
            told = f"{self.name} stopped at step {self.step}: {error}"
            if self.checkpoint is not None and not self.rows:
                told += "; there is no checkpoint yet"
            elif self.checkpoint is not None:
                step = self.rows[-1]["step"]
                told += f"; the last good checkpoint, of step {step}, is {self.checkpoint}"
            raise FloatingPointError(told) from None

    def _update(self) -> None:
        self.optimizer.zero_grad()
        self.fit.backward(self.fit.loss())
        self.optimizer.step()
        self.scheduler.step()
        self.step += 1

    def _keep(self, bar: tqdm) -> None:
        """Evaluate, show the row, and write it and the checkpoint."""
        row = self.fit.evaluate(self.step)
        self.rows.append(row)
        bar.set_postfix({key: f"{x:.5g}" for key, x in row.items() if isinstance(x, float)})
        state = {
            **self.fit.state(),  # of all processes, whichever writes
            "step": self.step,
            "rows": self.rows,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }
        if self.table is not None:
            write_csv(self.table, self.rows)  # a resumed fit writes it again
        if self.checkpoint is not None:
            save_checkpoint(self.checkpoint, state)


def check_finite(what: str, value: Tensor) -> Tensor:
    """The value, a number.

    Raises:
        FloatingPointError: where it is not finite.
    """
    if not bool(value.isfinite()):
        raise FloatingPointError(f"the {what} is {value.item()}")
    return value
