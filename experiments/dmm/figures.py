"""Curves of the fits, variances of gradients, and what is learned of a chorale."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

from experiments.dmm.chorales import LOWEST, Chorales
from experiments.dmm.fits import trained
from experiments.dmm.guide import ESTIMATORS, Guide
from experiments.lab.comparison import Results, good

DEPTH = 1.0
"""Nats a time step below the best that are shown at most."""


def plot_curves(path: Path, results: Results, data: Chorales) -> None:
    """The validation ELBO against epochs and against seconds of training."""
    _, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    steps = data.validation.lengths.float().mean().item()
    best = -float("inf")
    for place, (name, fits) in enumerate(results.items()):
        for seed, result in enumerate(good(fits)):
            rows = result["rows"][1:]
            values = [row["validation_elbo"] / steps for row in rows]
            best = max(best, *values)
            label = name if seed == 0 else None
            axes[0].plot([row["epoch"] for row in rows], values, f"C{place}", lw=1, label=label)
            axes[1].plot(seconds(rows), values, f"C{place}", lw=1)
    axes[0].set(xlabel="epoch of the trainer", ylabel="validation ELBO (nats a time step)")
    axes[1].set(xlabel="seconds of training")
    axes[0].set_ylim(best - DEPTH, best + 0.05 * DEPTH)
    axes[0].legend(fontsize="small", loc="lower right")
    _save(path)


def seconds(rows: list[dict[str, Any]]) -> list[float]:
    """Of training up to each row, by the time of its last epoch."""
    total, found, before = 0.0, [], 0
    for row in rows:
        batches = (row["step"] - before) / row["data_per_second"]  # a datum is a batch
        total, before = total + batches, row["step"]
        found.append(total)
    return found


def plot_gradients(path: Path, results: Results, data: Chorales) -> None:
    """Variances of the gradients of the logits by estimator, along the first fit of each row."""
    _, axes = plt.subplots(
        1, len(results), figsize=(6 * len(results), 4), squeeze=False, layout="constrained"
    )
    for ax, (title, fits) in zip(axes[0], results.items(), strict=True):
        for result in good(fits)[:1]:
            epochs = [row["epoch"] for row in result["rows"]]
            for name in ESTIMATORS:
                ax.plot(epochs, [row[f"variance_{name}"] for row in result["rows"]], label=name)
        ax.set(
            title=title,
            xlabel="epoch of the trainer",
            ylabel="variance of the logits' gradients",
            yscale="log",
        )
        ax.legend()
    _save(path)


@torch.no_grad()
def separation(guide: Guide, rolls: Tensor, num_samples: int = 50) -> tuple[Tensor, Tensor]:
    r"""How far apart the components are at each step of a sequence, and how many there are.

    Means over draws of the states before. The distance is that of the farthest pair,
    :math:`\lVert (\mu_j - \mu_k) / \sigma \rVert` with :math:`\sigma^2` the mean of their
    variances; the number is the exponential of the entropy of the weights.

    Args:
        guide: in evaluation mode, of several components.
        rolls: ``(T, notes)``.
        num_samples: of the states.

    Returns:
        Two tensors ``(T,)``.
    """
    chain = guide.chain(rolls.unsqueeze(0), torch.tensor([len(rolls)]))
    mixtures = chain.conditionals(chain.sample((num_samples,)))  # of batch shape (S, 1, T)
    loc, scale = mixtures.locs, mixtures.coord_scale  # (S, 1, T, K, D)
    variance = (scale.unsqueeze(-2) if guide.shared else scale).square().expand_as(loc)
    apart = (loc.unsqueeze(-2) - loc.unsqueeze(-3)).square()
    common = (variance.unsqueeze(-2) + variance.unsqueeze(-3)) / 2
    distances = (apart / common).sum(-1).sqrt()  # (S, 1, T, K, K)
    log_weights = mixtures.log_weights
    entropy = -(log_weights.exp() * log_weights).sum(-1)
    return distances.amax((-1, -2)).mean((0, 1)), entropy.exp().mean((0, 1))


def plot_chorale(path: Path, results: Results, data: Chorales) -> None:
    """A test chorale, and where in time the components of its posterior are apart."""
    rolls, lengths = data.test[:]
    place = len(lengths) // 2
    chorale = rolls[place, : lengths[place]]
    several = {
        name: good(fits)[0]
        for name, fits in results.items()
        if fits[0][0].candidate.num_components > 1 and good(fits)
    }
    if not several:
        return
    torch.manual_seed(0)
    _, (top, middle, bottom) = plt.subplots(
        3, 1, figsize=(9, 8), sharex=True, layout="constrained", height_ratios=(2, 1, 1)
    )
    _piano_roll(top, chorale)
    for name, result in several.items():
        _, guide = trained(results[name][0][0].candidate, result["parameters"])
        distance, number = separation(guide, chorale)
        middle.plot(distance.tolist(), lw=1, label=name)
        bottom.plot(number.tolist(), lw=1)
    middle.set_ylabel("distance of components\n(standard deviations)")
    middle.legend(fontsize="small")
    bottom.set(xlabel="time step (quarter notes)", ylabel="components by\nthe weights' entropy")
    _save(path)


def plot_samples(path: Path, results: Results, data: Chorales) -> None:
    """A test chorale, and a sample of the first fit of each row, as piano rolls."""
    rows = {name: good(fits)[0] for name, fits in results.items() if good(fits)}
    length = int(data.test.lengths.max()) // 2
    _, axes = plt.subplots(
        1 + len(rows), 1, figsize=(9, 2 * (1 + len(rows))), sharex=True, layout="constrained"
    )
    axes = axes if rows else [axes]
    _piano_roll(axes[0], data.test[0][0][:length])
    axes[0].set_title("test data")
    torch.manual_seed(0)
    for ax, (name, result) in zip(axes[1:], rows.items(), strict=True):
        model, _ = trained(results[name][0][0].candidate, result["parameters"])
        _piano_roll(ax, torch.bernoulli(model.sample(length)))
        ax.set_title(f"sample, {name}")
    axes[-1].set_xlabel("time step (quarter notes)")
    _save(path)


FIGURES: Mapping[str, Mapping[str, Callable[[Path, Results, Chorales], None]]] = {
    "table1": {"curves": plot_curves, "chorale": plot_chorale},
    "others": {"curves": plot_curves},
    "gradients": {"gradients": plot_gradients},
    "best": {"curves": plot_curves, "chorale": plot_chorale, "samples": plot_samples},
}
"""Figures of studies, by name."""


def _piano_roll(ax: Axes, roll: Tensor) -> None:
    """Notes ``(T, 88)`` against time, those in the range of voices."""
    extent = (-0.5, len(roll) - 0.5, LOWEST - 0.5, LOWEST + roll.shape[1] - 0.5)
    shown = roll.mT.tolist()
    ax.imshow(shown, cmap="Greys", origin="lower", aspect="auto", extent=extent, vmin=0, vmax=1)
    ax.set(ylim=(40, 100), ylabel="MIDI note")


def _save(path: Path) -> None:
    plt.gcf().savefig(path, dpi=150)
    plt.close()
