"""What is compared: priors of the latent of a lower half, given the upper one."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from experiments.conditional_prior import figures, fits
from experiments.conditional_prior.model import Candidate
from experiments.lab.comparison import Column, Job, Results, Rows, Study, good, means
from experiments.lab.trainer_settings import Training

EPOCHS = 3
COMPONENTS = 5


def candidates() -> dict[str, Candidate]:
    """By the names of their rows; gains are told over the second."""
    return {
        "no latent": Candidate("none"),
        "Normal": Candidate(),
        f"mixture of {COMPONENTS}": Candidate(num_components=COMPONENTS),
        f"mixture of {COMPONENTS}, posterior of 3": Candidate(
            num_components=COMPONENTS, posterior_components=3
        ),
        "standard Normal": Candidate("standard"),
        "bottleneck, Normal": Candidate(bottleneck=True),
        f"bottleneck, mixture of {COMPONENTS}": Candidate(
            num_components=COMPONENTS, bottleneck=True
        ),
    }


REFERENCE = "Normal"


def priors(seeds: int) -> list[Job]:
    """Priors of the latent, and decoders that see the upper half or not."""
    return [
        Job(
            name,
            candidate,
            Training(EPOCHS, 200, learning_rate=2e-3, final_fraction=0.1, seed=seed),
        )
        for seed in range(seeds)
        for name, candidate in candidates().items()
    ]


def rows(results: Results) -> Rows:
    """Means of each row, and the gain over the Normal prior with its error over the images."""
    found = means(results)
    reference = good(results[REFERENCE])
    for row, fits_of_row in zip(found, results.values(), strict=True):
        each = good(fits_of_row)
        if each and reference:
            gain: Any = sum(result["each"] for result in each) / len(each)
            gain = gain - sum(result["each"] for result in reference) / len(reference)
            row["gain"] = gain.mean().item()
            row["gain_se"] = gain.std().item() / math.sqrt(len(gain))
    return found


def quick(job: Job) -> Job:
    """The same for two epochs on small images."""
    small = dataclasses.replace(job.candidate, latent=2, hidden=32, reading="digits")
    return Job(job.name, small, dataclasses.replace(job.training, epochs=2, batch_size=20))


STUDIES = {
    "priors": Study(
        "Prior",
        priors,
        fits.fit,
        (
            Column("elbo", "test ELBO"),
            Column("log_likelihood", "log p(x given y)"),
            Column("gain", "gain"),
            Column("rate", "rate"),
            Column("prior_components", "components of the prior"),
        ),
        quick,
        rows=rows,
        step=fits.step,
        figures={"completions": figures.plot_completions},
    ),
}
"""By name, in the order of a run."""
