"""Samples of elliptical laws with their gradients, beside torch's ``MultivariateNormal``."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pyro.distributions as pyro
import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

from benchmarks.processes import KEEP, in_fresh_process
from benchmarks.report import milliseconds, table
from benchmarks.settings import Settings
from benchmarks.speed import pair
from benchmarks.steps import Step, forget_gradients, leaves, without_validation
from pyro_mixtures import distributions as ours

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """Samples of one law in D dimensions."""

    D: int
    sample_shape: tuple[int, ...]
    dtype: str
    validated: bool = True
    """Whether arguments are checked, as they are by default."""

    def __str__(self) -> str:
        unusual = "" if self.validated else ", not validated"
        return f"{math.prod(self.sample_shape)} x {self.D}, {self.dtype}{unusual}"


CASES = tuple(
    Case(D, sample_shape, dtype)
    for D in (50, 468)
    for sample_shape in ((), (10,), (100,))
    for dtype in ("float32", "float64")
) + (Case(468, (), "float32", validated=False),)
QUICK = (Case(4, (), "float32"), Case(4, (3,), "float64", validated=False))


@dataclass(frozen=True)
class Contender:
    """A distribution by its arguments' names."""

    name: str
    distribution: Callable[..., Distribution]
    M: int = 0
    """Rows of ``control_var``; none if it has no such argument."""
    arguments: tuple[str, ...] = ("loc", "scale_tril")

    def step(self, case: Case) -> Step:
        """Construct, ``rsample`` and backward with a given gradient of the samples."""
        generator = torch.Generator().manual_seed(0)

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=getattr(torch, case.dtype))

        D = case.D
        drawn = {
            "loc": randn(D),
            "scale_tril": torch.eye(D) + 0.1 / math.sqrt(D) * randn(D, D).tril(-1),
            "df": randn().exp() + 4,
            "control_var": 0.1 * randn(2, self.M, D),
        }
        names = (*self.arguments, "control_var") if self.M else self.arguments
        parameters = dict(zip(names, leaves(tuple(drawn[name] for name in names)), strict=True))
        grad, shape = randn(*case.sample_shape, D), torch.Size(case.sample_shape)

        def run() -> None:
            forget_gradients(tuple(parameters.values()))
            self.distribution(**parameters).rsample(shape).backward(grad)

        return run


by_rows = functools.partial(ours.AVFMultivariateNormal, planes="rows")
STUDENT_T = ("df", "loc", "scale_tril")
BASE = Contender("MultivariateNormal", MultivariateNormal)
CONTENDERS = (
    Contender("AVF, M = 1", ours.AVFMultivariateNormal, 1),
    Contender("AVF, M = 5", ours.AVFMultivariateNormal, 5),
    Contender("AVF of rows, M = 5", by_rows, 5),
    Contender("Pyro's AVF, M = 1", pyro.AVFMultivariateNormal, 1),
    Contender("Pyro's AVF, M = 5", pyro.AVFMultivariateNormal, 5),
    Contender("Student t, AVF, M = 5", ours.AVFMultivariateStudentT, 5, STUDENT_T),
    Contender("Pyro's Student t", pyro.MultivariateStudentT, 0, STUDENT_T),
    Contender("OMT", ours.OMTMultivariateNormal),
    Contender("Pyro's OMT", pyro.OMTMultivariateNormal),
)


def measure(settings: Settings) -> list[Row]:
    """A row for each case."""
    rows = []
    for case in QUICK if settings.quick else CASES:
        rows.append(in_fresh_process(measure_case, case, settings.seconds, allocator=KEEP))
        print(f"elliptical, {case}", flush=True)
    return rows


def measure_case(case: Case, seconds: float) -> Row:
    """Each contender alternates with the plain Normal."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    base = BASE.step(case)
    with nullcontext() if case.validated else without_validation():
        results = {
            contender.name: pair(contender.step(case), base, seconds) for contender in CONTENDERS
        }
    return {"case": vars(case), "label": str(case), "contenders": results}


def render(rows: list[Row]) -> str:
    """Multiples of the plain Normal's time."""
    names = list(rows[0]["contenders"])
    lines = []
    for row in rows:
        results = row["contenders"]
        base = milliseconds(results[names[0]]["median_seconds_floor"])
        ratios = [f"{results[name]['median_floors']:.2f}" for name in names]
        lines.append([row["label"], base, *ratios])
    return table(["S x D", f"{BASE.name}, ms", *names], lines)
