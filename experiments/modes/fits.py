"""One contender on one target: the job of a sweep."""

from __future__ import annotations

import contextlib
import functools
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from experiments.modes.contenders import CONTENDERS
from experiments.modes.judgement import State, judge
from experiments.modes.targets import TARGETS

SHOWN = 1000
"""Draws that are kept for figures."""


def fit(target: str, contender: str, seed: int, budget: int, *, draws: int) -> dict[str, Any]:
    """Rows of what a contender had found at each look, and draws of its last state.

    Whatever fails is told in the last row as ``error``.

    Args:
        target: its name.
        contender: its name.
        seed: of the contender.
        budget: evaluations of the density.
        draws: from which modes are counted and bounds are estimated.
    """
    common = {"target": target, "contender": contender, "seed": seed}
    rows: list[dict[str, Any]] = []
    points = None
    seconds = 0.0
    with double():
        _warm_up()
        try:
            truth = TARGETS[target]()
            for state, seconds in _timed(CONTENDERS[contender](truth, seed, budget)):
                judged = judge(truth, state, draws=draws)
                rows.append({**common, "seconds": seconds, **judged})
                points = state.draw(SHOWN)
        except Exception as error:  # one failure is a finding, and no end of the others
            told = f"{type(error).__name__}: {error}"
            rows.append({**common, "seconds": seconds, "error": told})
    return {"rows": rows, "points": points}


@functools.cache
def _warm_up() -> None:
    """The first step in a process loads libraries, which is no contender's time."""
    for contender in ("fit", "diagonal-mixture", "normal", "nuts"):
        for _ in CONTENDERS[contender](TARGETS["star"](), 0, 40):
            pass


def _timed(states: Iterator[State]) -> Iterator[tuple[State, float]]:
    """States with the CPU seconds that were spent on them, without those of their judgement."""
    seconds = 0.0
    while True:
        began = time.process_time()
        state = next(states, None)
        seconds += time.process_time() - began
        if state is None:
            return
        yield state, seconds


@contextlib.contextmanager
def double() -> Iterator[None]:
    """New tensors are float64, and contenders' warnings are not the experiment's."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_default_dtype(before)
