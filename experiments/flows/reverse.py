"""Reverse KL: densities with several modes whose constant is known."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from experiments.flows import reverse_figures
from experiments.flows.bases import NESTED, Base, Flow
from experiments.flows.coupling import spread_widths
from experiments.flows.part import Jobs, Part, mean_and_error, told
from experiments.lab.loop import check_finite
from experiments.lab.sweep import Diverged
from experiments.modes.judgement import State, judge
from experiments.modes.targets import TARGETS, Target
from pyro_mixtures import MixtureOfDiagNormals


@dataclass(frozen=True)
class Setting:
    """Of a target.

    Attributes:
        unit: of the coordinates in which the flow works.
        num_components: K of a mixture.
        box: half of the side of the cube that the first components cover, in these units.
        scale: of each of them.
        layers: couplings.
        parameters: of the couplings.
    """

    unit: float
    num_components: int
    box: float
    scale: float
    layers: int = 8
    parameters: int = 2000


SETTINGS = {
    "forty_normals": Setting(20.0, 80, 2.2, 0.25),
    "two_moons": Setting(1.0, 20, 2.5, 0.6),
    "many_well": Setting(1.0, 40, 2.0, 0.7, parameters=25_000),
}
"""By names of targets."""
CONTENDERS: dict[str, tuple[bool, bool, str]] = {
    "flow on a Normal": (False, True, "pathwise"),
    "mixture alone, clustered": (True, False, "clustered"),
    "flow on a mixture, pathwise": (True, True, "pathwise"),
    "flow on a mixture, clustered": (True, True, "clustered"),
    "flow on a mixture, Gumbel": (True, True, "gumbel"),
}
"""By name: is the base a mixture, are there couplings, and the gradient of the weights."""
STEPS, SAMPLES = 2000, 128
"""Samples are those of a step, of each seed."""
RATES, FINAL = {"base": 2e-2, "couplings": 1e-3}, 2e-2
"""Learning rates, and what part of them is left at the end; in between they fall exponentially."""
COLD = 0.05
"""What the log density is multiplied by at first; the factor grows evenly to one at half time."""
DRAWS, JUDGED = 20_000, 1000
"""Draws of the judgement, and relaxed choices for their densities."""


def jobs(seeds: int, quick: bool) -> dict[str, dict[str, Any]]:
    """A job for each target and contender, with all seeds."""
    sizes = {"steps": 2, "draws": 100} if quick else {"steps": STEPS, "draws": DRAWS}
    targets = ["two_moons"] if quick else list(SETTINGS)
    return {
        f"{target}-{contender}".replace(" ", "_").replace(",", ""): {
            "target": target,
            "contender": contender,
            "seeds": seeds,
            **sizes,
        }
        for target in targets
        for contender in CONTENDERS
    }


def start(target: Target, contender: str, seeds: int) -> Flow:
    """A flow at its start: components, or one that is as wide, over the box."""
    setting = SETTINGS[target.name]
    has_mixture, has_couplings, gradient = CONTENDERS[contender]
    count, dimension = (setting.num_components if has_mixture else 1), target.dimension
    mixtures = []
    for seed in range(seeds):
        engine = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=seed)
        locs = (
            setting.box * (2 * engine.draw(count) - 1)
            if has_mixture
            else torch.zeros(1, dimension)
        )
        scale = setting.scale if has_mixture else setting.box / 2
        scales = torch.full((count, dimension), scale)
        mixtures.append(MixtureOfDiagNormals(locs, scales, torch.zeros(count)))
    torch.manual_seed(0)
    base = Base(mixtures, nested=NESTED if gradient == "gumbel" else None)
    widths = spread_widths(setting.layers, dimension, setting.parameters) if has_couplings else []
    return Flow(base, widths)


def log_density(target: Target, z: Tensor) -> Tensor:
    """The log density of points in the flow's units, ``(*S, D) -> (*S)``."""
    unit = SETTINGS[target.name].unit
    points = unit * z.double().reshape(-1, target.dimension)
    values = target.log_density(points) + target.dimension * math.log(unit)
    return values.reshape(z.shape[:-1])


def loss(flow: Flow, target: Target, contender: str, temper: float) -> Tensor:
    """A surrogate of the divergences of all copies, with the score term where there is one."""
    gradient = CONTENDERS[contender][2]
    q = flow("clustered" if gradient == "clustered" else "pathwise")
    z = q.rsample((SAMPLES,))  # (S, R, D)
    cost = q.log_prob(z) - temper * log_density(target, z)  # (S, R)
    if gradient == "clustered":
        score = q.score_parts(z).score_function
        cost = cost + (cost - cost.mean(0)).detach() * score
    return cost.mean(0).sum()


