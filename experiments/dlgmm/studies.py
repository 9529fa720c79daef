"""What is compared: the fits of each study."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from experiments.dlgmm.fits import APART, TINY, Candidate
from experiments.lab.comparison import Job
from experiments.lab.trainer_settings import Training

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
class Study:
    """A table of fits.

    Attributes:
        title: of the table.
        jobs: of a number of seeds, in the order of the rows.
        seeds: by default.
        num_samples: of each test image, for the bounds: of all, and of ``judged`` of them.
        judged: test images with the second number, evenly spread, at most.
        figures: names in :data:`~experiments.dlgmm.figures.FIGURES`.
    """

    title: str
    jobs: Callable[[int], list[Job]]
    seeds: int = 1
    num_samples: tuple[int, int] = (50, 1000)
    judged: int = 250
    figures: tuple[str, ...] = ("curves",)


def training(epochs: int, seed: int) -> Training:
    """For the machine's time few epochs at three times the text's rate, which falls to a tenth."""
    return Training(epochs, 100, learning_rate=1e-3, final_fraction=0.1, seed=seed)


def jobs(candidates: Mapping[str, Candidate], epochs: int, seeds: int) -> list[Job]:
    """Of each candidate as many fits."""
    return [
        Job(name, candidate, training(epochs, seed))
        for seed in range(seeds)
        for name, candidate in candidates.items()
    ]


def mnist(seeds: int) -> list[Job]:
    """Figures 2 and 3 of the text, mixtures in each way, and two stochastic layers.

    Several fits of the rows whose latent spaces are compared, one of each other row.
    """
    several = {"Gauss-VAE": GAUSS, f"DLGMM, K = 5, {TOLD['clustered']}": Candidate()}
    once = {
        f"DLGMM, K = 5, {TOLD['each']}": Candidate(way="each"),
        "DLGMM, K = 5, means apart, latent 5": Candidate(
            means=APART, sizes=dataclasses.replace(GAUSS.sizes, latent=5)
        ),
        "two layers, K = 3": Candidate("two_layers", 3),
        "SB-VAE, t = 50": STICKS,
        f"DLGMM, K = 5, {TOLD['pathwise']}": Candidate(way="pathwise"),
        f"DLDPMM, T = 15, {TOLD['clustered']}": DIRICHLET_PROCESS,
        f"DLGMM, K = 3, {TOLD['each']}": Candidate(num_components=3, way="each"),
        f"DLGMM, K = 3, {TOLD['clustered']}": Candidate(num_components=3),
        f"DLGMM, K = 3, {TOLD['pathwise']}": Candidate(num_components=3, way="pathwise"),
    }
    return jobs(several, 8, seeds) + jobs(once, 8, 1)


def omniglot(seeds: int) -> list[Job]:
    """The same models on Omniglot, the mixture by one draw."""
    candidates = {
        "Gauss-VAE": GAUSS,
        "SB-VAE, t = 50": STICKS,
        "DLGMM, K = 5": Candidate(),
    }
    return jobs(
        {
            name: dataclasses.replace(candidate, reading="omniglot")
            for name, candidate in candidates.items()
        },
        8,
        seeds,
    )


STUDIES = {
    "mnist": Study(
        "MNIST",
        mnist,
        seeds=3,
        figures=("curves", "gradient_norms", "embeddings", "components"),
    ),
    "omniglot": Study("Omniglot", omniglot),
}
"""By name, in the order of a run."""


def quick(job: Job) -> Job:
    """The same on small images, for two epochs of small batches."""
    return Job(
        job.name,
        dataclasses.replace(job.candidate, reading="digits", sizes=TINY),
        dataclasses.replace(job.training, epochs=2, batch_size=50),
    )
