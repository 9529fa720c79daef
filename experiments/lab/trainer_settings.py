"""Settings of a fit by the trainer."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Training:
    """Settings of a fit by Adam.

    Attributes:
        epochs: passes over the training data.
        batch_size: data of a step, over all processes.
        learning_rate: of the first step.
        final_fraction: the learning rate after the last step as a fraction of the first one's; in
            between it falls exponentially.
        annealing_epochs: the weight of the latent variables' terms (the KL divergence of guide and
            prior) grows linearly to 1 over so many epochs.
        clip_norm: largest norm of the gradient.
        weight_decay: of Adam: so many times each parameter is added to its gradient.
        patience: stop after so many epochs, those of the annealing not counted, without a better
            validation ELBO, and return to the best parameters; by default all epochs, and the
            last parameters.
        evaluate_every: epochs between rows of ``metrics.csv``, each with a validation ELBO and a
            checkpoint.
        seed: of the order of the data and of the samples.

    Raises:
        ValueError: for numbers that are too small.
    """

    epochs: int
    batch_size: int
    learning_rate: float = 1e-3
    final_fraction: float = 1.0
    annealing_epochs: int = 0
    clip_norm: float = math.inf
    weight_decay: float = 0.0
    patience: int | None = None
    evaluate_every: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "evaluate_every", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"Expected {name} >= 1, but got {value}")
        for name in ("learning_rate", "final_fraction", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"Expected {name} > 0, but got {getattr(self, name)}")
        if not self.weight_decay >= 0:
            raise ValueError(f"Expected weight_decay >= 0, but got {self.weight_decay}")
