"""Maximum entropy under constraints: pathwise gradients against a relaxed choice."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from experiments.flows import entropy_figures
from experiments.flows.bases import Base, Flow
from experiments.flows.coupling import spread_widths
from experiments.flows.moments import PROBLEMS, Moments, mmd_p_value
from experiments.flows.part import Jobs, Part, mean_and_error, told
from experiments.lab.loop import check_finite
from experiments.lab.sweep import Diverged
from pyro_mixtures import AugmentedLagrangian, MixtureOfDiagNormals
from pyro_mixtures.infer import detached

CONTENDERS: dict[str, tuple[int, int | None]] = {
    "Normal": (1, None),
    "mixture, pathwise": (4, None),
    "Gumbel, 8 nested": (4, 8),
    "Gumbel, 64 nested": (4, 64),
}
"""By name: components, and relaxed choices for a density."""
LAYERS, PARAMETERS = 4, 500
STEPS, SAMPLES, UPDATES = 3000, 1024, 20
"""Samples are those of a step, of each seed; updates those of the multipliers."""
RATE, FINAL = 1e-2, 2e-2
"""Learning rate, and what part of it is left at the end; in between it falls exponentially."""
SURE = 6
"""Last updates: of the mean of the parameters since the update before, of many samples, and in
units in which multipliers converge alike in all directions."""
PENALTIES = (2.0, 0.2)
"""Before these and then: a penalty's gradient has the noise of half a step's samples."""
CHECKED = (20_000, 1_000_000)
"""Samples of the first and of the last updates; the judgement has four times as many as these."""
JUDGED = 2000
"""Relaxed choices for the entropy of what was trained."""
COMPARED = 1000
"""Samples for the test of the discrepancy."""
CHUNK = 20_000


def jobs(seeds: int, quick: bool) -> dict[str, dict[str, Any]]:
    """A job for each problem and contender, with all seeds."""
    sizes: dict[str, Any] = {"steps": STEPS, "updates": UPDATES, "checked": CHECKED}
    sizes |= {"judged": JUDGED, "compared": COMPARED}
    if quick:
        sizes = {"steps": 4, "updates": 2, "checked": (100, 200), "judged": 10, "compared": 50}
    return {
        f"{problem}-{contender}".replace(" ", "_").replace(",", ""): {
            "problem": problem,
            "contender": contender,
            "seeds": seeds,
            **sizes,
        }
        for problem in PROBLEMS
        for contender in CONTENDERS
    }


def start(problem: str, contender: str, seeds: int) -> Flow:
    """A flow at its start: means at random, equal weights."""
    num_components, nested = CONTENDERS[contender]
    spread = PROBLEMS[problem]().spread
    mixtures = []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        locs = spread * torch.randn(num_components, 2, generator=generator)
        scales = torch.full((num_components, 2), spread)
        mixtures.append(MixtureOfDiagNormals(locs, scales, torch.zeros(num_components)))
    torch.manual_seed(0)
    base = Base(mixtures, nested=nested)
    return Flow(base, spread_widths(LAYERS, 2, PARAMETERS - 5 * num_components))


def drawn(flow: Flow, problem: Moments, count: int) -> tuple[Tensor, Tensor]:
    """Log densities on the support ``(S, R)``, and violations ``(S, R, M)``.

    The densities of mixtures have the gradient by the sample alone: the rest has mean zero. (The
    nested density is no density at a sample from elsewhere, and has all.)
    """
    q = flow("pathwise")
    latents = q.rsample((count,))  # (S, R, 2)
    log_q = (detached(q) if flow.base.nested is None else q).log_prob(latents)
    return log_q - problem.log_volume(latents), problem.features(latents) - problem.expected


def fit(
    problem: str,
    contender: str,
    seeds: int,
    steps: int,
    updates: int,
    checked: tuple[int, int],
    judged: int,
    compared: int,
) -> dict[str, Any]:
    """Train a flow on entropy under constraints, all seeds at once, and judge it.

    Args:
        problem: name.
        contender: name.
        seeds: copies.
        steps: of Adam.
        updates: of the multipliers.
        checked: samples of the first updates, and of the last and the judgement.
        judged: relaxed choices for the entropy that is told.
        compared: samples for the test of the discrepancy.

    Returns:
        Of each seed ``entropy``, its ``trained_entropy`` by as many choices as in training,
        ``violation`` (mean of each) and ``violation_error``, ``p_value``; CPU ``seconds`` of all
        seeds, those of ``steps`` alone, ``rows`` of the updates, and ``points`` of the first seed.
    """
    moments = PROBLEMS[problem]()
    flow = start(problem, contender, seeds)
    torch.manual_seed(1)
    adam = torch.optim.Adam(flow.parameters(), lr=RATE)
    scheduler = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: FINAL ** (step / steps))
    units = torch.eye(len(moments.expected))
    lagrangians = [_lagrangian(None, PENALTIES[0]) for _ in range(seeds)]
    rows: list[dict[str, Any]] = []
    began, in_steps = time.process_time(), 0.0
    mean = AveragedModel(flow)
    for update in range(updates):
        step_began, sure = time.process_time(), update >= updates - SURE
        mean.n_averaged.zero_()
        if update == updates - SURE:
            units, root = moments.white, torch.linalg.inv(moments.white)
            lagrangians = [
                _lagrangian(each.multipliers @ root, PENALTIES[1]) for each in lagrangians
            ]
        for _ in range(steps // updates):
            _step(flow, moments, lagrangians, units, adam)
            scheduler.step()
            if sure:
                mean.update_parameters(flow)
        in_steps += time.process_time() - step_began
        fitted: Any = mean.module if sure else flow
        violations = _violations(fitted, moments, checked[sure])  # (S, R, M)
        for lagrangian, each in zip(lagrangians, violations.unbind(1), strict=True):
            found = lagrangian.update(each @ units.T)
            if sure:  # Newton's step: the curvature is that of the covariance, one in these units
                lagrangian.multipliers = found.multipliers + found.mean
        largest = violations.mean(0).abs().amax(-1)  # (R,)
        seconds = time.process_time() - began
        rows.append({"update": update, "seconds": seconds, "violation": largest})
    seconds = time.process_time() - began
    return {
        "rows": rows,
        "seconds": seconds,
        "in_steps": in_steps,
        **_judged(fitted, moments, 4 * checked[1], judged, compared),
    }


def _lagrangian(multipliers: Tensor | None, penalty: float) -> AugmentedLagrangian:
    """That goes on from multipliers."""
    made = AugmentedLagrangian(penalty=penalty, growth=1.05, patience=UPDATES)
    made.multipliers = multipliers
    return made


def _step(
    flow: Flow,
    moments: Moments,
    lagrangians: list[AugmentedLagrangian],
    units: Tensor,
    adam: torch.optim.Optimizer,
) -> None:
    log_q, violations = drawn(flow, moments, SAMPLES)
    violations = violations @ units.T
    added = [
        lagrangian.costs(each)
        for lagrangian, each in zip(lagrangians, violations.unbind(1), strict=True)
    ]
    loss = check_finite("loss", (log_q + torch.stack(added, -1)).mean(0).sum())
    adam.zero_grad()
    loss.backward()
    adam.step()


@torch.no_grad()
def _violations(flow: Flow, moments: Moments, count: int) -> Tensor:
    """``(count, R, M)``, without densities."""
    q = flow("pathwise")
    parts = []
    for begin in range(0, count, CHUNK):
        latents = q.sample((min(CHUNK, count - begin),))
        parts.append(moments.features(latents) - moments.expected)
    return torch.cat(parts)


@torch.no_grad()
def _judged(
    flow: Flow, moments: Moments, count: int, judged: int, compared: int
) -> dict[str, Any]:
    violations = _violations(flow, moments, count)
    relaxed = flow.base.nested is not None
    trained = _entropy(flow, moments, min(count, CHUNK), CHUNK)
    if relaxed:
        flow.base.nested = judged
    samples = min(count, CHUNK if relaxed else 10 * CHUNK)
    entropy = _entropy(flow, moments, samples, 500 if relaxed else CHUNK)
    points = moments.points(flow.sample(compared))  # (S, R, 2)
    generator = torch.Generator().manual_seed(0)
    p_values = [
        mmd_p_value(each, moments.draw(compared, generator), generator)
        for each in points.unbind(1)
    ]
    return {
        "entropy": entropy,
        "trained_entropy": trained,
        "violation": violations.mean(0),
        "violation_error": violations.std(0) / len(violations) ** 0.5,
        "p_value": torch.tensor(p_values),
        "points": points[:, 0],
    }


def _entropy(flow: Flow, moments: Moments, count: int, chunk: int) -> Tensor:
    """``(R,)``; a relaxed base draws new choices for each chunk."""
    parts = [drawn(flow, moments, min(chunk, count))[0].mean(0) for _ in range(-(-count // chunk))]
    return -torch.stack(parts).mean(0)


def rows(jobs: Jobs, results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Means and standard errors over the seeds."""
    found: list[dict[str, Any]] = []
    for name, job in jobs.items():
        result = results[name]
        row: dict[str, Any] = {"problem": job["problem"], "contender": job["contender"]}
        if isinstance(result, Diverged):
            found.append({**row, "diverged": result.message})
            continue
        truth = PROBLEMS[job["problem"]]().entropy
        figures = {
            "entropy_gap": (result["entropy"] - truth).tolist(),
            "nested_bias": (result["trained_entropy"] - result["entropy"]).tolist(),
            "violation": result["violation"].abs().amax(-1).tolist(),
            "p_value": result["p_value"].tolist(),
        }
        for key, values in figures.items():
            row[key], row[f"{key}_error"] = mean_and_error(values)
        row["z_score"] = float((result["violation"] / result["violation_error"]).abs().max())
        row["measured_to"] = float(result["violation_error"].max())
        row["seconds"] = result["in_steps"] / job["seeds"]
        row["step"] = 1e3 * result["in_steps"] / job["steps"]
        found.append(row)
    return found


def _cell(name: str, digits: int) -> Any:
    def cell(row: Mapping[str, Any]) -> str:
        return told(row[name], row[f"{name}_error"], digits) if name in row else "-"

    return cell


COLUMNS: dict[str, Any] = {
    "problem": lambda row: row["problem"],
    "base, gradient": lambda row: row["contender"],
    "entropy minus truth": _cell("entropy_gap", 4),
    "bias of the entropy while training": _cell("nested_bias", 4),
    "largest violation": _cell("violation", 4),
    "MMD p-value": _cell("p_value", 2),
    "ms a step": lambda row: f"{row['step']:.1f}" if "step" in row else "-",
    "seconds a seed": lambda row: f"{row['seconds']:.1f}" if "seconds" in row else "-",
}

PART = Part(jobs, fit, rows, COLUMNS, entropy_figures.plot)
