"""Toy densities: maximum likelihood by flows on several bases, and by RAD."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from experiments.flows import toy_figures
from experiments.flows.bases import BASES, Flow, plane_model
from experiments.flows.coupling import count
from experiments.flows.densities import DENSITIES, data
from experiments.flows.part import Jobs, Part, mean_and_error, told
from experiments.flows.rad import RAD
from experiments.lab.full_batch import Schedule, train
from experiments.lab.sweep import Diverged

STEPS = 2000
BATCH = 256
"""Points of a step, of each seed."""
POINTS = 10_000
"""To train with, and to test."""
RATE = 2e-3
"""Learning rate, which falls to a fiftieth over the second half."""
JUDGED = 1000
"""Relaxed choices by which a relaxed base is judged."""
SIDE, EXTENT = 100, 2.6
"""Points in each row of a picture, and the coordinate at its edge."""
SHOWN = 2000
"""Samples that are kept."""
FAR = 0.999
"""Quantile of the distance of data from other data, beyond which a sample is stray."""


def jobs(seeds: int, quick: bool) -> dict[str, dict[str, Any]]:
    """A job for each density and base, with all seeds."""
    densities = list(DENSITIES)[:1] if quick else list(DENSITIES)
    few = {"steps": 3, "points": 250, "side": 20} if quick else {}
    full = {"steps": STEPS, "points": POINTS, "side": SIDE}
    return {
        f"{density}-{base}".replace(" ", "_"): {
            "density": density,
            "base": base,
            "seeds": seeds,
            **full,
            **few,
        }
        for density in densities
        for base in BASES
    }


def fit(density: str, base: str, seeds: int, steps: int, points: int, side: int) -> dict[str, Any]:
    """Train a model of a density, all seeds at once, and judge it by the test points.

    Args:
        density: name.
        base: name.
        seeds: copies.
        steps: of Adam.
        points: to train with, and to test.
        side: of the picture.

    Returns:
        ``log_likelihood`` and ``stray`` of each seed, ``parameters`` and CPU ``seconds`` of all
        seeds, and of the first seed ``picture`` and ``samples``.
    """
    torch.manual_seed(0)
    training, test = data(density, points)
    model = plane_model(base, training, seeds)

    def loss() -> Tensor:
        batch = training[torch.randint(len(training), (BATCH, seeds))]  # (S, R, 2)
        return -model.log_prob(batch).mean(0).sum()

    began = time.process_time()
    schedule = Schedule(steps, RATE, final_fraction=0.02, log_every=max(1, steps // 10))
    with torch.enable_grad():
        train(None, base, model.parameters(), loss, lambda: {}, schedule)
    seconds = time.process_time() - began
    samples = model.sample(SHOWN)  # (S, R, 2)
    line = torch.linspace(-EXTENT, EXTENT, side)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(-1, 2)
    return {
        "log_likelihood": judged(model, test).mean(0),
        "stray": stray(samples, training, test),
        "parameters": count(model),
        "seconds": seconds,
        "picture": judged(model, grid)[:, 0].reshape(side, side),
        "samples": samples[:, 0],
        "data": test[:SHOWN],
    }


@torch.no_grad()
def judged(model: Flow | RAD, points: Tensor) -> Tensor:
    """Log densities ``(N, 2) -> (N, R)``; of a relaxed base by many choices."""
    if isinstance(model, Flow) and model.base.nested is not None:
        model.base.nested = JUDGED
    copies = len(next(model.parameters()))
    parts = [part.unsqueeze(1).expand(-1, copies, -1) for part in points.split(500)]
    return torch.cat([model.log_prob(part) for part in parts])


def stray(samples: Tensor, training: Tensor, test: Tensor) -> Tensor:
    """The share of samples that are farther from all data than data from others, ``(R,)``.

    Args:
        samples: ``(S, R, 2)``.
        training: data ``(N, 2)``.
        test: others.
    """

    def distances(points: Tensor) -> Tensor:
        return torch.stack([torch.cdist(part, training).amin(-1) for part in points.split(250)])

    usual = test[: len(test) // 250 * 250]
    edge = distances(usual).flatten().quantile(FAR)
    each = [(distances(copy) > edge).float().mean() for copy in samples.unbind(1)]
    return torch.stack(each)


def rows(jobs: Jobs, results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Means and standard errors over the seeds; gains over the Normal and over RAD by seed."""
    found: list[dict[str, Any]] = []
    values = {
        (job["density"], job["base"]): results[name]["log_likelihood"].double()
        for name, job in jobs.items()
        if not isinstance(results[name], Diverged)
    }
    for name, job in jobs.items():
        result = results[name]
        row: dict[str, Any] = {"density": job["density"], "base": job["base"]}
        if isinstance(result, Diverged):
            found.append({**row, "diverged": result.message})
            continue
        own = values[job["density"], job["base"]]
        for other, key in (("Normal", "gain"), ("RAD", "gain_over_rad")):
            if (job["density"], other) in values:
                change = own - values[job["density"], other]
                row[key], row[f"{key}_error"] = _over_seeds(change)
        row["log_likelihood"], row["log_likelihood_error"] = _over_seeds(own)
        row["stray"], row["stray_error"] = _over_seeds(result["stray"])
        row["parameters"], row["seconds"] = result["parameters"], result["seconds"] / job["seeds"]
        found.append(row)
    return found


def _over_seeds(values: Tensor) -> tuple[float, float]:
    return mean_and_error(values.tolist())


COLUMNS = {
    "density": lambda row: row["density"],
    "base": lambda row: row["base"],
    "test log-likelihood": lambda row: _cell(row, "log_likelihood"),
    "gain over the Normal": lambda row: _cell(row, "gain"),
    "gain over RAD": lambda row: _cell(row, "gain_over_rad"),
    "stray samples": lambda row: f"{100 * row['stray']:.1f} %" if "stray" in row else "-",
    "parameters": lambda row: str(row.get("parameters", "-")),
    "seconds a seed": lambda row: f"{row['seconds']:.1f}" if "seconds" in row else "-",
}


def _cell(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        return "-"
    return told(row[name], row[f"{name}_error"])


PART = Part(jobs, fit, rows, COLUMNS, toy_figures.plot)
