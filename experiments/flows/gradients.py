"""Gradients through samples against exact ones: bias, variance and time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.flows.bases import Flow
from experiments.flows.entropy import CONTENDERS, SAMPLES, drawn, start
from experiments.flows.moments import PROBLEMS, Moments
from experiments.flows.part import Jobs, Part
from experiments.lab.timing import medians

REPEATS = 200
"""Gradients of each estimator."""
SIDE, EXTENT = 600, 12.0
"""Of the grid that the exact gradient is a sum over."""
MULTIPLIER = 0.5
"""Of each constraint: the cost is the log density plus so much of each statistic."""
NAMES = [name for name in CONTENDERS if name != "Normal"]


def jobs(seeds: int, quick: bool) -> dict[str, dict[str, Any]]:
    """A job for each problem."""
    sizes: dict[str, Any] = {"repeats": REPEATS, "side": SIDE, "timed": 31}
    if quick:
        sizes = {"repeats": 3, "side": 50, "timed": 1}
    return {name.replace(" ", "_"): {"problem": name, **sizes} for name in PROBLEMS}


def at_work(problem: str, contender: str) -> Flow:
    """A flow with parameters as they are while training, the same for all contenders."""
    flow = start(problem, contender, 1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return flow


def costs(flow: Flow, moments: Moments, count: int) -> Tensor:
    """Of samples, ``(count,)``."""
    log_q, violations = drawn(flow, moments, count)
    return (log_q + MULTIPLIER * violations.sum(-1)).squeeze(-1)


def exact(flow: Flow, moments: Moments, side: int) -> Tensor:
    """The mixture's gradient of the expected cost, by a sum over a grid below the couplings."""
    line = torch.linspace(-EXTENT, EXTENT, side)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 1, 2)
    base = flow.base()
    with torch.no_grad():
        latents, log_volume = flow().moved(grid)
        others = moments.features(latents) - moments.expected  # (S, 1, M)
        other = MULTIPLIER * others.sum(-1) - moments.log_volume(latents) - log_volume
    log_q = base.log_prob(grid)
    expected = (log_q.exp() * (log_q + other)).sum() * float(line[1] - line[0]) ** 2
    return _flat(flow, expected)


def _flat(flow: Flow, loss: Tensor) -> Tensor:
    """The gradient by the base's parameters."""
    each = torch.autograd.grad(loss, list(flow.base.parameters()))
    return torch.cat([gradient.flatten() for gradient in each])


def fit(problem: str, repeats: int, side: int, timed: int) -> list[dict[str, Any]]:
    """Compare the estimators at one point.

    Args:
        problem: name.
        repeats: gradients of each.
        side: of the grid.
        timed: steps of which the median is told.

    Returns:
        A row for each estimator: relative ``bias`` and its error, the largest ``z_score`` of a
        coordinate, the relative standard deviation ``noise``, ``seconds`` of a gradient.
    """
    moments = PROBLEMS[problem]()
    flows = {name: at_work(problem, name) for name in NAMES}
    truth = exact(flows["mixture, pathwise"], moments, side)

    def gradient(name: str) -> Callable[[], Tensor]:
        return lambda: _flat(flows[name], costs(flows[name], moments, SAMPLES).mean())

    seconds = medians({name: gradient(name) for name in NAMES}, timed)
    rows = []
    for name in NAMES:
        torch.manual_seed(0)
        found = torch.stack([gradient(name)() for _ in range(repeats)]).double()
        error = found.std(0) / repeats**0.5
        away = found.mean(0) - truth
        rows.append(
            {
                "problem": problem,
                "contender": name,
                "bias": float(away.norm() / truth.norm()),
                "bias_error": float(error.norm() / truth.norm()),
                "z_score": float((away / error).abs().max()),
                "noise": float(found.std(0).norm() / truth.norm()),
                "seconds": seconds[name],
            }
        )
    return rows


def rows(jobs: Jobs, results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of all jobs."""
    return [row for name in jobs for row in results[name]]


COLUMNS: dict[str, Any] = {
    "problem": lambda row: row["problem"],
    "gradient": lambda row: row["contender"],
    "bias, of the norm": lambda row: f"{row['bias']:.3f}",
    "its noise": lambda row: f"{row['bias_error']:.3f}",
    "largest z-score": lambda row: f"{row['z_score']:.1f}",
    "standard deviation, of the norm": lambda row: f"{row['noise']:.2f}",
    "ms": lambda row: f"{1e3 * row['seconds']:.1f}",
}


def plot(folder: Path, jobs: Jobs, results: Mapping[str, Any]) -> None:
    """Nothing: the table tells all."""


PART = Part(jobs, fit, rows, COLUMNS, plot)
