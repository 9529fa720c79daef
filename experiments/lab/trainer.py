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

from experiments.lab.loop import Fit, Loop, check_finite
from experiments.lab.processes import gathered, mean_over_processes
from experiments.lab.random_state import get_rng_state, set_rng_state
from experiments.lab.run import check_same_settings, load_checkpoint
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
        further: figures of the model and guide as they are, which each row gets besides.
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
        further: Callable[[], Mapping[str, float]] = dict,
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
        self.further = further
        self.progress = progress and fabric.is_global_zero
        self.resume = resume
        self._objective: Any = None
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
        self._sampler: DistributedSampler = DistributedSampler(
            data, fabric.world_size, fabric.global_rank, seed=training.seed
        )
        self._data, self._batches = data, self._shared(data, self._sampler)
        share = range(fabric.global_rank, len(validation), fabric.world_size)
        self._held_out = self._shared(validation, share)
        self._stream = self._epochs()
        epoch = len(self._batches)
        self._loop = self._set_up(training.epochs * epoch)
        with self._loop.naming_the_step():
            self._check_parameters()
        if checkpoint is not None:
            self._loop.restore(checkpoint)
        rows = self._loop.run(
            training.epochs * epoch, training.evaluate_every * epoch, self._stalled
        )
        fabric.barrier()  # no process leaves while another one may still wait for it
        if training.patience is not None:
            self._objective.load_state_dict(self._best["parameters"])
        return rows

    def _shared(self, data: TensorDataset, order: Any) -> DataLoader:
        """Batches of this process's share."""
        size = self.training.batch_size // self.fabric.world_size
        return DataLoader(data, batch_size=None, sampler=BatchSampler(order, size, False))

    def _epochs(self) -> Iterator[list[Tensor]]:
        """Batches from where the loop is on, with the ELBO and the time of each epoch."""
        while True:
            self._sampler.set_epoch(self._loop.step // len(self._batches))
            self._began, self._total, self._count = time.perf_counter(), torch.zeros(()), 0
            yield from self._batches

    def _set_up(self, steps: int) -> Loop:
        """The modules on their devices, the optimizer and the loop."""
        objective = self.elbo(self.model, self.guide)
        adam = torch.optim.Adam(
            objective.parameters(),
            lr=self.training.learning_rate,
            weight_decay=self.training.weight_decay,
        )
        self._objective, optimizer = self.fabric.setup(objective, adam)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            adam, lambda step: self.training.final_fraction ** (step / steps)
        )
        pyro.set_rng_seed(self.training.seed * self.fabric.world_size + self.fabric.global_rank)
        writes = self.fabric.is_global_zero
        return Loop(
            self.folder.name,
            Fit(self._loss, self._row, self._state, self._restore, self._backward),
            optimizer,
            scheduler,
            checkpoint=self.path if writes else None,
            table=self.folder / "metrics.csv" if writes else None,
            progress=self.progress,
        )

    def _check_parameters(self) -> None:
        """Evaluate for the first time, which also lets the objective guess its plates."""
        with poutine.trace(param_only=True) as capture:
            with self._evaluating():
                self._validation_elbo([next(iter(self._held_out))])
        trained = {id(parameter) for parameter in self._objective.parameters()}
        sites: Any = capture.trace.nodes.items()
        foreign = [name for name, x in sites if id(x["value"].unconstrained()) not in trained]
        if foreign:
            raise ValueError(
                "Expected parameters of model and guide as modules (a method of a module is none),"
                f" but got {', '.join(foreign)} besides, which would not be trained"
            )

    def _loss(self) -> Tensor:
        """Minus the ELBO of a datum of the next batch, its latent terms weighted."""
        batch = self.fabric.to_device(next(self._stream))
        annealing = self.training.annealing_epochs * len(self._batches)
        weight = annealing_weight(self._loop.step + 1, annealing)
        with self._naming_sites(batch), Annealing(weight):
            loss = check_finite("loss", self._objective(*batch) / len(batch[0]))
        self._total = self._total - len(batch[0]) * loss.detach().cpu()
        self._count += len(batch[0])
        return loss

    def _backward(self, loss: Tensor) -> None:
        """The gradient, averaged over the processes and clipped."""
        self.fabric.backward(loss)
        try:
            self.fabric.clip_gradients(
                self._objective, self._loop.optimizer, max_norm=self.training.clip_norm
            )
        except RuntimeError as error:  # not finite; the gradients are as they were
            cause = nonfinite_gradient(self._objective.module) or str(error)
            raise FloatingPointError(cause) from None

    @contextmanager
    def _naming_sites(self, batch: list[Tensor]) -> Iterator[None]:
        """Name the site at which the same draws show a number that is not finite, if one does."""
        before = get_rng_state()
        try:
            yield
        except (ValueError, RuntimeError, FloatingPointError):  # of validation, samplers, or ours
            set_rng_state(before)
            with self.fabric.autocast():
                site = nonfinite_site(self.elbo, self.model, self.guide, *batch)
            if site is None:
                raise
            raise FloatingPointError(site) from None

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """In evaluation mode, with the same random numbers each time."""
        before = get_rng_state()
        pyro.set_rng_seed(self.fabric.global_rank)
        modes = {module: module.training for module in self._objective.modules()}
        self._objective.eval()
        with torch.no_grad():
            yield
        for module, mode in modes.items():
            module.training = mode
        set_rng_state(before)

    def _validation_elbo(self, batches: Iterable[list[Tensor]]) -> float:
        """The ELBO of a datum, by the objective."""
        total, count = 0.0, 0
        for batch in batches:
            batch = self.fabric.to_device(batch)
            with self._naming_sites(batch), self.fabric.autocast():
                loss = self.elbo.loss(self.model, self.guide, *batch)
                check_finite("validation loss", torch.tensor(loss))
            total, count = total - loss, count + len(batch[0])
        return mean_over_processes(self.fabric, total, count)

    def _row(self, step: int) -> dict[str, Any]:
        """A row of ``metrics.csv``: the ELBO of the last epoch and that of the validation data."""
        figures = {}
        if step > 0:
            figures = {
                "train_elbo": mean_over_processes(self.fabric, self._total, self._count),
                "learning_rate": self._loop.scheduler.get_last_lr()[0],
                "data_per_second": len(self._data) / (time.perf_counter() - self._began),
            }
        epoch = step // len(self._batches)
        with self._evaluating():
            elbo = self._validation_elbo(self._held_out)
            further = dict(self.further())
        if elbo > self._best["elbo"]:
            parameters = copy.deepcopy(self._objective.state_dict())
            self._best = {"elbo": elbo, "epoch": epoch, "parameters": parameters}
        return {"epoch": epoch, "step": step, **figures, "validation_elbo": elbo, **further}

    def _stalled(self) -> bool:
        patience = self.training.patience
        best = max(self._best["epoch"], self.training.annealing_epochs)
        return patience is not None and self._loop.rows[-1]["epoch"] - best >= patience

    def _state(self) -> dict[str, Any]:
        """What the checkpoint holds besides the loop's."""
        own = {"rng": get_rng_state()}
        if hasattr(self.elbo, "state_dict"):
            own["elbo"] = self.elbo.state_dict()
        ended = self._loop.rows[-1]["epoch"] == self.training.epochs
        return {
            "settings": self.settings,
            "finished": ended or self._stalled(),
            "best": self._best,
            "parameters": self._objective.state_dict(),
            "processes": gathered(self.fabric, own),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        """Go back to what the checkpoint holds."""
        self._best = state["best"]
        self._objective.load_state_dict(state["parameters"])
        own = state["processes"][self.fabric.global_rank]
        if "elbo" in own:
            self.elbo.load_state_dict(own["elbo"])
        set_rng_state(own["rng"])

    def _stored(self) -> dict[str, Any] | None:
        """The checkpoint to go on from."""
        if not self.path.exists():
            return None
        stored: dict[str, Any] = load_checkpoint(self.path)
        if self.resume:
            check_same_settings(self.path, stored["settings"], self.settings)
            return stored
        if not stored["finished"]:
            raise ValueError(f"{self.path} is of an unfinished fit: resume it, or delete it")
        return None
