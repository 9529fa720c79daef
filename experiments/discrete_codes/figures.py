"""Bias against deviation of the gradients; bounds while training; images and what codes keep."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch

from experiments.discrete_codes.autoencoder import QUANTIZERS, start
from experiments.lab.comparison import Results, Rows, good
from experiments.vae import images
from experiments.vae.fits import spread

DEPTH = 70.0
"""Nats below the best that are shown at most."""
FLOOR = 3e-4
"""The lowest bias that is drawn: below that it is noise."""


def plot_gradients(path: Path, results: Results, rows: Rows) -> None:
    """Bias against the deviation of one evaluation, a panel for each case."""
    cases = list(results)
    figure, axes = plt.subplots(
        2, len(cases) // 2, figsize=(10, 6), sharex=True, sharey=True, layout="constrained"
    )
    names = list(dict.fromkeys(row["estimator"] for row in rows))
    for case, ax in zip(cases, axes.flat, strict=True):
        for place, name in enumerate(names):
            for row in rows:
                if (row["case"], row["estimator"]) == (case, name):
                    low = max(row["bias"] - 2 * row["bias_se"], FLOOR)
                    high = max(row["bias"] + 2 * row["bias_se"], FLOOR)
                    middle = min(max(row["bias"], low), high)
                    ax.errorbar(
                        row["each"],
                        middle,
                        yerr=[[middle - low], [high - middle]],
                        fmt="o" if not row["unbiased"] else "^",
                        color=f"C{place}",
                        capsize=3,
                        label=name,
                    )
        ax.set(title=case, xscale="log", yscale="log")
    for ax in axes[-1]:
        ax.set_xlabel("deviation of one evaluation")
    for ax in axes[:, 0]:
        ax.set_ylabel("bias")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def plot_elbos(path: Path, results: Results, rows: Rows) -> None:
    """The validation ELBO against epochs, a panel for each kind of variables."""
    kinds = list(dict.fromkeys(fits[0][0].candidate.kind for fits in results.values()))
    figure, axes = plt.subplots(
        1, len(kinds), figsize=(10, 4), sharey=True, squeeze=False, layout="constrained"
    )
    best = -float("inf")
    for kind, ax in zip(kinds, axes[0], strict=True):
        chosen = [fits for fits in results.values() if fits[0][0].candidate.kind == kind]
        for place, fits in enumerate(chosen):
            for result in good(fits)[:1]:
                epochs = [row["epoch"] for row in result["rows"]][1:]
                elbos = [row["validation_elbo"] for row in result["rows"]][1:]
                best = max(best, *elbos)
                name = fits[0][0].candidate.estimator
                ax.plot(epochs, elbos, f"C{place}", marker=".", label=name)
        ax.set(title=kind, xlabel="epoch")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize="x-small")
    axes[0, 0].set(ylabel="validation ELBO (nats)", ylim=(best - DEPTH, best + 2))
    figure.savefig(path, dpi=100)
    plt.close(figure)


@torch.no_grad()
def plot_reconstructions(path: Path, results: Results, rows: Rows, columns: int = 10) -> None:
    """Test images, and what the decoder makes of a code drawn for each."""
    pictures = {}
    side = 0
    for name, fits in results.items():
        candidate = fits[0][0].candidate
        for result in good(fits)[:1]:
            data = images.load(candidate.reading)
            side = data.side
            decoder, encoder = start(candidate, side**2, 0)
            decoder.load_state_dict(result["parameters"]["decoder"])
            encoder.load_state_dict(result["parameters"]["encoder"])
            shown = spread(data.test.images, columns)[:columns]
            torch.manual_seed(0)
            pictures["images"] = shown
            found = encoder.eval()(shown)
            quantized = candidate.estimator in QUANTIZERS
            z = found.quantized if quantized else encoder.kind.distribution(found).sample()
            pictures[name] = decoder(z).sigmoid()
    figure, axes = plt.subplots(
        len(pictures), columns, figsize=(9, 0.68 * len(pictures)), layout="constrained"
    )
    for row, (name, each) in zip(axes, pictures.items(), strict=True):
        for ax, picture in zip(row, each, strict=True):
            ax.imshow(picture.reshape(side, side).numpy(), cmap="Greys", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize="small")
    figure.savefig(path, dpi=80)
    plt.close(figure)
