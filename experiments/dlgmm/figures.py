"""Curves of the fits, embeddings of latent spaces, and draws of components."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy
from sklearn.manifold import TSNE
from torch import Tensor

from experiments.lab.comparison import Results, good

DEPTH = 12.0
"""Nats below the best that are shown at most."""
NEIGHBOURHOOD = 30
"""The perplexity of an embedding."""
EMBEDDED = 4
"""Rows whose latent spaces are shown."""


def style(place: int) -> str:
    """Of the line of a row."""
    return f"C{place % 10}{('-', '--')[place // 10]}"


def plot_curves(path: Path, results: Results) -> None:
    """The validation ELBO against epochs."""
    figure, ax = plt.subplots(figsize=(9, 4.5), layout="constrained")
    best = -math.inf
    for place, (name, fits) in enumerate(results.items()):
        for result in good(fits)[:1]:
            rows = result["rows"][1:]
            elbo = [row["validation_elbo"] for row in rows]
            best = max(best, *elbo)
            ax.plot([row["epoch"] for row in rows], elbo, style(place), label=name)
    if best > -math.inf:
        ax.set_ylim(best - DEPTH, best + 1)
    ax.set(xlabel="epoch", ylabel="validation ELBO (nats)")
    figure.legend(fontsize="small", loc="outside right upper")
    _save(path)


def plot_gradient_norms(path: Path, results: Results) -> None:
    """Of the loss of an image, after each epoch."""
    figure, ax = plt.subplots(figsize=(9, 4.5), layout="constrained")
    for place, (name, fits) in enumerate(results.items()):
        for result in good(fits)[:1]:
            rows = result["rows"]
            norms = [row["gradient_norm"] for row in rows]
            ax.plot([row["epoch"] for row in rows], norms, style(place), label=name)
    ax.set(xlabel="epoch", ylabel="norm of the gradient", yscale="log")
    figure.legend(fontsize="small", loc="outside right upper")
    _save(path)


def plot_embeddings(path: Path, results: Results) -> None:
    """Latents of test images in two dimensions by t-SNE, coloured by digit, of the first rows."""
    spaces = {
        name: result
        for name, fits in list(results.items())[:EMBEDDED]
        for result in good(fits)[:1]
    }
    figure, axes = plt.subplots(
        1, len(spaces), figsize=(4.2 * len(spaces), 4.4), layout="constrained", squeeze=False
    )
    for ax, (name, result) in zip(axes.flat, spaces.items(), strict=True):
        points = ax.scatter(
            *embedded(result["latents"]).T,
            c=result["digits"],
            s=4,
            cmap="tab10",
            vmin=-0.5,
            vmax=9.5,
        )
        ax.set(title=name, xticks=[], yticks=[])
    figure.colorbar(points, ax=axes, ticks=range(10), label="digit")
    _save(path)


def embedded(latents: Tensor) -> Any:
    """In two dimensions by t-SNE, ``(N, 2)``."""
    near = min(NEIGHBOURHOOD, (len(latents) - 1) / 3)
    return TSNE(perplexity=near, random_state=0).fit_transform(latents.numpy())


def plot_components(path: Path, results: Results) -> None:
    """Draws of the first and the last component of each model whose components are apart."""
    drawn = {
        name: result["drawn"]
        for name, fits in results.items()
        for result in good(fits)[:1]
        if result["drawn"] is not None
    }
    _, axes = plt.subplots(
        len(drawn), 2, figsize=(9, 2.6 * len(drawn)), layout="constrained", squeeze=False
    )
    for row, (name, both) in zip(axes, drawn.items(), strict=True):
        for ax, told, pictures in zip(row, ("lowest", "highest"), both, strict=True):
            ax.imshow(tiled(pictures), cmap="gray_r", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
            ax.set_title(f"{name}: the component of the {told} mean", fontsize="small")
    _save(path)


def tiled(pictures: Tensor, columns: int = 8) -> Any:
    """Square pictures ``(N, P)`` side by side, as one."""
    side = math.isqrt(pictures.shape[1])
    tiles = numpy.asarray(pictures).reshape(-1, columns, side, side)
    return tiles.transpose(0, 2, 1, 3).reshape(-1, columns * side)


FIGURES: Mapping[str, Callable[[Path, Results], None]] = {
    "curves": plot_curves,
    "gradient_norms": plot_gradient_norms,
    "embeddings": plot_embeddings,
    "components": plot_components,
}
"""By name."""


def _save(path: Path) -> None:
    plt.gcf().savefig(path, dpi=150)
    plt.close()
