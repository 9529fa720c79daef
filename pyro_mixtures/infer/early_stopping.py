"""To stop when the loss does not fall any more."""

from __future__ import annotations

import math
from typing import Any

from pyro_mixtures.numerics.validation import check_at_least


class EarlyStopping:
    r"""Tells when a loss, smoothed over windows of steps, does not fall any more.

    It is called with the loss of each step. The losses of a window have a mean with a standard
    error; a window is progress if its mean is below the lowest one before it by more than the
    standard error of the difference. After ``patience`` windows without progress it is time to
    stop. Losses of mini-batches belong to windows of one or more epochs, and a loss that changes
    its meaning, as by :class:`Annealing` or ``guide.hold_weights``, is to be counted from when it
    is what it stays.

    Args:
        window: steps whose losses are averaged, at least 2.
        patience: windows without progress, at least 1.

    Attributes:
        smoothed_loss: the mean loss of the last full window, NaN before there is one.
        lowest_loss: the lowest of these, ``inf`` before there is one.

    Raises:
        ValueError: for a window or patience that is too small.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro.infer.autoguide import AutoNormal
        >>> pyro.clear_param_store(); pyro.set_rng_seed(0)
        >>> def model():
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(2.0))
        >>> svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
        >>> is_done = EarlyStopping(window=50)
        >>> steps = next(step for step in range(5000) if is_done(svi.step()))
        >>> steps < 1000, round(is_done.smoothed_loss, 1)  # the evidence is exp(-2.3)
        (True, 2.3)
    """

    def __init__(self, *, window: int = 200, patience: int = 2) -> None:
        check_at_least(2, window=window)
        check_at_least(1, patience=patience)
        self.window, self.patience = int(window), int(patience)
        self.smoothed_loss, self.lowest_loss = math.nan, math.inf
        self._error, self._idle = 0.0, 0
        self._losses: list[float] = []

    def __call__(self, loss: float) -> bool:
        """Whether to stop after the step that had this loss."""
        self._losses.append(float(loss))
        if len(self._losses) < self.window:
            return False
        mean = sum(self._losses) / self.window
        square = sum((each - mean) ** 2 for each in self._losses)
        error = math.sqrt(square / (self.window - 1) / self.window)
        self.smoothed_loss, self._losses = mean, []
        if mean < self.lowest_loss - math.hypot(error, self._error):
            self._idle = 0
        else:
            self._idle += 1
        if mean < self.lowest_loss:
            self.lowest_loss, self._error = mean, error
        return self._idle >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """What it has seen, to be saved with a checkpoint."""
        return {**vars(self), "_losses": list(self._losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of :meth:`state_dict`."""
        vars(self).update({**state, "_losses": list(state["_losses"])})
