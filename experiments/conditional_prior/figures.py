"""Completions of lower halves by draws of the prior."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch

from experiments.conditional_prior.fits import start
from experiments.conditional_prior.model import halves
from experiments.lab.comparison import Results, Rows, good
from experiments.vae import images
from experiments.vae.fits import spread

DRAWS = 6
"""Of each row's prior and image."""


@torch.no_grad()
def plot_completions(path: Path, results: Results, rows: Rows, count: int = 6) -> None:
    """Test images, their mean completion without a latent, and draws of some priors."""
    shown = [name for name in results if "posterior" not in name]
    figure, axes = plt.subplots(
        count,
        1 + len(shown),
        figsize=(13, 0.75 * count),
        width_ratios=[1] + [1 if name == "no latent" else DRAWS for name in shown],
        layout="constrained",
    )
    for column, name in enumerate(shown, 1):
        fits = results[name]
        for result in good(fits)[:1]:
            candidate = fits[0][0].candidate
            data = images.load(candidate.reading)
            test = spread(data.test.images, count)[:count]
            model, _, _ = start(candidate, data.side**2, 0)
            model.load_state_dict(result["parameters"]["model"])
            torch.manual_seed(0)
            upper, _ = halves(test)
            draws = 1 if candidate.prior == "none" else DRAWS
            lower = model.completed(upper, draws)
            whole = torch.cat([upper.expand(draws, -1, -1), lower], -1)
            for row, each in enumerate(whole.transpose(0, 1)):
                tiles = each.reshape(draws, data.side, data.side)
                picture = test[row].reshape(data.side, data.side)
                for place, shade in ((column, torch.cat(list(tiles), -1)), (0, picture)):
                    axes[row, place].imshow(shade.numpy(), cmap="Greys", vmin=0, vmax=1)
            axes[0, column].set_title(name, fontsize="small")
    axes[0, 0].set_title("image", fontsize="small")
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=90)
    plt.close(figure)
