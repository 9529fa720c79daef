"""What is compared: the fits of each study, their epochs and what they cost.

An epoch of the trainer is ten passes over the data, 120 steps of 20 sequences, and ends with an
evaluation. Times of a step are those of ``table.md``, on one core; a fit takes the product.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from experiments.dmm.fits import PAPER, TINY, Budget, Candidate
from experiments.lab.comparison import Job
from experiments.lab.trainer_settings import Training


@dataclass(frozen=True)
class Study:
    """A table of fits.

    Attributes:
        title: of the table.
        jobs: of a number of seeds, in the order of the rows.
        seeds: by default.
        budget: of data and work.
    """

    title: str
    jobs: Callable[[int], list[Job]]
    seeds: int = 1
    budget: Budget = Budget()


def training(epochs: int, seed: int, patience: int | None = None) -> Training:
    """Settings of a fit, epochs of ten passes: annealed over half of them, 100 at most."""
    return Training(
        epochs,
        batch_size=1,
        learning_rate=3e-3,
        final_fraction=0.1,
        annealing_epochs=min(epochs // 2, 100),
        clip_norm=50.0,
        weight_decay=0.02,
        patience=patience,
        seed=seed,
    )


def _jobs(candidates: dict[str, Candidate], seeds: int, epochs: int, patience: int) -> list[Job]:
    return [
        Job(name, candidate, training(epochs, seed, patience))
        for seed in range(seeds)
        for name, candidate in candidates.items()
    ]


def table1(seeds: int) -> list[Job]:
    """The rows of Table 1 with a smaller network: 30 epochs are 300 passes, 3,600 steps."""
    return _jobs(
        {
            "K = 1": Candidate(),
            "K = 2, clustered": Candidate(2),
            "K = 2, pathwise": Candidate(2, "pathwise"),
            "K = 3, shared, clustered": Candidate(3, shared=True),
            "K = 3, shared, pathwise": Candidate(3, "pathwise", shared=True),
            "K = 2, gumbel_hard": Candidate(2, "gumbel_hard"),
        },
        seeds,
        epochs=30,
        patience=8,
    )


def others(seeds: int) -> list[Job]:
    """Further estimators, numbers of components and the importance weighted bound."""
    return _jobs(
        {
            "K = 1": Candidate(),
            "K = 2, gumbel_soft": Candidate(2, "gumbel_soft"),
            "K = 2, score": Candidate(2, "score"),
            "K = 2, score, two draws": Candidate(2, "score", bound="elbo_two_draws"),
            "K = 2, clustered, two draws": Candidate(2, bound="elbo_two_draws"),
            "K = 3, shared, gumbel_soft": Candidate(3, "gumbel_soft", shared=True),
            "K = 3, shared, gumbel_hard": Candidate(3, "gumbel_hard", shared=True),
            "K = 3, shared, clustered, iwae": Candidate(3, shared=True, bound="iwae"),
            "K = 5, clustered": Candidate(5),
        },
        seeds,
        epochs=30,
        patience=8,
    )


def gradients(seeds: int) -> list[Job]:
    """Variances of the gradients of the logits, along a fit by the pathwise estimator."""
    return _jobs({"K = 2, pathwise": Candidate(2, "pathwise")}, seeds, epochs=12, patience=12)


def best(seeds: int) -> list[Job]:
    """The paper's sizes, until the validation bound has stalled."""
    return _jobs(
        {
            "K = 1": Candidate(sizes=PAPER),
            "K = 3, shared, clustered": Candidate(3, shared=True, sizes=PAPER),
        },
        seeds,
        epochs=100,
        patience=15,
    )


STUDIES = {
    "table1": Study("Table 1, a recurrent network of 200", table1, seeds=3),
    "others": Study("Other estimators and sizes, a recurrent network of 200", others),
    "gradients": Study("Gradients of the logits", gradients, budget=Budget(gradients=30)),
    "best": Study("The paper's sizes", best),
}
"""By name, in the order of a run."""

QUICK = Budget(passes=1, num_samples=25, made_up=True)
"""Of a quick run."""


def quick(job: Job) -> Job:
    """The same for two epochs, and of little size."""
    return Job(
        job.name,
        dataclasses.replace(job.candidate, sizes=TINY),
        dataclasses.replace(
            job.training, epochs=2, learning_rate=0.02, annealing_epochs=0, patience=None
        ),
    )