def fit(target: str, contender: str, seeds: int, steps: int, draws: int) -> dict[str, Any]:
    """Train a flow on the reverse divergence, all seeds at once, and judge it.

    Args:
        target: name.
        contender: name.
        seeds: copies.
        steps: of Adam.
        draws: of the judgement.

    Returns:
        ``rows`` of the seeds, CPU ``seconds`` of all, ``points`` of the first seed, and the true
        ``evidence``.
    """
    truth = TARGETS[target]()
    flow = start(truth, contender, seeds)
    torch.manual_seed(1)
    groups = [
        {"params": list(getattr(flow, name).parameters()), "lr": rate}
        for name, rate in RATES.items()
    ]
    adam = torch.optim.Adam([group for group in groups if group["params"]])
    scheduler = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: FINAL ** (step / steps))
    began = time.process_time()
    for step in range(steps):
        temper = min(1.0, COLD + (1 - COLD) * 2 * step / steps)
        value = check_finite("loss", loss(flow, truth, contender, temper))
        adam.zero_grad()
        value.backward()
        adam.step()
        scheduler.step()
    seconds = time.process_time() - began
    evidence = truth.evidence.value
    return {"seconds": seconds, "evidence": evidence, **judged(flow, truth, draws)}


@torch.no_grad()
def judged(flow: Flow, target: Target, draws: int) -> dict[str, Any]:
    """Figures of each copy by draws, and some draws of the first."""
    if flow.base.nested is not None:
        flow.base.nested = JUDGED
    unit = SETTINGS[target.name].unit
    chunks, q = [], flow()
    for begin in range(0, draws, 500):
        z = q.sample((min(500, draws - begin),))
        chunks.append((z, q.log_prob(z) - target.dimension * math.log(unit)))
    z = unit * torch.cat([each for each, _ in chunks]).double()  # (S, R, D)
    log_q = torch.cat([each for _, each in chunks]).double()  # (S, R)
    rows = []
    for copy in range(z.shape[1]):
        state = State(0, _always(z[:, copy]), _always(log_q[:, copy]))
        rows.append(judge(target, state, draws=draws))
    return {"rows": rows, "points": z[:1000, 0].float()}


def _always(value: Tensor) -> Callable[[Any], Tensor]:
    """A function whose value that is."""
    return lambda _: value


def rows(jobs: Jobs, results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Means and standard errors over the seeds; of k-hat the median."""
    found: list[dict[str, Any]] = []
    for name, job in jobs.items():
        result = results[name]
        row: dict[str, Any] = {"target": job["target"], "contender": job["contender"]}
        if isinstance(result, Diverged):
            found.append({**row, "diverged": result.message})
            continue
        each, truth = result["rows"], result["evidence"]
        good = [one for one in each if "evidence" in one]
        figures = {
            "error": [abs(one["evidence"] - truth) for one in good],
            "gap": [one["gap"] for one in good],
            "efficiency": [one["effective_sample_size"] / job["draws"] for one in good],
            "modes": [float(one["modes"]) for one in each],
        }
        for key, values in figures.items():
            row[key], row[f"{key}_error"] = mean_and_error(values)
        khats = sorted(one["khat"] for one in good)
        row["khat"] = khats[len(khats) // 2] if khats else math.nan
        row["of"] = each[0]["of"]
        row["seconds"] = result["seconds"] / job["seeds"]
        found.append(row)
    return found


def _cell(name: str, digits: int) -> Any:
    def cell(row: Mapping[str, Any]) -> str:
        return told(row[name], row[f"{name}_error"], digits) if name in row else "-"

    return cell


COLUMNS: dict[str, Any] = {
    "target": lambda row: row["target"],
    "contender": lambda row: row["contender"],
    "error of log Z": _cell("error", 4),
    "gap of the ELBO": _cell("gap", 3),
    "effective sample size, of the draws": _cell("efficiency", 3),
    "modes": lambda row: f"{row['modes']:.1f} of {row['of']}" if "modes" in row else "-",
    "k-hat": lambda row: f"{row['khat']:.2f}" if "khat" in row else "-",
    "seconds a seed": lambda row: f"{row['seconds']:.1f}" if "seconds" in row else "-",
}

PART = Part(jobs, fit, rows, COLUMNS, reverse_figures.plot)
