"""What is compared: numbers of labels, gradients through the labels that are not known."""

from __future__ import annotations

import dataclasses

from experiments.lab.comparison import Column, Job, Study
from experiments.lab.trainer_settings import Training
from experiments.semi_supervised import figures, fits
from experiments.semi_supervised.model import SUPERVISED, Candidate

LABELS = (100, 600, 1000, 3000)
ESTIMATORS = (
    "marginalized",
    "leave-one-out",
    "straight-through",
    "Gumbel 1",
    "Gumbel straight-through 1",
)
EPOCHS = 4


def training(seed: int) -> Training:
    """Settings of all fits."""
    return Training(EPOCHS, 100, learning_rate=2e-3, final_fraction=0.1, seed=seed)


def labels(seeds: int) -> list[Job]:
    """Classifiers and models, by the number of labels."""
    return [
        Job(f"{count}, {name}", dataclasses.replace(candidate, labels=count), training(seed))
        for seed in range(seeds)
        for count in LABELS
        for name, candidate in {
            SUPERVISED: Candidate(count, SUPERVISED),
            "Normal": Candidate(count),
            "mixture of 3": Candidate(count, num_components=3),
        }.items()
    ]


def estimators(seeds: int) -> list[Job]:
    """Gradients through the labels."""
    return [
        Job(f"100, {name}", Candidate(100, name), training(seed))
        for seed in range(seeds)
        for name in ESTIMATORS
    ]


def bound(seeds: int) -> list[Job]:
    """By the bound alone, without a classification loss."""
    return [
        Job(f"{count}, bound alone", Candidate(count, auxiliary=0.0), training(seed))
        for seed in range(seeds)
        for count in (LABELS[0], LABELS[-1])
    ]


def quick(job: Job) -> Job:
    """The same with few labels, for two epochs on small images."""
    small = dataclasses.replace(
        job.candidate,
        labels=job.candidate.labels // 100 * 10,
        latent=2,
        hidden=32,
        reading="digits",
    )
    return Job(job.name, small, dataclasses.replace(job.training, epochs=2, batch_size=50))


COLUMNS = (
    Column("accuracy", "accuracy", ".4f"),
    Column("elbo", "test ELBO"),
    Column("components", "components"),
)
STUDIES = {
    "labels": Study(
        "Labels, posterior of the style",
        labels,
        fits.fit,
        COLUMNS,
        quick,
        step=fits.step,
        figures={"labels": figures.plot_labels, "styles": figures.plot_styles},
    ),
    "estimators": Study(
        "Labels, gradient",
        estimators,
        fits.fit,
        COLUMNS[:2],
        quick,
        step=fits.step,
        figures={"estimators": figures.plot_accuracies},
    ),
    "bound": Study("Labels", bound, fits.fit, COLUMNS[:2], quick, step=fits.step),
}
"""By name, in the order of a run."""
