"""The least time that the arithmetic of an ELBO step takes at the measured peak of the machine."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.cases import DIAGONAL, QUICK, Case
from benchmarks.contenders import TORCH_ALONE
from benchmarks.processes import KEEP, in_fresh_process
from benchmarks.report import milliseconds, table
from benchmarks.settings import Settings
from benchmarks.speed import rounds_within
from benchmarks.steps import Step
from experiments.lab.timing import medians

Row = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """What a step has to do at least, or what the machine does in a second."""

    flops: float
    """Of matrix products in float32, a multiplication and an addition each counting one."""
    exponentials: float
    normals: float
    """Random numbers."""
    bytes: float
    """Read or written by elementwise passes."""
    operations: float
    """Calls of torch operations, however small."""

    def seconds(self, rates: Work) -> dict[str, float]:
        """Each kind of work at the machine's rate."""
        own, rate = asdict(self), asdict(rates)
        return {name: own[name] / rate[name] for name in own}


def measure(settings: Settings) -> list[Row]:
    """A row for each case of ``MixtureOfDiagNormals``, and before them the machine's rates."""
    cases = QUICK if settings.quick else DIAGONAL
    rows = in_fresh_process(measure_cases, cases, settings.seconds, allocator=KEEP)
    print("limits", flush=True)
    return rows


def measure_cases(cases: Sequence[Case], seconds: float) -> list[Row]:
    """The rates and the cases, in one process."""
    torch.set_num_threads(1)
    rates = machine()
    return [{"rates": asdict(rates)}, *(measure_case(case, rates, seconds) for case in cases)]


def measure_case(case: Case, rates: Work, seconds: float) -> Row:
    """Work, limit and time of a case."""
    torch.manual_seed(0)
    step = TORCH_ALONE.step(case)
    T = nodes(step)
    work = least_work(case, T, operations(step))
    parts = work.seconds(rates)
    steps = {"displacement": step}
    return {
        "case": vars(case),
        "label": str(case),
        "nodes": T,
        "work": asdict(work),
        "part_seconds": parts,
        "limit_seconds": sum(parts.values()) - parts["operations"],
        "median_seconds": medians(steps, rounds_within(seconds, steps))["displacement"],
    }


def least_work(case: Case, T: int, operations: int) -> Work:
    """Work of the displacement with T nodes, or values or terms of a series for these.

    Of several samples: products of size ``S x K x D``, two each for the log density and for each
    node, four for the backward pass of the log density, and two each for the components and for
    the velocity. A passed array counts once where it is read and once where it is written:
    ``S x D`` 16 times (draw, squares, cost, gradients), ``S x K`` 12 times (joint density, softmax
    and its backward pass), ``T x S x K`` 4 times (product, exponential, sum) and ``T x K x D`` 6
    times (coefficients). A single sample has no products but 4 passes over ``T x K x D`` and 20
    over ``K x D``, and one exponential of each coordinate.
    """
    B, S, K, D = case.mixtures, case.S, case.K, case.D
    if S == 1:
        flops, arrays = 0, 4 * T * K * D + 20 * K * D
        exponentials = K * D + T * K + 3 * K
    else:
        flops = 2 * S * K * D * (2 + 4 + 2 + 2 * T + 2)
        arrays = 16 * S * D + 12 * S * K + 4 * T * S * K + 6 * T * K * D
        exponentials = T * S * K + T * K * D + 3 * S * K
    return Work(B * flops, B * exponentials, B * S * D, 4 * B * arrays, operations)


def nodes(step: Step) -> int:
    """T, the nodes of the displacement's integral, or the terms of a series if it is summed."""
    path = "pyro_mixtures.velocity.displacement"
    rule, series = (importlib.import_module(path + part) for part in ("", "_integrals"))
    counts: list[int] = []

    def recorded(module: Any, name: str, count: Callable[..., int]) -> Any:
        function = getattr(module, name)

        def record(*args: Any, **options: Any) -> Any:
            result = function(*args, **options)
            counts.append(count(result))
            return result

        return mock.patch.object(module, name, record)

    with (
        recorded(rule, "quadrature_rule", lambda found: len(found.nodes)),
        recorded(series, "interpolation", lambda found: len(found[0])),
        recorded(series, "_power_series", lambda found: len(found[0])),
    ):
        step()
    return counts[-1]


