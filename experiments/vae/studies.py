"""What is compared: the fits of each study."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from experiments.lab.comparison import Job
from experiments.lab.trainer_settings import Training
from experiments.vae.autoencoder import ESTIMATORS, PRIORS
from experiments.vae.fits import GATED, TINY, Candidate

BATCH = {"small": 256, "gated": 100}
RATES = {"small": 1e-3, "gated": 5e-4}
"""Learning rates, which fall to a tenth."""
BETAS = (0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True)
class Study:
    """A table of fits.

    Attributes:
        title: of the table.
        jobs: of a number of seeds, in the order of the rows.
        num_samples: of each test image, for the bounds.
        seeds: by default.
        judged: test images whose bounds are told, evenly spread, at most.
        watched: validation images whose terms of the ELBO are told after each epoch.
    """

    title: str
    jobs: Callable[[int], list[Job]]
    num_samples: int = 200
    seeds: int = 1
    judged: int = 10_000
    watched: int = 0


def training(size: str, epochs: int, seed: int = 0, patience: int | None = None) -> Training:
    """Settings of a fit of the small or the gated network."""
    return Training(
        epochs,
        BATCH[size],
        learning_rate=RATES[size],
        final_fraction=0.1,
        patience=patience,
        seed=seed,
    )


def readings(seeds: int) -> list[Job]:
    """One Normal, by the reading of the pixels."""
    return [
        Job(reading, Candidate(reading=reading), training("small", 30, seed))
        for reading in ("grey", "dynamic", "fixed")
        for seed in range(seeds)
    ]


def estimators(seeds: int) -> list[Job]:
    """Table 2 of Jankowiak and Karaletsos."""
    candidates = {"K = 1": Candidate()}
    for count in (3, 4, 5):
        for name in ESTIMATORS:
            candidates[f"K = {count}, {name}"] = Candidate(count, name)
    return [
        Job(name, candidate, training("small", 30, seed))
        for seed in range(seeds)
        for name, candidate in candidates.items()
    ]


def longer(seeds: int) -> list[Job]:
    """Two rows of Table 2 for longer, on pixels that are binarized anew."""
    return [
        Job(name, candidate, training("small", 200, seed, patience=30))
        for seed in range(seeds)
        for name, candidate in {
            "K = 1, dynamic": Candidate(reading="dynamic"),
            "K = 3, clustered, dynamic": Candidate(3, "clustered", reading="dynamic"),
        }.items()
    ]


def encoders(seeds: int) -> list[Job]:
    """One network or one for each component, at equal numbers of decoded images."""
    four = {
        "shared, one draw": (Candidate(4, "clustered"), 40),
        "shared, each component": (Candidate(4, bound="marginalized"), 10),
        "separate, each component": (Candidate(4, bound="marginalized", separate=True), 10),
        "K = 1": (Candidate(), 40),
    }
    return [
        Job(name, candidate, training("small", epochs, seed))
        for seed in range(seeds)
        for name, (candidate, epochs) in four.items()
    ]


def priors(seeds: int) -> list[Job]:
    """Priors crossed with posteriors and bounds, in the setting of Tomczak and Welling."""
    posteriors = [(1, "elbo"), (4, "elbo"), (1, "iwae"), (4, "iwae"), (4, "siwae")]
    return [
        Job(
            f"{prior}, K = {count}, {bound}",
            Candidate(count, "clustered", bound, prior, sizes=GATED),
            training("gated", 8, seed),
        )
        for seed in range(seeds)
        for prior in PRIORS
        for count, bound in posteriors
    ]


def best(seeds: int) -> list[Job]:
    """Two rows of the priors' table for longer: one that keeps its components, and the best."""
    return [
        Job(
            f"vamp, K = 4, {bound}",
            Candidate(4, "clustered", bound, "vamp", sizes=GATED),
            training("gated", epochs, seed, patience=5),
        )
        for seed in range(seeds)
        for bound, epochs in (("siwae", 20), ("iwae", 100))
    ]


def rates(seeds: int) -> list[Job]:
    """Weights of the divergence: rate against distortion."""
    return [
        Job(
            f"K = {count}, beta = {beta:g}",
            Candidate(count, "clustered", beta=beta),
            training("small", 10, seed),
        )
        for seed in range(seeds)
        for count in (1, 4)
        for beta in BETAS
    ]


STUDIES = {
    "readings": Study("Readings of the pixels, K = 1", readings),
    "estimators": Study("Table 2", estimators, num_samples=50),
    "longer": Study("Two rows of Table 2 for longer", longer, num_samples=50),
    "encoders": Study("Shared or separate encoders, K = 4", encoders),
    "priors": Study("Priors, posteriors and bounds", priors),
    "best": Study("Longer", best, num_samples=5000, judged=500),
    "rates": Study("Rate and distortion", rates, watched=300),
}
"""By name, in the order of a run."""


def quick(job: Job) -> Job:
    """The same on small images, for two epochs of small batches."""
    return Job(
        job.name,
        dataclasses.replace(job.candidate, reading="digits", sizes=TINY),
        dataclasses.replace(job.training, epochs=2, batch_size=50, patience=None),
    )
