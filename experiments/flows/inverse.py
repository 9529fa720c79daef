"""An inverse problem with two answers: angles of an arm of two joints, of where its hand is."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions.transforms import Permute, conditional_affine_coupling
from torch import Tensor, nn

from experiments.flows import inverse_figures
from experiments.flows.arm import NOISE, SHOWN, draw, hand, log_posterior
from experiments.flows.part import Jobs, Part, mean_and_error, told
from experiments.lab.full_batch import Schedule, train
from experiments.lab.sweep import Diverged
from pyro_mixtures.nn import ConditionalMixture, ConditionalMixtureFlow

CONTENDERS: dict[str, tuple[int, int]] = {
    "K = 1": (1, 0),
    "K = 2": (2, 0),
    "K = 10": (10, 0),
    "flow on K = 1": (1, 4),
    "flow on K = 2": (2, 4),
    "flow on K = 10": (10, 4),
}
"""By name: components, and couplings."""
HIDDEN, FLOW_HIDDEN = (64, 64), [32]
STEPS, BATCH, POINTS, TESTED = 1500, 256, 20_000, 1000
RATE = 3e-3
"""Learning rate, which falls to a fiftieth over the second half."""
DRAWS = 200
"""Of each test point, for the calibration."""


def jobs(seeds: int, quick: bool) -> dict[str, dict[str, Any]]:
    """A job for each contender and seed."""
    sizes = {"steps": STEPS, "points": POINTS, "tested": TESTED, "draws": DRAWS}
    if quick:
        sizes = {"steps": 2, "points": 200, "tested": 20, "draws": 20}
    return {
        f"{contender}-{seed}".replace(" ", "_"): {"contender": contender, "seed": seed, **sizes}
        for contender in CONTENDERS
        for seed in range(seeds)
    }


def network(contender: str, angles: Tensor) -> nn.Module:
    """A network from places of the hand to a distribution of the angles."""
    num_components, layers = CONTENDERS[contender]
    options: dict[str, Any] = {"hidden": HIDDEN, "validate_args": False}
    base = ConditionalMixture(2, 2, num_components, **options).init_from(angles)
    if layers == 0:
        return base
    transforms: list[Any] = []
    for _ in range(layers):
        coupling = conditional_affine_coupling(2, 2, FLOW_HIDDEN)
        with torch.no_grad():  # the identity, nearly
            for parameter in coupling.nn.layers[-1].parameters():
                parameter *= 0.01
        transforms += [coupling, Permute(torch.tensor([1, 0]))]
    return ConditionalMixtureFlow(base, transforms, validate_args=False)


def fit(
    contender: str, seed: int, steps: int, points: int, tested: int, draws: int
) -> dict[str, Any]:
    """Train a network by maximum likelihood, and judge it by new points.

    Args:
        contender: name.
        seed: of the network and of the batches.
        steps: of Adam.
        points: to train with.
        tested: points of the judgement.
        draws: of each of them.

    Returns:
        ``nll`` of the test points, their ``true_nll``, ``coverage``: the share of draws that are
        likelier than the true angles, by test point; the ``miss`` of draws, the median distance
        of hand and place in units of the noise; ``parameters``, ``seconds``, and ``samples`` at
        one place.
    """
    angles, places = draw(points, torch.Generator().manual_seed(0))
    test_angles, test_places = draw(tested, torch.Generator().manual_seed(1))
    torch.manual_seed(seed)
    model = network(contender, angles)

    def loss() -> Tensor:
        batch = torch.randint(points, (BATCH,))
        return -model(places[batch]).log_prob(angles[batch]).mean()

    schedule = Schedule(steps, RATE, final_fraction=0.02, log_every=steps)
    began = time.process_time()
    train(None, contender, model.parameters(), loss, lambda: {}, schedule)
    seconds = time.process_time() - began
    with torch.no_grad():
        q = model(test_places)
        log_prob = q.log_prob(test_angles)  # (N,)
        found = q.sample((draws,))  # (S, N, 2)
        likelier = q.log_prob(found) > log_prob
        away = (hand(found) - test_places).norm(dim=-1) / NOISE
        shown = model(SHOWN.expand(1, 2)).sample((1000,)).squeeze(1)
    return {
        "nll": -log_prob,
        "true_nll": -log_posterior(test_angles, test_places),
        "coverage": likelier.float().mean(0),
        "miss": away.median(),
        "parameters": sum(each.numel() for each in model.parameters()),
        "seconds": seconds,
        "samples": shown,
    }


def calibration_error(coverage: Tensor) -> float:
    """Largest distance between probabilities of regions and the shares of truths within."""
    levels = torch.linspace(0, 1, 101)
    covered = (coverage <= levels.unsqueeze(-1)).float().mean(-1)
    return float((covered - levels).abs().max())


def rows(jobs: Jobs, results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Means and standard errors over the seeds, and what the true posterior has."""
    found: list[dict[str, Any]] = []
    true_nll = math.nan
    for contender in dict.fromkeys(job["contender"] for job in jobs.values()):
        each = [results[name] for name, job in jobs.items() if job["contender"] == contender]
        good = [result for result in each if not isinstance(result, Diverged)]
        row: dict[str, Any] = {"contender": contender, "diverged": len(each) - len(good)}
        figures = {
            "nll": [float(result["nll"].mean()) for result in good],
            "calibration": [calibration_error(result["coverage"]) for result in good],
            "miss": [float(result["miss"]) for result in good],
            "seconds": [result["seconds"] for result in good],
        }
        for key, values in figures.items():
            row[key], row[f"{key}_error"] = mean_and_error(values)
        for result in good:
            row["parameters"] = result["parameters"]
            true_nll = float(result["true_nll"].mean())
        found.append(row)
    return [*found, {"contender": "truth", "nll": true_nll, "nll_error": math.nan}]


def _cell(name: str, digits: int) -> Any:
    def cell(row: Mapping[str, Any]) -> str:
        return told(row[name], row[f"{name}_error"], digits) if name in row else "-"

    return cell


COLUMNS: dict[str, Any] = {
    "network": lambda row: row["contender"],
    "test NLL": _cell("nll", 3),
    "error of the coverage": _cell("calibration", 3),
    "distance of hand and place, in units of the noise": _cell("miss", 2),
    "parameters": lambda row: str(row.get("parameters", "-")),
    "seconds": _cell("seconds", 1),
}

PART = Part(jobs, fit, rows, COLUMNS, inverse_figures.plot)
