"""The models that are compared, and a fit of one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

from experiments.dmm.chorales import NOTES, Batches, Chorales, Rolls, load, made_up
from experiments.dmm.gradients import logit_variances
from experiments.dmm.guide import Guide
from experiments.dmm.model import Model
from experiments.lab.processes import launch
from experiments.lab.trainer import Trainer
from experiments.lab.trainer_settings import Training
from pyro_mixtures.diagnostics import evaluate_data
from pyro_mixtures.infer import BaselinedTrace_ELBO, ImportanceWeighted_ELBO

BATCH = 20
"""Sequences of a step, as in the paper."""

BOUNDS: dict[str, Callable[[], Any]] = {
    "elbo": lambda: BaselinedTrace_ELBO(max_plate_nesting=1),
    "elbo_two_draws": lambda: BaselinedTrace_ELBO(
        2, vectorize_particles=True, max_plate_nesting=1
    ),
    "iwae": lambda: ImportanceWeighted_ELBO(3, vectorize_particles=True, max_plate_nesting=1),
}
"""Objectives by name.

With two draws the baseline of score terms is that of the same sequence; with one it is an average
over earlier batches, whose sequences have other lengths. A bound that draws each component at each
step (``SIWAE_ELBO``) would have K to the power of T of them.
"""


@dataclass(frozen=True)
class Sizes:
    """Of the layers.

    Attributes:
        latent: of a state.
        emission: hidden layers of the emitter.
        transition: hidden layers of the transition.
        rnn: the recurrent network.
    """

    latent: int
    emission: int
    transition: int
    rnn: int


PAPER = Sizes(latent=32, emission=100, transition=200, rnn=600)
"""Of Jankowiak and Karaletsos, section E.5."""
SMALLER = dataclasses.replace(PAPER, rnn=200)
"""For comparisons: a step takes a fraction of the time."""
TINY = Sizes(latent=3, emission=8, transition=8, rnn=8)
"""For a quick run."""


@dataclass(frozen=True)
class Candidate:
    """A model with its guide and how they are trained.

    Attributes:
        num_components: K of the mixture of a time step.
        estimator: in :data:`~experiments.dmm.guide.ESTIMATORS`; of no effect for K = 1.
        shared: one scale for the components of a step.
        bound: in :data:`BOUNDS`.
        sizes: of the layers.
    """

    num_components: int = 1
    estimator: str = "clustered"
    shared: bool = False
    bound: str = "elbo"
    sizes: Sizes = SMALLER


@dataclass(frozen=True)
class Budget:
    """How much of the data and of the work a fit has.

    Attributes:
        passes: over the data in an epoch of the trainer, which evaluates after each.
        num_samples: of each test sequence, for the bounds.
        gradients: draws for the variances of the logits' gradients after each epoch, or 0.
        made_up: short sequences in place of the chorales.
    """

    passes: int = 10
    num_samples: int = 200
    gradients: int = 0
    made_up: bool = False


def start(candidate: Candidate, seed: int) -> tuple[Model, Guide, Any]:
    """Model and guide at their starting point, and the objective."""
    pyro.set_rng_seed(seed)
    sizes = candidate.sizes
    model = Model(NOTES, sizes.latent, sizes.emission, sizes.transition)
    guide = Guide(
        NOTES,
        sizes.latent,
        sizes.rnn,
        candidate.num_components,
        shared=candidate.shared,
        estimator=candidate.estimator,
    )
    return model, guide, BOUNDS[candidate.bound]()


def data_of(budget: Budget) -> Chorales:
    """The data of a fit."""
    return made_up() if budget.made_up else load()


def fit(
    folder: Path,
    candidate: Candidate,
    training: Training,
    budget: Budget,
    device: str,
    resume: bool,
    progress: bool,
) -> dict[str, Any]:
    """Train a model and judge it by the test sequences.

    Args:
        folder: of the fit.
        candidate: what to fit.
        training: settings; a batch is :data:`BATCH` sequences, which the trainer takes for one
            datum.
        budget: of data and work.
        device: as for :func:`~experiments.lab.processes.launch`.
        resume: go on from a checkpoint.
        progress: show a bar.

    Returns:
        ``rows`` of the training, whose ELBOs are those of a sequence, ``elbo`` and ``iw_bound`` of
        each test sequence with ``lengths``, and the ``parameters`` of model and guide.
    """
    torch.set_num_threads(1)
    fabric = launch(device)
    data = data_of(budget)
    model, guide, elbo = start(candidate, training.seed)
    watched = data.validation.first(4)[:]
    trainer = Trainer(
        fabric,
        folder,
        elbo,
        model,
        guide,
        training,
        {"candidate": dataclasses.asdict(candidate), "budget": dataclasses.asdict(budget)},
        further=lambda: logit_variances(model, guide, *watched, num_draws=budget.gradients),
        resume=resume,
        progress=progress,
    )
    batches = Batches(data.train, BATCH, budget.passes, training.seed)
    # the validation sequences are sorted: one batch after another has little padding
    held_out = Batches(data.validation, BATCH, 1, 0)
    with pyro.validation_enabled(False):  # the data are checked; the trainer meets each NaN
        rows = trainer.fit(batches, held_out)
    model, guide = model.cpu().eval(), guide.cpu().eval()
    return {
        "rows": rows,
        **bounds(model, guide, data.test, budget.num_samples),
        "lengths": data.test.lengths,
        "parameters": {"model": model.state_dict(), "guide": guide.state_dict()},
    }


def bounds(model: Model, guide: Guide, data: Rolls, num_samples: int) -> dict[str, Tensor]:
    """``elbo`` and ``iw_bound`` of each sequence, in nats; both modules are in evaluation mode."""
    found = []
    with pyro.validation_enabled(False):
        for place in torch.arange(len(data)).split(BATCH):
            found.append(
                evaluate_data(
                    model,
                    guide,
                    *data[place],
                    plate="sequences",
                    num_samples=num_samples,
                    vectorize=True,
                    chunk_size=10,
                    progress=False,
                )
            )
    return {
        name: torch.cat([getattr(each, name) for each in found]).float()
        for name in ("elbo", "iw_bound")
    }


def per_step(values: Tensor, lengths: Tensor) -> dict[str, float]:
    """Averages over sequences of bounds ``(N,)`` in nats a time step.

    ``per_step`` is the sum over the sum of lengths, ``ratios`` the mean of the sequences' ratios,
    and ``per_sequence`` the mean over sequences, in nats a sequence.
    """
    return {
        "per_step": (values.sum() / lengths.sum()).item(),
        "ratios": (values / lengths).mean().item(),
        "per_sequence": values.mean().item(),
    }


def trained(candidate: Candidate, parameters: dict[str, Any]) -> tuple[Model, Guide]:
    """Model and guide with these parameters, in evaluation mode."""
    model, guide, _ = start(candidate, 0)
    model.load_state_dict(parameters["model"])
    guide.load_state_dict(parameters["guide"])
    return model.eval(), guide.eval()


def step(candidate: Candidate, rolls: Tensor, lengths: Tensor) -> Callable[[], None]:
    """A step of a fit, to be timed."""
    model, guide, elbo = start(candidate, 0)
    adam = torch.optim.Adam([*model.parameters(), *guide.parameters()], lr=1e-4)

    def update() -> None:
        adam.zero_grad()
        with pyro.validation_enabled(False):
            (elbo.differentiable_loss(model, guide, rolls, lengths) / len(rolls)).backward()
        adam.step()

    return update
