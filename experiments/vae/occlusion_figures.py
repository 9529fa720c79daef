"""What encoders of upper halves make of ambiguous images, beside the posterior."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse, Patch, Rectangle
from torch import Tensor
from torch.distributions import Bernoulli

from experiments.vae.autoencoder import Model
from experiments.vae.completion import decoded, probabilities

COLORS = ("C0", "C1", "C2", "C4")
"""Of the components; that of the one Normal is black."""
NORMAL, POSTERIOR = "black", "0.6"
DRAWS = 4
"""Of the posterior, that are shown."""
CHUNK = 5000
RESAMPLED = 5000
"""Draws of the posterior."""


@torch.no_grad()
def plot_ambiguous(
    path: Path,
    model: Model,
    encoders: Mapping[str, Callable[[Tensor], Any]],
    shown: Sequence[str],
    rows: Tensor,
    classifier: Mapping[str, Any],
    *,
    num_samples: int,
) -> None:
    """A row for each image: what is seen, completions, latents in two directions, and digits.

    The posterior is that by importance weights of draws of all encoders together.

    Args:
        path: of the figure.
        model: of upper halves.
        encoders: of upper halves, by their names.
        shown: names of the one Normal and of the mixture whose components are shown.
        rows: images ``(N, pixels)``.
        classifier: of whole images.
        num_samples: of each encoder, for the importance weights.
    """
    figure, axes = plt.subplots(
        len(rows),
        6,
        figsize=(14.5, 2.5 * len(rows) + 0.6),
        width_ratios=(1, 1, 1.1, 1.1, 1.5, 1.5),
        squeeze=False,
        layout="constrained",
    )
    torch.manual_seed(0)
    for row, image in zip(axes, rows, strict=True):
        half = image[: image.numel() // 2]
        normal, mixture = (encoders[name](half) for name in shown)
        proposals = [encoder(half) for encoder in encoders.values()]
        z = posterior_draws(model, half, proposals, num_samples)
        thumbnails(row[0], image.unsqueeze(0), hidden=True)
        thumbnails(row[1], joined(half, decoded(model, normal.locs)), [NORMAL])
        weights = mixture.log_weights.exp().tolist()
        thumbnails(
            row[2],
            joined(half, decoded(model, mixture.locs)),
            COLORS,
            [f"{100 * weight:.0f} %" for weight in weights],
        )
        thumbnails(row[3], joined(half, decoded(model, z[:DRAWS])), [POSTERIOR] * DRAWS)
        _latents(row[4], z, normal, mixture)
        guesses = {
            shown[0]: _digits(model, classifier, half, normal.sample((2000,))),
            shown[1]: _digits(model, classifier, half, mixture.sample((2000,))),
            "posterior": _digits(model, classifier, half, z[:2000]),
        }
        _bars(row[5], guesses)
    titles = (
        "the image;\nshaded: hidden",
        f"{shown[0]}:\nof its mean",
        f"{shown[1]}:\nof each mean, weights",
        "posterior:\nfour draws",
        "latents, in the plane of\nthe mixture's means",
        "digits of 2,000\ncompletions",
    )
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=10)
    axes[-1, 4].set_xlabel("first principal direction")
    axes[-1, 5].set_xlabel("digit")
    handles = [
        Patch(color=POSTERIOR, label="posterior, by importance weights"),
        Line2D([], [], color=NORMAL, label=f"{shown[0]} (ellipse: 80 % of it)"),
        Line2D([], [], color=COLORS[0], label=f"{shown[1]}: components (80 % of each)"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def posterior_draws(
    model: Model, half: Tensor, proposals: Sequence[Any], num_samples: int
) -> Tensor:
    """Draws of p(z | upper half), ``(RESAMPLED, D)``: those of the proposals, by their weights.

    Each proposal gives ``num_samples``; they are weighed as draws of one mixture of all.
    """
    drawn, log_weights = [], []
    for proposal in proposals:
        for begin in range(0, num_samples, CHUNK):
            z = proposal.sample((min(CHUNK, num_samples - begin),))
            log_q = torch.stack([each.log_prob(z) for each in proposals]).logsumexp(0)
            pixels = Bernoulli(logits=model.decoder(z), validate_args=False).log_prob(half)
            drawn.append(z)
            log_weights.append(model.prior().log_prob(z) + pixels.sum(-1) - log_q)
    weights = torch.cat(log_weights).double().softmax(0)
    return torch.cat(drawn)[weights.multinomial(RESAMPLED, replacement=True)]


def joined(half: Tensor, logits: Tensor) -> Tensor:
    """The upper half with probabilities of the lower one's pixels, ``(N, pixels)``."""
    lower = logits[..., half.numel() :].sigmoid()
    return torch.cat([half.expand(len(lower), -1), lower], -1)


