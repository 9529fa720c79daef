"""What is compared: the fits of each study."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from experiments.dlgmm.fits import APART, TINY, WAYS, WIDE, Candidate
from experiments.lab.trainer_settings import Training

CAP = 100
"""Epochs of a fit at most, for the machine's time; the text names no cap."""
PATIENCE = 30
TOLD = {
    "each": "each component",
    "clustered": "one draw, clustered",
    "pathwise": "one draw, pathwise",
}

GAUSS = Candidate("gauss")
STICKS = Candidate("sticks", 50, prior="gem", concentration=5.0)
"""Nalisnick and Smyth choose the concentration by the validation data; 5 is that of their runs."""
DIRICHLET_PROCESS = Candidate(num_components=15, prior="gem")


@dataclass(frozen=True)
class Job:
    """A fit of a study.

    Attributes:
        name: of its row, the same for all seeds.
        candidate: what is fitted.
        training: settings.
    """

    name: str
    candidate: Candidate
    training: Training


@dataclass(frozen=True)
class Study:
    """A table of fits.

    Attributes:
        title: of the table.
        jobs: of a number of seeds, in the order of the rows.
        seeds: by default.
        num_samples: of each test image, for the bounds: of all, and of ``judged`` of them.
        judged: test images with the second number, evenly spread, at most.
        gradients: tell the norm of the gradient after each epoch.
        figures: names in :data:`~experiments.dlgmm.figures.FIGURES`.
    """

    title: str
    jobs: Callable[[int], list[Job]]
    seeds: int = 1
    num_samples: tuple[int, int] = (50, 1000)
    judged: int = 2000
    gradients: bool = False
    figures: tuple[str, ...] = ("curves",)


def training(seed: int = 0) -> Training:
    """The text's settings."""
    return Training(CAP, 100, learning_rate=3e-4, patience=PATIENCE, seed=seed)


def in_ways(name: str, candidate: Candidate) -> dict[str, Candidate]:
    """A mixture by its name, trained in each way."""
    return {f"{name}, {TOLD[way]}": dataclasses.replace(candidate, way=way) for way in WAYS}


def jobs(candidates: Mapping[str, Candidate], seeds: int) -> list[Job]:
    """Of each candidate as many fits."""
    return [
        Job(name, candidate, training(seed))
        for seed in range(seeds)
        for name, candidate in candidates.items()
    ]


def mnist(seeds: int) -> list[Job]:
    """Figures 2 and 3 of the text, and each mixture in each way, of which one fit each."""
    once = {
        **in_ways("DLGMM, K = 3", Candidate(num_components=3)),
        **in_ways("DLGMM, K = 5", Candidate()),
        **in_ways("DLDPMM, T = 15", DIRICHLET_PROCESS),
        "DLGMM, K = 5, means apart, latent 5": Candidate(
            means=APART, sizes=dataclasses.replace(GAUSS.sizes, latent=5)
        ),
    }
    several = {
        "Gauss-VAE": GAUSS,
        "SB-VAE, t = 50": STICKS,
        "DLGMM, K = 5, one draw, clustered": once.pop("DLGMM, K = 5, one draw, clustered"),
        "DLGMM, K = 5, means apart": Candidate(means=APART),
    }
    return jobs(several, seeds) + jobs(once, 1)


def omniglot(seeds: int) -> list[Job]:
    """The same models on Omniglot, the mixtures by one draw."""
    candidates = {
        "Gauss-VAE": GAUSS,
        "SB-VAE, t = 50": STICKS,
        "DLGMM, K = 3": Candidate(num_components=3),
        "DLGMM, K = 5": Candidate(),
        "DLGMM, K = 5, each component": Candidate(way="each"),
        "DLDPMM, T = 15": DIRICHLET_PROCESS,
    }
    return jobs(
        {
            name: dataclasses.replace(candidate, reading="omniglot")
            for name, candidate in candidates.items()
        },
        seeds,
    )


def wide(seeds: int) -> list[Job]:
    """Layers of 1,500."""
    candidates = {"Gauss-VAE": GAUSS, **in_ways("DLGMM, K = 5", Candidate())}
    return jobs(
        {name: dataclasses.replace(each, sizes=WIDE) for name, each in candidates.items()}, seeds
    )


def layers(seeds: int) -> list[Job]:
    """One stochastic layer or two, the decoder run once."""
    return jobs(
        {
            "one layer, K = 3": Candidate(num_components=3),
            "two layers, K = 3": Candidate("two_layers", 3),
        },
        seeds,
    )


STUDIES = {
    "mnist": Study("MNIST", mnist, seeds=3, figures=("curves", "embeddings", "components")),
    "omniglot": Study("Omniglot", omniglot),
    "wide": Study("MNIST, layers of 1,500", wide),
    "layers": Study(
        "Stochastic layers", layers, gradients=True, figures=("curves", "gradient_norms")
    ),
}
"""By name, in the order of a run."""


def quick(job: Job) -> Job:
    """The same on small images, for two epochs of small batches."""
    return Job(
        job.name,
        dataclasses.replace(job.candidate, reading="digits", sizes=TINY),
        dataclasses.replace(job.training, epochs=2, batch_size=50, patience=None),
    )
