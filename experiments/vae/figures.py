"""Curves of the fits: against epochs, decoded images and seconds, and rate against distortion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy
import torch
from matplotlib.axes import Axes

from experiments.lab.comparison import Results, good
from experiments.vae import images
from experiments.vae.fits import Candidate, spread, trained

DEPTH = 12.0
"""Nats below the best that are shown at most."""


def plot_estimators(path: Path, results: Results) -> None:
    """The validation ELBO against epochs, a panel for each number of components."""
    panels: dict[str, Results] = {}
    first = dict([next(iter(results.items()))])
    for name, fits in results.items():
        count = fits[0][0].candidate.num_components
        if count > 1:
            panels[f"K = {count}"] = {**panels.get(f"K = {count}", first), name: fits}
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4 * len(panels), 3.6), sharey=True, layout="constrained"
    )
    for ax, (title, rows) in zip(axes, panels.items(), strict=True):
        ax.set_title(title)
        _curves(ax, rows, lambda candidate, row: row["epoch"])
        ax.set_xlabel("epoch")
        ax.legend(fontsize="small", loc="center right")
    axes[0].set_ylabel("validation ELBO (nats)")
    _save(path)


def plot_longer(path: Path, results: Results) -> None:
    """Training and validation ELBO against epochs."""
    _, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    for place, (name, fits) in enumerate(results.items()):
        for result in good(fits)[:1]:
            rows = result["rows"][1:]
            epochs = [row["epoch"] for row in rows]
            ax.plot(epochs, [row["validation_elbo"] for row in rows], f"C{place}", label=name)
            training = [row["train_elbo"] for row in rows]
            ax.plot(epochs, training, f"C{place}:", label=f"{name}, training")
    _zoom(ax)
    ax.set(xlabel="epoch", ylabel="ELBO (nats)")
    ax.legend(fontsize="small", loc="lower right")
    _save(path)


def plot_encoders(path: Path, results: Results) -> None:
    """The validation ELBO against decoded images and seconds."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    _curves(left, results, lambda candidate, row: row["epoch"] * candidate.decoded)
    left.set(xlabel="evaluations of the decoder for each image", ylabel="validation ELBO (nats)")
    _curves(right, results, lambda candidate, row: row["seconds"])
    right.set(xlabel="seconds of training, on one core")
    right.legend(fontsize="small", loc="center right")
    _save(path)


def plot_rates(path: Path, results: Results) -> None:
    """Distortion against rate by beta, and the terms of the ELBO while training."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.9), layout="constrained")
    curves: dict[int, list[tuple[float, dict[str, Any]]]] = {}
    for fits in results.values():
        for result in good(fits)[:1]:
            candidate = fits[0][0].candidate
            curves.setdefault(candidate.num_components, []).append((candidate.beta, result))
    for place, (count, points) in enumerate(curves.items()):
        rates = [result["rate"] for _, result in points]
        distortions = [result["distortion"] for _, result in points]
        axes[0].plot(rates, distortions, f"C{place}o-", label=f"K = {count}")
        for (beta, _), rate, distortion in zip(points, rates, distortions, strict=True):
            if place == 0:
                axes[0].annotate(
                    f"$\\beta$ = {beta:g}", (rate, distortion), (6, 4), textcoords="offset points"
                )
    axes[0].set(
        xlabel="rate $KL(q(z | x) || p(z))$ (nats)", ylabel="distortion $-E \\log p(x | z)$ (nats)"
    )
    axes[0].margins(0.2, 0.1)
    axes[0].legend()
    for place, (beta, result) in enumerate(next(iter(curves.values()))):
        rows = result["rows"]
        epochs = [row["epoch"] for row in rows]
        axes[1].plot(epochs, [row["rate"] for row in rows], f"C{place}")
        active = [row["active_units"] for row in rows]
        axes[2].plot(epochs, active, f"C{place}", label=f"{beta:g}")
    axes[1].set(xlabel="epoch", ylabel="rate (nats), K = 1", yscale="symlog")
    axes[2].set(xlabel="epoch", ylabel="active units, K = 1")
    axes[2].legend(title="$\\beta$", loc="center right")
    _save(path)


@torch.no_grad()
def plot_best(path: Path, results: Results, columns: int = 10) -> None:
    """Samples of the model, and images with their reconstructions by each component."""
    fits_of_row = next(iter(results.values()))
    if not good(fits_of_row):
        return
    candidate = fits_of_row[0][0].candidate
    data = images.load(candidate.reading)
    model, guide = trained(candidate, data, good(fits_of_row)[0]["parameters"])
    torch.manual_seed(0)
    prior = model.prior()
    shown = spread(data.test.images, columns)[:columns]
    posterior = guide.encoder(shown)
    weights = posterior.log_weights.exp()
    order = weights.argsort(-1, descending=True)
    rows = {"samples": model.decoder(prior.sample((columns,))).sigmoid()}
    if candidate.prior == "vamp":
        pseudo_inputs: Any = model.prior.pseudo_inputs
        rows["pseudo-inputs"] = pseudo_inputs[:columns]
    rows["images"] = shown
    means = model.decoder(posterior.locs).sigmoid()  # (columns, K, pixels)
    for rank in range(candidate.num_components):
        chosen = order[:, rank].reshape(-1, 1, 1).expand(-1, 1, means.shape[-1])
        rows[f"component {rank + 1}"] = means.gather(1, chosen).squeeze(1)
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(0.8 * columns + 1.4, 0.95 * len(rows)), layout="constrained"
    )
    for row, (name, pictures) in zip(axes, rows.items(), strict=True):
        for place, ax in enumerate(row):
            ax.set(xticks=[], yticks=[])
            if place < len(pictures):
                picture = pictures[place].reshape(data.side, data.side).numpy()
                ax.imshow(picture, cmap="Greys", vmin=0, vmax=1)
            else:
                ax.axis("off")
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for rank in range(candidate.num_components):
        for ax, each, places in zip(
            axes[rank - candidate.num_components], weights, order, strict=True
        ):
            ax.set_xlabel(f"{each[places[rank]]:.2f}", fontsize="small", labelpad=2)
    _save(path)


FIGURES: Mapping[str, Callable[[Path, Results], None]] = {
    "estimators": plot_estimators,
    "longer": plot_longer,
    "encoders": plot_encoders,
    "rates": plot_rates,
    "best": plot_best,
}
"""Figures of studies, by name."""


def _curves(
    ax: Axes, results: Results, along: Callable[[Candidate, Mapping[str, Any]], float]
) -> None:
    """The validation ELBO of each fit, against a figure of its rows."""
    for place, (name, fits) in enumerate(results.items()):
        for seed, result in enumerate(good(fits)):
            rows = with_seconds(result["rows"], 50_000)[1:]
            x = [along(fits[0][0].candidate, row) for row in rows]
            y = [row["validation_elbo"] for row in rows]
            ax.plot(x, y, f"C{place}", lw=1, label=name if seed == 0 else None)
    _zoom(ax)


def with_seconds(rows: list[dict[str, Any]], num_images: int) -> list[dict[str, Any]]:
    """The rows, with the seconds of training that they took."""
    total, each = 0.0, []
    for row in rows:
        if "data_per_second" in row:
            total += num_images / row["data_per_second"]
        each.append({**row, "seconds": total})
    return each


def _zoom(ax: Axes) -> None:
    ends = [numpy.asarray(line.get_ydata(), float).max() for line in ax.get_lines()]
    ax.set_ylim(float(min(ends)) - DEPTH, float(max(ends)) + 1)


def _save(path: Path) -> None:
    plt.gcf().savefig(path, dpi=150)
    plt.close()