def operations(step: Step) -> int:
    """Calls of torch operations in a step, views and the backward pass included."""
    with _Counter() as counter:
        step()
    return counter.count


class _Counter(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def machine() -> Work:
    """Peak rates of this machine, the best of several sizes that fit a cache or do not."""
    return Work(
        flops=best(_product, (256, 512, 1024)),
        exponentials=best(_exponential, (2**14, 2**17, 2**20)),
        normals=best(_normal, (2**14, 2**17, 2**20)),
        bytes=best(_copy, (2**14, 2**18, 2**22)),
        operations=best(_tiny, (1,)),
    )


def best(prepare: Callable[[int], tuple[Callable[[], object], float]], sizes) -> float:
    """Highest amount of work done in a second."""
    rates = []
    for size in sizes:
        run, amount = prepare(size)
        repeats = 1 + int(0.01 / seconds(run, 3))
        rates += [amount / seconds(run, repeats) for _ in range(5)]
    return max(rates)


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Of one run, on average."""
    began = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - began) / repeats


def _product(size: int) -> tuple[Callable[[], object], float]:
    a, b, out = (torch.ones(size, size) for _ in range(3))
    return lambda: torch.mm(a, b, out=out), 2.0 * size**3


def _exponential(size: int) -> tuple[Callable[[], object], float]:
    x, out = -torch.rand(size), torch.empty(size)
    return lambda: torch.exp(x, out=out), size


def _normal(size: int) -> tuple[Callable[[], object], float]:
    x = torch.empty(size)
    return x.normal_, size


def _copy(size: int) -> tuple[Callable[[], object], float]:
    a, b = torch.zeros(size), torch.zeros(size)
    return lambda: b.copy_(a), 8.0 * size


def _tiny(size: int) -> tuple[Callable[[], object], float]:
    a, b = torch.zeros(size), torch.zeros(size)
    return lambda: a + b, 1.0


def render(rows: list[Row]) -> str:
    """The machine's rates in a sentence, and a table of the cases."""
    rates, *cases = rows
    return f"{sentence(**rates['rates'])}\n\n{limits_table(cases)}"


def sentence(
    flops: float, exponentials: float, normals: float, bytes: float, operations: float
) -> str:
    """The peaks."""
    return (
        f"Measured peaks of one thread: {flops / 1e9:.0f} GFLOP/s in products,"
        f" {exponentials / 1e9:.2g} G exponentials / s, {normals / 1e9:.2g} G random numbers / s,"
        f" {bytes / 1e9:.0f} GB/s in copies, {1e6 / operations:.2g} µs for the smallest operation."
    )


def limits_table(rows: list[Row]) -> str:
    """Work, limit and time of each case."""
    lines = []
    for row in rows:
        work, parts = row["work"], row["part_seconds"]
        lines.append(
            [
                row["label"],
                str(row["nodes"]),
                f"{work['flops'] / 1e6:.3g}",
                f"{work['exponentials'] / 1e6:.2g}",
                f"{work['bytes'] / 1e6:.2g}",
                milliseconds(row["limit_seconds"]),
                milliseconds(row["median_seconds"]),
                f"{row['limit_seconds'] / row['median_seconds']:.0%}",
                f"{work['operations']:.0f}: {milliseconds(parts['operations'])} ms",
                max(parts, key=lambda name: parts[name]),
            ]
        )
    header = ["S x K x D", "T", "MFLOP", "M exponentials", "MB", "limit, ms", "step, ms"]
    header += ["limit / step", "operations", "largest part"]
    return table(header, lines)
