"""What is compared: gradients by enumeration, autoencoders of few codes and of many."""

from __future__ import annotations

import dataclasses
from typing import Any

from experiments.discrete_codes import autoencoder, figures, gradients
from experiments.discrete_codes.autoencoder import QUANTIZERS, Candidate
from experiments.discrete_codes.choices import ESTIMATORS
from experiments.discrete_codes.gradients import Case
from experiments.lab.comparison import Column, Job, Study
from experiments.lab.trainer_settings import Training

STEPS = (0, 100, 2000)
"""Of training, before gradients are measured."""
CASES = {"categorical": (3, 8), "binary": (9, 2)}
FEW = {"categorical": (2, 16), "binary": (8, 2)}
MANY = {"categorical": (10, 8), "binary": (30, 2)}
"""d and K of each kind: 512 codes each, 256 each, and 30 bits each."""


def measured(seeds: int) -> list[Job]:
    """Gradients of both kinds after some steps."""
    return [
        Job(
            f"{kind}, {steps} steps",
            Case(kind, *sizes, steps),
            Training(1, 100, learning_rate=3e-3, seed=seed),
        )
        for kind, sizes in CASES.items()
        for steps in STEPS
        for seed in range(seeds)
    ]


def training(seed: int) -> Training:
    """Settings of an autoencoder."""
    return Training(3, 200, learning_rate=2e-3, final_fraction=0.1, seed=seed)


def few(seeds: int) -> list[Job]:
    """Estimators where all codes can be summed over."""
    return _autoencoders(seeds, FEW, tuple(ESTIMATORS))


def many(seeds: int) -> list[Job]:
    """Estimators where they cannot."""
    return _autoencoders(seeds, MANY, tuple(name for name in ESTIMATORS if name != "marginalized"))


def _autoencoders(
    seeds: int, sizes: dict[str, tuple[int, int]], names: tuple[str, ...]
) -> list[Job]:
    candidates = [
        Candidate(name, kind, *sizes[kind])
        for kind in sizes
        for name in (*names, *(QUANTIZERS if kind == "categorical" else ()))
    ]
    return [
        Job(f"{each.kind}, {each.estimator}", each, training(seed))
        for seed in range(seeds)
        for each in candidates
    ]


def quick(job: Job) -> Job:
    """The same with few steps or draws, on small images."""
    candidate: Any = job.candidate
    if isinstance(candidate, Case):
        small: Any = dataclasses.replace(candidate, steps=min(20, candidate.steps), draws=1000)
        return Job(job.name, small, job.training)
    small = dataclasses.replace(candidate, hidden=32, reading="digits")
    return Job(job.name, small, dataclasses.replace(job.training, epochs=2, batch_size=20))


COLUMNS = (
    Column("elbo", "test ELBO"),
    Column("iw_bound", "log evidence"),
    Column("rate", "rate"),
    Column("perplexity", "perplexity"),
)
STUDIES = {
    "gradients": Study(
        "Gradients of the logits",
        measured,
        gradients.measure,
        (
            Column("bias", "bias", ".3f"),
            Column("deviation", "deviation", ".3f"),
            Column("evaluations", "evaluations", "d"),
            Column("each", "deviation of one evaluation", ".3f"),
            Column("z", "largest z", ".1f"),
            Column("allowed", "allowed", ".1f"),
        ),
        quick,
        rows=gradients.rows,
        figures={"gradients": figures.plot_gradients},
    ),
    "few": Study(
        "256 codes",
        few,
        autoencoder.fit,
        COLUMNS,
        quick,
        step=autoencoder.step,
        figures={"few": figures.plot_elbos},
    ),
    "many": Study(
        "30 bits",
        many,
        autoencoder.fit,
        (COLUMNS[0], Column("iw_bound", "100-sample bound"), *COLUMNS[2:]),
        quick,
        step=autoencoder.step,
        figures={"many": figures.plot_elbos, "reconstructions": figures.plot_reconstructions},
    ),
}
"""By name, in the order of a run."""
