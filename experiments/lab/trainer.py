"""Amortized fits: SVI on mini-batches, in one process or several, by Lightning Fabric."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyro
import torch
from lightning.fabric import Fabric
from pyro import poutine
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset
from tqdm import tqdm

from experiments.lab.processes import (
    gathered,
    get_rng_state,
    mean_over_processes,
    set_rng_state,
)
from experiments.lab.run import atomic_write, check_same_settings, write_csv
from experiments.lab.trainer_settings import Training
from pyro_mixtures.diagnostics import nonfinite_gradient, nonfinite_site
from pyro_mixtures.infer import Annealing, annealing_weight


class Trainer:
    """Fits a guide, and a model with parameters, to data of which each step sees a batch.

    What is trained are the parameters of ``model`` and ``guide`` as modules. Both are called with
    the tensors of a batch and have a ``pyro.plate`` of its size; the loss of a step is the mean
    over the batch. Several processes take shares of the batches that a single one would have, and
    the mean of their gradients; each loss has to use all parameters. (Where ``batch_size`` does
    not divide the data, the last batches of an epoch differ a little.)

    ``folder`` gets ``metrics.csv`` and ``checkpoint.pt``, from which a fit that was stopped goes
    on to the numbers of an unbroken one.

    Args:
        fabric: of :func:`~experiments.lab.processes.launch`.
        folder: of this fit.
        elbo: an objective of Pyro's kind, with ``state_dict`` if it learns.
        model: a Pyro model.
        guide: a Pyro guide that is a module.
        training: settings.
        configuration: whatever else the numbers depend on; JSON's types.
        resume: go on from the checkpoint, if there is one.
        progress: show a bar.

    Raises:
        ValueError: for a batch that cannot be shared evenly.
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
        self.resume = resume
        self._objective: Any = None
        self._epoch = self._step = 0
        self._rows: list[dict[str, Any]] = []
        self._best: dict[str, Any] = {"elbo": -math.inf, "epoch": 0}

    def fit(self, data: TensorDataset, validation: TensorDataset) -> list[dict[str, Any]]:
        """Train on ``data``, from the checkpoint on if there is one; the rows of ``metrics.csv``.

        Raises:
            FloatingPointError: when a loss or a gradient is not finite, with the step, the site or
                parameter and the last checkpoint, which stays as it is.
            ValueError: for an unfinished fit in ``folder`` where ``resume`` is false, for one with
                other settings where it is true, for no data, and for parameters in Pyro's store
                that are not those of ``model`` and ``guide`` as modules.
        """
        for name, dataset in (("data", data), ("validation", validation)):
            if len(dataset) < self.fabric.world_size:
                raise ValueError(f"Expected {name} for each process, but got {len(dataset)}")
        self.settings |= {"data": len(data), "validation": len(validation)}
        with pyro.get_param_store().scope():  # an empty one, without those of an earlier fit
            try:
                return self._fit(data, validation)
            finally:
                self._objective = None  # of several processes it holds the group

    def _fit(self, data: TensorDataset, validation: TensorDataset) -> list[dict[str, Any]]:
        training, fabric = self.training, self.fabric
        checkpoint = self._stored()
        sampler: DistributedSampler = DistributedSampler(
            data, fabric.world_size, fabric.global_rank, seed=training.seed
        )
        batches = self._batches(data, sampler)
        share = range(fabric.global_rank, len(validation), fabric.world_size)
        held_out = self._batches(validation, share)
        steps = training.epochs * len(batches)
        self._set_up(steps)
        self._check_parameters(held_out)
        if checkpoint is None:
            self._keep(held_out, {})
        else:
            self._restore(checkpoint)
        with tqdm(
            total=steps, initial=self._step, desc=self.folder.name, disable=not self.progress
        ) as bar:
            while not self._finished():
                sampler.set_epoch(self._epoch)
                began, total, count = time.perf_counter(), torch.zeros(()), 0
                for batch in batches:
                    annealing = training.annealing_epochs * len(batches)
                    weight = annealing_weight(self._step + 1, annealing)
                    total = total + len(batch[0]) * self._update(batch, weight).cpu()
                    count += len(batch[0])
                    bar.update()
                self._epoch += 1
                if self._epoch % training.evaluate_every == 0 or self._epoch == training.epochs:
                    figures = {
                        "train_elbo": mean_over_processes(fabric, total, count),
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
        """The modules on their devices and the optimizer."""
        objective = self.elbo(self.model, self.guide)
        adam = torch.optim.Adam(objective.parameters(), lr=self.training.learning_rate)
        self._objective, self._optimizer = self.fabric.setup(objective, adam)
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(
            adam, lambda step: self.training.final_fraction ** (step / steps)
        )
        pyro.set_rng_seed(self.training.seed * self.fabric.world_size + self.fabric.global_rank)

    def _check_parameters(self, held_out: DataLoader) -> None:
        """Evaluate for the first time, which also lets the objective guess its plates."""
        with poutine.trace(param_only=True) as capture:
            self._validation_elbo([next(iter(held_out))])
        trained = {id(parameter) for parameter in self._objective.parameters()}
        sites: Any = capture.trace.nodes.items()
        foreign = [name for name, x in sites if id(x["value"].unconstrained()) not in trained]
        if foreign:
            raise ValueError(
                "Expected parameters of model and guide as modules (a method of a module is none),"
                f" but got {', '.join(foreign)} besides, which would not be trained"
            )

    def _restore(self, stored: dict[str, Any]) -> None:
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
        batch = self.fabric.to_device(batch)
        with self._naming_sites(batch), Annealing(weight):
            loss = self._objective(*batch) / len(batch[0])
            if not bool(loss.isfinite()):
                raise self._stopped(f"the loss is {loss.item()}")
        self._optimizer.zero_grad()
        self.fabric.backward(loss)
        try:
            self.fabric.clip_gradients(
                self._objective, self._optimizer, max_norm=self.training.clip_norm
            )
        except RuntimeError as error:  # not finite; the gradients are as they were
            raise self._stopped(nonfinite_gradient(self._objective.module) or str(error)) from None
        self._optimizer.step()
        self._scheduler.step()
        self._step += 1
        return -loss.detach()

    @contextmanager
    def _naming_sites(self, batch: list[Tensor]) -> Iterator[None]:
        """Name the site at which the same draws show a number that is not finite, if one does."""
        before = get_rng_state(self.fabric)
        try:
            yield
        except (ValueError, RuntimeError, FloatingPointError):  # of validation, samplers, or ours
            set_rng_state(self.fabric, before)
            with self.fabric.autocast():
                site = nonfinite_site(self.elbo, self.model, self.guide, *batch)
            if site is None:
                raise
            raise self._stopped(site) from None

    def _stopped(self, cause: str) -> FloatingPointError:
        kept = "there is no checkpoint yet"
        if self._rows:
            kept = f"the last good checkpoint, of step {self._rows[-1]['step']}, is {self.path}"
        return FloatingPointError(
            f"{self.folder.name} stopped at step {self._step}: {cause}; {kept}"
        )

    @torch.no_grad()
    def _validation_elbo(self, batches: Iterable[list[Tensor]]) -> float:
        """The ELBO of a datum, with the same random numbers each time."""
        before = get_rng_state(self.fabric)
        pyro.set_rng_seed(self.fabric.global_rank)
        modes = {module: module.training for module in self._objective.modules()}
        self._objective.eval()
        total, count = 0.0, 0
        for batch in batches:
            batch = self.fabric.to_device(batch)
            with self._naming_sites(batch), self.fabric.autocast():
                loss = self.elbo.loss(self.model, self.guide, *batch)
                if not math.isfinite(loss):
                    raise self._stopped(f"the validation loss is {loss}")
            total, count = total - loss, count + len(batch[0])
        for module, mode in modes.items():
            module.training = mode
        set_rng_state(self.fabric, before)
        return mean_over_processes(self.fabric, total, count)

    def _finished(self) -> bool:
        patience = self.training.patience
        best = max(self._best["epoch"], self.training.annealing_epochs)
        stalled = patience is not None and self._rows[-1]["epoch"] - best >= patience
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
            write_csv(self.folder / "metrics.csv", self._rows)  # a resumed fit writes it again
            atomic_write(self.path, lambda file: torch.save(checkpoint, file))
        return elbo

    def _stored(self) -> dict[str, Any] | None:
        """The checkpoint to go on from."""
        if not self.path.exists():
            return None
        stored = torch.load(self.path, map_location="cpu", weights_only=False)
        if self.resume:
            check_same_settings(self.path, stored["settings"], self.settings)
            return stored
        if not stored["finished"]:
            raise ValueError(f"{self.path} is of an unfinished fit: resume it, or delete it")
        return None
