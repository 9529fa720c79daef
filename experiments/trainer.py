"""Amortized fits: SVI on mini-batches, in one process or several, by Lightning Fabric."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset
from tqdm import tqdm

from experiments.annealing import Annealing
from experiments.nonfinite import nonfinite_gradient, nonfinite_site
from experiments.processes import (
    gathered,
    get_rng_state,
    mean_over_processes,
    set_rng_state,
)
from experiments.run import atomic_write, check_same_settings, write_csv


@dataclass(frozen=True)
class Training:
    """Settings of a fit by Adam.

    Attributes:
        epochs: passes over the training data.
        batch_size: data of a step, over all processes.
        learning_rate: of the first step.
        final_fraction: the learning rate of the last step as a fraction of the first one's; in
            between it falls exponentially.
        annealing_epochs: the weight of the latent variables' terms (the KL divergence of guide and
            prior) grows linearly to 1 over so many epochs.
        clip_norm: largest norm of the gradient.
        patience: stop after so many epochs without a better validation ELBO, and return to the
            best parameters; by default all epochs, and the last parameters.
        evaluate_every: epochs between rows of ``metrics.csv``, each with a validation ELBO and a
            checkpoint.
        seed: of the order of the data and of the samples.
    """

    epochs: int
    batch_size: int
    learning_rate: float = 1e-3
    final_fraction: float = 1.0
    annealing_epochs: int = 0
    clip_norm: float = math.inf
    patience: int | None = None
    evaluate_every: int = 1
    seed: int = 0


class Trainer:
    """Fits a guide, and a model with parameters, to data of which each step sees a batch.

    What is trained are the parameters of ``model`` and ``guide`` as modules. Both are called with
    the tensors of a batch and have a ``pyro.plate`` of its size; the loss of a step is the mean
    over the batch. Several processes take shares of the batches that a single one would have, and
    the mean of their gradients.

    ``folder`` gets ``metrics.csv`` and ``checkpoint.pt``, from which a fit that was stopped goes
    on to the numbers of an unbroken one.

    Args:
        fabric: of :func:`~experiments.processes.launch`.
        folder: of this fit.
        elbo: an objective of Pyro's kind, with ``state_dict`` if it learns.
        model: a Pyro model.
        guide: a Pyro guide that is a module.
        training: settings.
        configuration: whatever else the numbers depend on; JSON's types.
        resume: go on from the checkpoint, if there is one.
        progress: show a bar.

    Raises:
        ValueError: for a batch that cannot be shared evenly, for an unfinished fit in ``folder``
            where ``resume`` is false, and for one with other settings where it is true.
    """

    def __init__(
        self,
        fabric: Fabric,
        folder: Path,
        elbo: Any,
        model: Callable[..., Any],
        guide: torch.nn.Module,
        training: Training,
        configuration: Mapping[str, Any],
        *,
        resume: bool = False,
        progress: bool = True,
    ) -> None:
        if training.batch_size % fabric.world_size:
            raise ValueError(
                f"Expected a batch_size that {fabric.world_size} processes can share evenly, but"
                f" got {training.batch_size}"
            )
        self.fabric, self.folder, self.training = fabric, folder, training
        self.elbo, self.model, self.guide = elbo, model, guide
        self.settings = {
            **configuration,
            **dataclasses.asdict(training),
            "precision": str(fabric.strategy.precision.precision),
            "processes": fabric.world_size,
        }
        self.path = folder / "checkpoint.pt"
        self.progress = progress and fabric.is_global_zero
        self._checkpoint = self._stored(resume)
        self._epoch = self._step = 0
        self._rows: list[dict[str, Any]] = []
        self._best: dict[str, Any] = {"elbo": -math.inf, "epoch": 0}

    def fit(self, data: TensorDataset, validation: TensorDataset) -> list[dict[str, Any]]:
        """Train, from the checkpoint on if there is one.

        Args:
            data: to train on.
            validation: to evaluate on.

        Returns:
            The rows of ``metrics.csv``.

        Raises:
            FloatingPointError: when a loss or a gradient is not finite, with the step, the site or
                parameter and the last checkpoint, which stays as it is.
        """
        training, fabric = self.training, self.fabric
        sampler: DistributedSampler = DistributedSampler(
            data, fabric.world_size, fabric.global_rank, seed=training.seed
        )
        batches = self._batches(data, sampler)
        share = range(fabric.global_rank, len(validation), fabric.world_size)
        held_out = self._batches(validation, share)
        steps = training.epochs * len(batches)
        self._set_up(steps)
        if self._checkpoint is None:
            self._keep(held_out, {})
        with tqdm(
            total=steps, initial=self._step, desc=self.folder.name, disable=not self.progress
        ) as bar:
            while not self._finished():
                sampler.set_epoch(self._epoch)
                began, elbos = time.perf_counter(), []
                for batch in batches:
                    weight = (self._step + 1) / max(1, training.annealing_epochs * len(batches))
                    elbos.append(self._update(batch, min(1.0, weight)))
                    bar.update()
                self._epoch += 1
                if self._epoch % training.evaluate_every == 0 or self._epoch == training.epochs:
                    figures = {
                        "train_elbo": mean_over_processes(fabric, sum(elbos), len(elbos)),
                        "learning_rate": self._scheduler.get_last_lr()[0],
                        "data_per_second": len(data) / (time.perf_counter() - began),
                    }
                    validation_elbo = self._keep(held_out, figures)
                    bar.set_postfix(train=figures["train_elbo"], validation=validation_elbo)
        fabric.barrier()  # no process leaves while another one may still wait for it
        if training.patience is not None:
            self._objective.load_state_dict(self._best["parameters"])
        return self._rows

    def _batches(self, data: TensorDataset, order: Any) -> DataLoader:
        """Batches of this process's share."""
        size = self.training.batch_size // self.fabric.world_size
        return DataLoader(data, batch_size=None, sampler=BatchSampler(order, size, False))

    def _set_up(self, steps: int) -> None:
        """The modules on their devices, the optimizer, and the state of the checkpoint."""
        objective = self.elbo(self.model, self.guide)
        adam = torch.optim.Adam(objective.parameters(), lr=self.training.learning_rate)
        self._objective, self._optimizer = self.fabric.setup(objective, adam)
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(
            adam, lambda step: self.training.final_fraction ** (step / steps)
        )
        pyro.set_rng_seed(self.training.seed * self.fabric.world_size + self.fabric.global_rank)
        if (stored := self._checkpoint) is None:
            return
        self._epoch, self._step = stored["epoch"], stored["step"]
        self._rows, self._best = stored["rows"], stored["best"]
        self._objective.load_state_dict(stored["parameters"])
        self._optimizer.load_state_dict(stored["optimizer"])
        self._scheduler.load_state_dict(stored["scheduler"])
        own = stored["processes"][self.fabric.global_rank]
        if "elbo" in own:
            self.elbo.load_state_dict(own["elbo"])
        set_rng_state(self.fabric, own["rng"])

    def _update(self, batch: list[Tensor], weight: float) -> Tensor:
        """One step; the ELBO of a datum, its latent terms weighted, as it was before the step."""
        batch, rng = self.fabric.to_device(batch), get_rng_state(self.fabric)
        try:
            with Annealing(weight):
                loss = self._objective(*batch) / len(batch[0])
        except (ValueError, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
            self._raise_if_nonfinite(batch, rng)  # parameters that Pyro's validation refuses
            raise
        if not bool(loss.isfinite()):
            self._raise_if_nonfinite(batch, rng)
            raise self._stopped(f"the loss is {loss.item()}")
        self._optimizer.zero_grad()
        self.fabric.backward(loss)
        norm: Any = self.fabric.clip_gradients(
            self._objective,
            self._optimizer,
            max_norm=self.training.clip_norm,
            error_if_nonfinite=False,
        )
        if not bool(norm.isfinite()):
            cause = nonfinite_gradient(self._objective.module)
            raise self._stopped(cause or f"the gradient's norm is {norm}")
        self._optimizer.step()
        self._scheduler.step()
        self._step += 1
        return -loss.detach()

    def _raise_if_nonfinite(self, batch: list[Tensor], rng: dict[str, Any]) -> None:
        """Raise the error that names the site, if the same draws show one."""
        set_rng_state(self.fabric, rng)
        if site := nonfinite_site(self.elbo, self.model, self.guide, *batch):
            raise self._stopped(site)

    def _stopped(self, cause: str) -> FloatingPointError:
        kept = "there is no checkpoint yet"
        if self._rows:
            kept = f"the last good checkpoint, of step {self._rows[-1]['step']}, is {self.path}"
        return FloatingPointError(
            f"{self.folder.name} stopped at step {self._step}: {cause}; {kept}"
        )

    @torch.no_grad()
    def _validation_elbo(self, batches: DataLoader) -> float:
        """The ELBO of a datum, with the same random numbers each time."""
        before = get_rng_state(self.fabric)
        pyro.set_rng_seed(self.fabric.global_rank)
        self._objective.eval()
        total = 0.0
        for batch in batches:
            batch, rng = self.fabric.to_device(batch), get_rng_state(self.fabric)
            loss = self.elbo.loss(self.model, self.guide, *batch)
            if not math.isfinite(loss):
                self._raise_if_nonfinite(batch, rng)
                raise self._stopped(f"the validation loss is {loss}")
            total -= loss
        self._objective.train()
        set_rng_state(self.fabric, before)
        return mean_over_processes(self.fabric, total, sum(len(batch[0]) for batch in batches))

    def _finished(self) -> bool:
        patience = self.training.patience
        stalled = patience is not None and self._epoch - self._best["epoch"] >= patience
        return stalled or self._epoch >= self.training.epochs

    def _keep(self, held_out: DataLoader, figures: dict[str, Any]) -> float:
        """Evaluate, and write a row and the checkpoint."""
        elbo = self._validation_elbo(held_out)
        self._rows.append(
            {"epoch": self._epoch, "step": self._step, **figures, "validation_elbo": elbo}
        )
        parameters = copy.deepcopy(self._objective.state_dict())
        if elbo > self._best["elbo"]:
            self._best = {"elbo": elbo, "epoch": self._epoch, "parameters": parameters}
        own = {"rng": get_rng_state(self.fabric)}
        if hasattr(self.elbo, "state_dict"):
            own["elbo"] = self.elbo.state_dict()
        checkpoint = {
            "settings": self.settings,
            "finished": self._finished(),
            "epoch": self._epoch,
            "step": self._step,
            "rows": self._rows,
            "best": self._best,
            "parameters": parameters,
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "processes": gathered(self.fabric, own),
        }
        if self.fabric.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_write(self.path, lambda file: torch.save(checkpoint, file))
            write_csv(self.folder / "metrics.csv", self._rows)
        return elbo

    def _stored(self, resume: bool) -> dict[str, Any] | None:
        """The checkpoint to go on from."""
        if not self.path.exists():
            return None
        stored = torch.load(self.path, map_location="cpu", weights_only=False)
        if resume:
            check_same_settings(self.path, stored["settings"], self.settings)
            return stored
        if not stored["finished"]:
            raise ValueError(f"{self.path} is of an unfinished fit: resume it, or delete it")
        return None
