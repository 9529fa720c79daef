"""A fit of a model with few labels, and how it is judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

from experiments.discrete_codes.autoencoder import Bound
from experiments.lab.trainer_settings import Training
from experiments.semi_supervised.model import DIGITS, SUPERVISED, Candidate, Decoder, Encoder
from experiments.vae import fits, images
from pyro_mixtures.diagnostics import component_summary

WATCHED = 1000
"""Validation images, of which the ELBO is told after each epoch."""
JUDGED = 1000
"""Test images of which the ELBO is told; all are classified."""


def chosen(digits: Tensor, labels: int, seed: int) -> Tensor:
    """Indices of images that keep their labels, as many of each digit.

    Raises:
        ValueError: for labels that the digits cannot share evenly, and more than there are.
    """
    each, rest = divmod(labels, DIGITS)
    counts = torch.bincount(digits, minlength=DIGITS)
    if rest or not 0 < each <= int(counts.min()):
        raise ValueError(
            f"Expected labels that {DIGITS} digits can share evenly, at most"
            f" {DIGITS * int(counts.min())}, but got {labels}"
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(digits), generator=generator)
    places = [order[digits[order] == digit][:each] for digit in range(DIGITS)]
    return torch.cat(places)


def start(
    candidate: Candidate, data: images.Images, training: Training
) -> tuple[Decoder, Encoder]:
    """Decoder and encoder before they are trained, with the labels of a seed."""
    digits = data.train.digits
    assert digits is not None
    labeled = chosen(digits, candidate.labels, training.seed)
    pyro.set_rng_seed(training.seed)
    decoder = Decoder(candidate, data.side**2)
    encoder = Encoder(candidate, data.train.images[labeled], digits[labeled], training.batch_size)
    if candidate.estimator == SUPERVISED:
        decoder.requires_grad_(False)
        encoder.style.requires_grad_(False)
    return decoder, encoder


def fit(
    folder: Path, candidate: Candidate, training: Training, *, few: bool, resume: bool
) -> dict[str, Any]:
    """Train a model with few labels and judge it by the test images.

    Args:
        folder: of the fit.
        candidate: what to fit.
        training: settings.
        few: with few images without labels.
        resume: go on from a checkpoint.

    Returns:
        ``rows`` of the training, the ``accuracy``, and but for the classifier alone ``elbo``, the
        numbers of ``components`` that lie apart, and the ``parameters``.
    """
    torch.set_num_threads(1)
    data = images.load(candidate.reading)
    digits = data.validation.digits
    assert digits is not None
    held_out = images.Split(data.validation.images[:WATCHED], digits[:WATCHED])
    decoder, encoder = start(candidate, data, training)
    rows = fits.train(
        folder,
        (decoder, encoder, Bound()),
        dataclasses.replace(data, validation=held_out),
        training,
        {"candidate": dataclasses.asdict(candidate)},
        further=lambda rows: {"validation_accuracy": encoder.accuracy(rows, digits[: len(rows)])},
        num_images=200 if few else None,
        device="cpu",
        resume=resume,
        progress=False,
    )
    decoder, encoder = decoder.eval(), encoder.eval()
    found = judge(decoder, encoder, data.test)
    parameters = {"decoder": decoder.state_dict(), "encoder": encoder.state_dict()}
    return {"rows": rows, **found, "parameters": parameters}


@torch.no_grad()
def judge(decoder: Decoder, encoder: Encoder, test: images.Split) -> dict[str, float]:
    """Figures of the test images."""
    pyro.set_rng_seed(0)
    assert test.digits is not None
    found = {"accuracy": encoder.accuracy(test.images, test.digits)}
    if encoder.candidate.estimator == SUPERVISED:
        return found
    shown = fits.spread(test.images, JUDGED)[:JUDGED]
    bounds = [encoder.bound(decoder, batch) for batch in shown.split(200)]
    y = encoder.classifier(shown).softmax(-1)
    told = torch.nn.functional.one_hot(y.argmax(-1), DIGITS).to(shown)
    used = component_summary(encoder.style(shown, told))
    return {
        **found,
        "elbo": torch.cat(bounds).mean().item(),
        "components": used.distinct_components.mean().item(),
    }


def step(candidate: Candidate, training: Training) -> Callable[[], None]:
    """A step of a fit, to be timed."""
    data = images.load(candidate.reading)
    decoder, encoder = start(candidate, data, training)
    batch = data.train.images[: training.batch_size].round()
    bound = Bound()(decoder, encoder)
    trained = [each for each in bound.parameters() if each.requires_grad]
    adam = torch.optim.Adam(trained, lr=1e-4)

    def update() -> None:
        adam.zero_grad()
        (bound(batch) / len(batch)).backward()
        adam.step()

    return update
