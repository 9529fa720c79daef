"""``python -m experiments exoplanet``: the periods of a planet by ``fit``, the end of the demo."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

from experiments.lab.run import atomic_write
from experiments.modes.targets import TARGETS
from experiments.modes.targets.regressions import RV_TIMES, RV_VALUES, velocities
from experiments.modes.targets.truth import radial_velocity_log_density
from pyro_mixtures.infer import FitResult, fit

LOW, HIGH, NOISE = 0.02, 0.98, 1.2
"""Bounds of the frequency, and the noise of the velocities."""

DRAWN, LABELLED, CURVES = 3, 6, 12
"""Modes whose curves are drawn, those with a label, and curves of each."""


@dataclass
class Exoplanet:
    """The frequencies of a planet that nine velocities of its star leave open, by ``fit``."""

    seed: int = 0
    """Of the search."""
    out: Path = Path("results")
    """Folder for the results."""

    def run(self) -> None:
        """Fit, print the report, and draw."""
        torch.set_num_threads(1)
        target = TARGETS["radial_velocity"]()
        print("Nine velocities of a star: how often does its planet go round? pm.fit(model) says")
        model: Any = target.model
        result = fit(model, seed=self.seed, progress=False)
        report = str(result.summary())
        print(report)
        folder = self.out / "exoplanet"
        atomic_write(folder / "report.txt", lambda file: file.write(f"{report}\n".encode()))
        plot(folder / "exoplanet.png", result)
        print(conclusion(folder, result, target.evidence.value))


def conclusion(folder: Path, result: FitResult, exact: float) -> str:
    """What was found, and where to look next: two lines."""
    summary = result.summary()
    return (
        f"Found: {len(summary.modes)} modes in {summary.seconds:.1f} s, and a log evidence of"
        f" {summary.log_evidence:.3f}; the exact one, by a grid, is {exact:.3f}.\n"
        f"Next: look at {folder / 'exoplanet.png'}, then at"
        " tutorials/plot_9_from_model_to_report.py."
    )


def plot(path: Path, result: FitResult) -> None:
    """The data with curves of the heaviest modes, and the frequency's density beside the exact."""
    figure = plt.figure(figsize=(11, 4.6), layout="constrained")
    sides: Any = figure.subfigures(1, 2)
    left, right = sides
    panels = left.subplots(DRAWN, 1, sharex=True, sharey=True)
    for index, ax in enumerate(panels):
        _plot_curves(ax, result, index)
    panels[-1].set_xlabel("time (days)")
    left.supylabel("velocity (m/s)")
    _plot_frequency(right.subplots(), result)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _plot_curves(ax: Axes, result: FitResult, index: int) -> None:
    """Of draws near to a mode, with the data."""
    mode, draws = result.modes[index], result.draws(1000)
    place = mode.location["frequency"]
    own = ((draws["frequency"] - place).abs() < 0.01).nonzero().squeeze(-1)[:CURVES]
    times = torch.linspace(0.0, 42.0, 1000, dtype=torch.float64)
    curves = velocities(*(draws[name][own] for name in ("frequency", *"abc")), times=times)
    ax.plot(times, curves.T, color=f"C{index}", lw=0.7, alpha=0.5)
    ax.errorbar(RV_TIMES, RV_VALUES, NOISE, fmt="ko", ms=4, zorder=3)
    ax.set_title(f"once in {1 / place:.2f} days: probability {mode.weight:.2f}", fontsize=10)


def _plot_frequency(ax: Axes, result: FitResult) -> None:
    frequencies = torch.linspace(LOW, HIGH, 4002, dtype=torch.float64)[1:-1]
    values = radial_velocity_log_density(frequencies)
    exact = (values - values.logsumexp(0)).exp() / (frequencies[1] - frequencies[0])
    ax.fill_between(frequencies, exact, color="0.75", label="exact")
    ax.plot(frequencies, frequency_density(result, frequencies), "k", lw=1, label="fit")
    for index, mode in enumerate(result.modes[:LABELLED]):
        place = mode.location["frequency"].item()
        near = (frequencies - place).abs() < 0.015
        ax.annotate(
            f"{mode.weight:.2f}",
            (place, exact[near].max().item()),
            (0, 3),
            textcoords="offset points",
            ha="center",
            color=f"C{index}",
        )
    ax.set(xlabel="frequency (1 / day)", ylabel="density")
    ax.set_title("the frequency, and probabilities of its modes", fontsize=10)
    ax.margins(y=0.08)
    ax.legend(loc="upper left")


def frequency_density(result: FitResult, frequencies: Tensor) -> Tensor:
    """Of the fit, ``(N,)``: the mixture's marginal, from the real line to the interval."""
    share = (frequencies - LOW) / (HIGH - LOW)
    log_stretch = -share.log() - (-share).log1p() - math.log(HIGH - LOW)  # of logit(share)
    marginal = result.posterior.marginal([0])
    return (marginal.log_prob(share.logit().unsqueeze(-1)) + log_stretch).exp()
