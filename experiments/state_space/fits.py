"""The guides that are compared, and a fit of one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from experiments.lab.processes import launch
from experiments.lab.trainer import Trainer
from experiments.lab.trainer_settings import Training
from experiments.state_space.bounds import lower_bounds
from experiments.state_space.guide import MixtureGuide
from experiments.state_space.model import datasets, model
from pyro_mixtures.infer import BaselinedTrace_ELBO

VALIDATION_DRAWS = 10
"""Of each validation sequence."""


@dataclass(frozen=True)
class Candidate:
    """A guide and the gradient that trains it."""

    num_components: int
    estimator: str

    @property
    def name(self) -> str:
        """For tables and files."""
        if self.num_components == 1:
            return "K = 1"  # all estimators are the same
        return f"K = {self.num_components}, {self.estimator}"


CANDIDATES = [
    Candidate(1, "pathwise"),
    Candidate(2, "clustered"),
    Candidate(3, "clustered"),
    Candidate(2, "pathwise"),
    Candidate(2, "score"),
    Candidate(2, "gumbel_soft"),
]


def fit(
    folder: Path,
    candidate: Candidate,
    training: Training,
    num_sequences: int,
    device: str,
    resume: bool,
    progress: bool,
) -> dict[str, Any]:
    """Train a guide and judge it by the test sequences.

    Args:
        folder: of the fit.
        candidate: what to fit.
        training: settings.
        num_sequences: of each set, at most.
        device: as for :func:`~experiments.lab.processes.launch`.
        resume: go on from a checkpoint.
        progress: show a bar.

    Returns:
        ``rows`` of the training, ``bounds`` on the test sequences and the guide's ``parameters``.
    """
    torch.set_num_threads(1)  # a second thread only waits for tensors as small as these
    fabric = launch(device)
    guide, elbo = start(candidate, training.seed)
    data = datasets()
    trainer = Trainer(
        fabric,
        folder,
        elbo,
        model,
        guide,
        training,
        {"guide": candidate.name, "sequences": num_sequences},
        resume=resume,
        progress=progress,
    )
    validation = data.validation[:num_sequences].repeat(VALIDATION_DRAWS, 1, 1)
    with pyro.validation_enabled(False):  # it takes half of the time; the trainer meets each NaN
        rows = trainer.fit(TensorDataset(data.train[:num_sequences]), TensorDataset(validation))
    pyro.set_rng_seed(training.seed)
    guide = copy.deepcopy(guide).cpu()
    bounds = lower_bounds(guide, data.test[:num_sequences])
    return {"rows": rows, "bounds": bounds, "parameters": guide.state_dict()}


def start(candidate: Candidate, seed: int) -> tuple[MixtureGuide, BaselinedTrace_ELBO]:
    """A guide at its starting point and its objective."""
    pyro.set_rng_seed(seed)
    guide = MixtureGuide(candidate.num_components, candidate.estimator)
    return guide, BaselinedTrace_ELBO(max_plate_nesting=1)


def trained(candidate: Candidate, parameters: dict[str, Tensor]) -> MixtureGuide:
    """The guide with these parameters."""
    guide = MixtureGuide(candidate.num_components, candidate.estimator)
    guide.load_state_dict(parameters)
    return guide


def step(candidate: Candidate, training: Training) -> Callable[[], None]:
    """A step of a fit, to be timed."""
    guide, elbo = start(candidate, training.seed)
    batch = datasets().train[: training.batch_size]
    adam = torch.optim.Adam(guide.parameters(), lr=training.learning_rate)

    def update() -> None:
        adam.zero_grad()
        with pyro.validation_enabled(False):
            (elbo.differentiable_loss(model, guide, batch) / len(batch)).backward()
        adam.step()

    return update
