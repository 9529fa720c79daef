"""Guides crossed with objectives: what each cell's gradient is, and the table of the docs.

In one dimension the velocity field of a mixture is unique, so that a reference of a dozen lines,
written with torch's own mixture, has the right gradient under every objective. Samples are
quantiles in place of random draws: a mean over them is an integral, and bias shows in one step.

``python -m tests.infer.matrix`` prints the table of ``docs/objectives.md``.
"""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from unittest import mock

import pyro
import torch
from torch import Tensor

import pyro_mixtures.distributions as pm
from tests.infer.matrix_guides import GUIDES, UNUSUAL
from tests.infer.matrix_objectives import LOOPS, OBJECTIVES
from tests.infer.quantiles import (
    NUM_POINTS,
    Points,
)

IN_A_LOOP = 300


@dataclass
class Outcome:
    """What was found in a cell.

    Args:
        state: ``"score"`` (a score term is used, or none is needed), ``"samples"`` (all by the
            samples, which may be noisy between far groups) or ``"refused"``.
        error: the largest deviation of a gradient, relative to the largest gradient.
        message: of the refusal.
    """

    state: str
    error: float = 0.0
    message: str = ""


def nesting(guide: str) -> int:
    """Plates of the case, and one of particles."""
    return 2 if any(word in guide for word in ("plate", "masked")) else 1


@functools.cache
def reference_gradients(
    guide: str, objective: str, dtype: torch.dtype, loop: bool
) -> tuple[Tensor, ...]:
    columns = LOOPS if loop else OBJECTIVES
    column = columns[objective]
    if column.reference is not None:
        same = next(name for name, c in columns.items() if c.make is column.reference)
        return reference_gradients(guide, same, dtype, loop)
    with fresh(dtype, loop):
        case = {**GUIDES, **UNUSUAL}[guide](reference=True)
        return tuple(column.gradients(case, column.make, nesting(guide)))


def outcome(
    guide: str, objective: str, dtype: torch.dtype = torch.float64, loop: bool = False
) -> Outcome:
    """Run a cell."""
    column = (LOOPS if loop else OBJECTIVES)[objective]
    with fresh(dtype, loop):
        case = {**GUIDES, **UNUSUAL}[guide](reference=False)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found = column.gradients(case, column.make, nesting(guide))
        except (NotImplementedError, ValueError) as error:
            return Outcome("refused", message=str(error))
    expected = reference_gradients(guide, objective, dtype, loop)
    error = max(deviation(a, b) for a, b in zip(found, expected, strict=True))
    warned = any(issubclass(each.category, pm.UnusedScoreWarning) for each in caught)
    return Outcome("samples" if warned else "score", error)


def deviation(found: Tensor, expected: Tensor) -> float:
    """The largest, relative to the largest number expected; infinite for what is no number."""
    if torch.equal(found, expected):  # zeros, too
        return 0.0
    return float(((found - expected).abs().max() / expected.abs().max()).nan_to_num(math.inf))


@contextlib.contextmanager
def fresh(dtype: torch.dtype, loop: bool = False) -> Iterator[None]:
    """No parameters of other cells, a dtype of one's own, and fewer points for a loop."""
    before = torch.get_default_dtype()
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with mock.patch.object(Points, "count", IN_A_LOOP if loop else NUM_POINTS):
            yield
    finally:
        torch.set_default_dtype(before)


# ------------------------------------------------------------------------------- the docs' table

SYMBOLS = {"score": "●", "samples": "○", "refused": "–"}


def shown() -> list[str]:
    """The objectives of the table; the compiled ones are as those they compile."""
    return [name for name in OBJECTIVES if not name.startswith("Jit")]


def table() -> Iterator[str]:
    """Lines of the docs' table, from a run of all its cells."""
    yield "| guide | " + " | ".join(f"`{name}`" for name in shown()) + " |"
    yield "| --- |" + " :-: |" * len(shown())
    for guide in GUIDES:
        states = (outcome(guide, objective).state for objective in shown())
        yield f"| {guide} | " + " | ".join(SYMBOLS[state] for state in states) + " |"


if __name__ == "__main__":
    for line in table():
        print(line, flush=True)
