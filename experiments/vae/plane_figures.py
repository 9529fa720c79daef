"""Posteriors in the plane, the mixtures that stand for them, and completions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy
import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from torch import Tensor

from experiments.vae import plane
from experiments.vae.autoencoder import Model
from experiments.vae.completion import decoded
from experiments.vae.occlusion_figures import joined, thumbnails
from pyro_mixtures.plotting import plot_mixture

SHOWN = 4
"""Modes and components with a completion, at most."""
SEEN = 0.05
"""Components of this weight have one."""
MODE, COMPONENT = "C3", "C1"


@torch.no_grad()
def plot_plane(
    path: Path, model: Model, encoders: Mapping[str, Callable[[Tensor], Any]], rows: Tensor
) -> None:
    """A row for each image: what is seen, completions, and mixtures over the posterior.

    Args:
        path: of the figure.
        model: of upper halves, with latents in the plane.
        encoders: of a row ``(1, pixels / 2)`` to mixtures ``(1,)``, by their names, one panel
            each. The last one's components have completions.
        rows: images ``(N, pixels)``.
    """
    figure, axes = plt.subplots(
        len(rows),
        3 + len(encoders),
        figsize=(4 + 2.6 * len(encoders), 2.4 * len(rows) + 0.8),
        width_ratios=(0.8, 0.9, *(1.4 for _ in encoders), 0.9),
        squeeze=False,
        layout="constrained",
    )
    points = plane.points()
    for row, image in zip(axes, rows, strict=True):
        half = image[: image.numel() // 2]
        log_p = plane.posterior(model, half.unsqueeze(0))[1][0]
        modes = dict(list(plane.modes(log_p).items())[:SHOWN])
        thumbnails(row[0], image.unsqueeze(0), hidden=True)
        thumbnails(
            row[1],
            joined(half, decoded(model, points[list(modes)])),
            [MODE] * len(modes),
            [f"{place + 1}: {100 * share:.0f} %" for place, share in enumerate(modes.values())],
        )
        mixtures = [encoder(half.unsqueeze(0)) for encoder in encoders.values()]
        for panel, mixture in zip(row[2:], mixtures, strict=False):
            _panel(panel, log_p, mixture, list(modes))
        row[2].set_ylabel("second coordinate", fontsize=9)
        shown = heaviest(mixtures[-1])
        thumbnails(
            row[-1],
            joined(half, decoded(model, torch.stack([loc for _, loc in shown]))),
            [COMPONENT] * len(shown),
            [f"{100 * weight:.0f} %" for weight, _ in shown],
        )
    titles = (
        "the image;\nshaded: hidden",
        "by the posterior's\nmodes, shares",
        *(name.replace(", K", ",\nK") for name in encoders),
        "by components\nof the last q",
    )
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=9)
    for ax in axes[-1, 2:-1]:
        ax.set_xlabel("first coordinate", fontsize=9)
    handles: list[Any] = [
        Patch(color="0.5", label="posterior, by the grid (its square root)"),
        Line2D([], [], color="C0", label="q: 50, 80 and 95 %"),
        Line2D([], [], color=COMPONENT, label="components: 50 % of each"),
        Line2D([], [], color=MODE, marker="x", ls="", label="the posterior's modes"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def heaviest(mixture: Any) -> list[tuple[float, Tensor]]:
    """Weights and means of the components that are shown of a mixture ``(1,)``."""
    weights = mixture.log_weights.exp().flatten().tolist()
    by_weight = sorted(zip(weights, mixture.locs[0], strict=True), key=lambda each: -each[0])
    return [each for each in by_weight[:SHOWN] if each[0] >= SEEN]


def _panel(ax: Axes, log_p: Tensor, mixture: Any, modes: list[int]) -> None:
    """The posterior as shading, and the mixture's contours on it."""
    ticks = plane.axis().numpy()
    density = log_p.exp().reshape(plane.SIDE, plane.SIDE).numpy()
    ax.pcolormesh(
        ticks,
        ticks,
        density,
        cmap="Greys",
        norm=PowerNorm(0.5, vmin=0, vmax=1.4 * density.max()),  # lines are to be seen on it
        shading="gouraud",
        rasterized=True,
    )
    plot_mixture(one(mixture), ax=ax)
    legend: Any = ax.get_legend()
    legend.remove()
    inside = plane.points()[log_p > log_p.max() + numpy.log(plane.FLOOR)].numpy()
    ends = numpy.array([ax.get_xlim(), ax.get_ylim()])
    low = numpy.minimum(ends[:, 0], inside.min(0) - 0.1)
    high = numpy.maximum(ends[:, 1], inside.max(0) + 0.1)
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel="", ylabel="")
    for number, place in enumerate(plane.points()[modes].tolist(), 1):
        ax.plot(*place, "x", color=MODE, ms=5, mew=1.5)
        text = ax.annotate(str(number), place, (4, 3), textcoords="offset points", color=MODE)
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])


def one(mixture: Any) -> Any:
    """The only mixture of a batch ``(1,)``."""
    return type(mixture)(
        mixture.locs[0],
        mixture.coord_scale[0],
        mixture.log_weights.reshape(-1),
        validate_args=False,
    )
