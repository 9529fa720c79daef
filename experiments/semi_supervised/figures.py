"""Accuracy by labels and while training; digits of one style."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from experiments.lab.comparison import Results, Rows, good
from experiments.semi_supervised.fits import start
from experiments.semi_supervised.model import DIGITS, SUPERVISED
from experiments.vae import images
from experiments.vae.fits import spread

KNOWN = {100: 0.932, 600: 0.944, 1000: 0.949, 3000: 0.958}
"""Accuracies that Pyro's example of the same model is known for, with a classification loss."""


def plot_labels(path: Path, results: Results, rows: Rows) -> None:
    """Accuracy against the number of labels."""
    figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    curves: dict[str, list[tuple[int, float]]] = {}
    for row, fits in zip(rows, results.values(), strict=True):
        candidate = fits[0][0].candidate
        name = row["row"].split(", ")[1]
        if "accuracy" in row:
            curves.setdefault(name, []).append((candidate.labels, row["accuracy"]))
    for place, (name, points) in enumerate(curves.items()):
        x, y = zip(*points, strict=True)
        ax.plot(x, y, f"C{place}o-", label=name)
    ax.plot(list(KNOWN), list(KNOWN.values()), "k_--", lw=1, label="Pyro's example")
    ax.set(xscale="log", xlabel="images with labels", ylabel="accuracy on test images")
    ax.set_xticks(x, [str(each) for each in x], minor=False)
    ax.minorticks_off()
    ax.legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def plot_accuracies(path: Path, results: Results, rows: Rows) -> None:
    """Accuracy and ELBO of the validation images against epochs."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for place, (name, fits) in enumerate(results.items()):
        for result in good(fits)[:1]:
            epochs = [row["epoch"] for row in result["rows"]][1:]
            for ax, key in zip(axes, ("validation_accuracy", "validation_elbo"), strict=True):
                values = [row[key] for row in result["rows"]][1:]
                ax.plot(epochs, values, f"C{place}", marker=".", label=name)
    axes[0].set(xlabel="epoch", ylabel="accuracy on validation images")
    axes[1].set(xlabel="epoch", ylabel="validation ELBO (nats)")
    axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=100)
    plt.close(figure)


@torch.no_grad()
def plot_styles(path: Path, results: Results, rows: Rows, count: int = 6) -> None:
    """Test images, and all digits in the style of each, by the first model with a mixture."""
    for fits in results.values():
        job = fits[0][0]
        if job.candidate.num_components == 1 or job.candidate.estimator == SUPERVISED:
            continue
        for result in good(fits)[:1]:
            data = images.load(job.candidate.reading)
            seeded = dataclasses.replace(job.training, seed=0)
            decoder, encoder = start(job.candidate, data, seeded)
            decoder.load_state_dict(result["parameters"]["decoder"])
            encoder.load_state_dict(result["parameters"]["encoder"])
            torch.manual_seed(0)
            shown = spread(data.test.images, count)[:count]
            all_digits = torch.eye(DIGITS)
            told = all_digits[encoder.classifier(shown).argmax(-1)]
            z = encoder.style(shown, told).sample()  # (count, D)
            pictures = decoder(all_digits, z.unsqueeze(1).expand(-1, DIGITS, -1)).sigmoid()
            figure, axes = plt.subplots(
                count, DIGITS + 1, figsize=(7.5, 0.7 * count), layout="constrained"
            )
            for row, image, each in zip(axes, shown, pictures, strict=True):
                for ax, picture in zip(row, [image, *each], strict=True):
                    ax.imshow(picture.reshape(data.side, -1).numpy(), cmap="Greys", vmin=0, vmax=1)
                    ax.set(xticks=[], yticks=[])
            axes[0, 0].set_title("image", fontsize="small")
            for digit, ax in enumerate(axes[0, 1:]):
                ax.set_title(str(digit), fontsize="small")
            figure.savefig(path, dpi=80)
            plt.close(figure)
            return