def _digits(model: Model, classifier: Mapping[str, Any], half: Tensor, z: Tensor) -> Tensor:
    """Mean probabilities of the digits over completions whose pixels are drawn."""
    lower = torch.bernoulli(joined(half, decoded(model, z)))
    return probabilities(classifier, lower).mean(0)


def thumbnails(
    ax: Axes,
    rows: Tensor,
    colors: Sequence[str] = (),
    labels: Sequence[str] = (),
    *,
    hidden: bool = False,
) -> None:
    """One image, or four in a square, each in a frame of its colour."""
    side = round(rows.shape[1] ** 0.5)
    step, across = side + 0.3 * side, 1 if len(rows) == 1 else 2
    for place, row in enumerate(rows):
        x, y = step * (place % across), step * (place // across)
        extent = (x, x + side, y + side, y)
        ax.imshow(row.reshape(side, side).numpy(), cmap="Greys", vmin=0, vmax=1, extent=extent)
        if hidden:
            shade = Rectangle((x, y + side / 2), side, side / 2, color="C3", alpha=0.25, lw=0)
            ax.add_patch(shade)
        color = colors[place] if colors else "black"
        ax.add_patch(Rectangle((x, y), side, side, fill=False, ec=color, lw=2))
        if labels:
            ax.text(
                x + side / 2, y - 0.04 * side, labels[place], ha="center", color=color, fontsize=9
            )
    last = step * ((len(rows) - 1) // across) + side
    ax.set(xlim=(-1, step * (across - 1) + side + 1), ylim=(last + 1, -1 - 0.2 * side))
    ax.set_axis_off()


def _latents(ax: Axes, z: Tensor, normal: Any, mixture: Any) -> None:
    """The posterior's draws in the plane of the mixture's means, and ellipses of the guides."""
    weights = mixture.log_weights.exp()
    apart = (mixture.locs - mixture.mean) * weights.sqrt().unsqueeze(-1)
    plane = torch.linalg.svd(apart, full_matrices=False)[2][:2].T  # (D, 2)
    points = ((z - mixture.mean) @ plane).numpy()
    ax.scatter(points[:, 0], points[:, 1], s=2, color=POSTERIOR, alpha=0.3, lw=0, rasterized=True)
    for q, colors in ((normal, [NORMAL]), (mixture, COLORS)):
        shares = q.log_weights.exp().tolist()
        for loc, scale, color, share in zip(q.locs, q.coord_scale, colors, shares, strict=False):
            centre = ((loc - mixture.mean) @ plane).numpy()
            covariance = (plane.T * scale.square() @ plane).numpy()
            sizes, axes = numpy.linalg.eigh(covariance)
            radii = numpy.sqrt(2 * numpy.log(5) * sizes)  # 80 % lie within
            ax.add_patch(
                Ellipse(
                    tuple(centre),
                    *(2 * radii),
                    angle=numpy.degrees(numpy.arctan2(axes[1, 0], axes[0, 0])),
                    fill=False,
                    ec=color,
                    lw=0.5 + 2.5 * share,
                    ls="--" if q is normal else "-",
                )
            )
    low, high = numpy.quantile(points, [0.002, 0.998], axis=0)
    margin = 0.25 * (high - low)
    ax.set(xlim=(low[0] - margin[0], high[0] + margin[0]))
    ax.set(ylim=(low[1] - margin[1], high[1] + margin[1]), ylabel="second direction")


def _bars(ax: Axes, guesses: Mapping[str, Tensor]) -> None:
    """Probabilities of the digits, side by side."""
    colors = (NORMAL, COLORS[0], POSTERIOR)
    for place, (each, color) in enumerate(zip(guesses.values(), colors, strict=True)):
        ax.bar(numpy.arange(10) + 0.28 * (place - 1), each.numpy(), 0.26, color=color)
    ax.set(xticks=range(10), ylim=(0, 1), ylabel="share")
