"""A log density at many points: counted, in chunks, on one machine or many."""

from __future__ import annotations

import functools
import pickle
import warnings
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor
from typing import Any

import torch
from torch import Tensor

from pyro_mixtures.infer.search.point_derivatives import (
    LogDensity,
    Outcome,
    gradient_outcome,
    hessian_outcome,
    joined,
    value_outcome,
)

CHUNK_SIZE = 1024
"""Points evaluated at once."""

EXECUTOR_CHUNK_SIZE = 16
"""Points in one task of an executor, whose log densities are dear."""

Function = Callable[[LogDensity, Tensor], Outcome]


class Evaluations:
    r"""A log density with its gradients and Hessians at many points, which are counted.

    A point has no mass where the log density is ``-inf``, and has failed where it is NaN or
    ``+inf``, has a gradient that is not finite, or raises: then its value is ``-inf`` and its
    gradient zero. Where a batch raises, its halves are tried, until the points are found that do.

    Args:
        log_density: from points ``(S, D)`` to log densities ``(S,)``, differentiable, with each
            row on its own, such as a ``ModelLogDensity``.
        executor: of ``concurrent.futures``, which evaluates the chunks of a batch; by default
            they are evaluated here. One of processes pickles the log density once, as it
            is then. The numbers do not depend on how many workers there are. After its shutdown
            points are evaluated here, which is told.
        chunk_size: points evaluated at once; by default 1024, or 16 with an executor, and no more
            than the ``batch_size`` of a ``ModelLogDensity``.

    Attributes:
        count: points evaluated with a value or a gradient; a Hessian counts as D of them.
        without_mass: how many of those had a log density of ``-inf``.
        failed: how many of those have failed.
        first_failure: what the first of these was, or None.

    Raises:
        ValueError: for a ``log_density`` that does not return one value for each point.
        RuntimeError: for an executor that fails, with the chunk at which it did.
    """

    def __init__(
        self,
        log_density: LogDensity,
        *,
        executor: Executor | None = None,
        chunk_size: int | None = None,
    ) -> None:
        if chunk_size is None:
            chunk_size = CHUNK_SIZE if executor is None else EXECUTOR_CHUNK_SIZE
            chunk_size = min(chunk_size, getattr(log_density, "batch_size", chunk_size))
        if chunk_size < 1:
            raise ValueError(f"Expected chunk_size to be at least 1, but got {chunk_size}")
        self.log_density, self.executor, self.chunk_size = log_density, executor, chunk_size
        self.count = self.without_mass = self.failed = 0
        self.first_failure: str | None = None
        self._shipped = Shipped(log_density)

    def values(self, z: Tensor) -> Tensor:
        """Log densities ``(S,)`` of points ``(S, D)``, in float64."""
        (values,) = self._counted(value_outcome, z, len(z))
        return values

    def values_and_gradients(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log densities ``(S,)`` and gradients ``(S, D)`` of points ``(S, D)``, in float64."""
        values, gradients = self._counted(gradient_outcome, z, len(z))
        return values, gradients

    def hessians(self, z: Tensor) -> Tensor:
        """Second derivatives ``(S, D, D)`` at points ``(S, D)``, NaN where one is not finite.

        By automatic differentiation, or where the gradient has no derivative by its differences.
        """
        (hessians,) = self._counted(hessian_outcome, z, z.numel())
        return hessians

    def _counted(self, function: Function, z: Tensor, count: int) -> tuple[Tensor, ...]:
        chunks = z.detach().to(torch.float64).split(self.chunk_size)
        if self.executor is None:
            outcome = joined([function(self.log_density, chunk) for chunk in chunks])
        else:
            outcome = joined(self._spread(self.executor, function, chunks))
        self.count += count
        self.without_mass += outcome.without_mass
        self.failed += outcome.failed
        if self.first_failure is None:
            self.first_failure = outcome.first_failure
        return tuple(tensor.to(z.device) for tensor in outcome.tensors)

    def _spread(
        self, executor: Executor, function: Function, chunks: tuple[Tensor, ...]
    ) -> list[Outcome]:
        """Outcomes of chunks, in their order."""
        try:
            futures = [
                executor.submit(_task, function, self._shipped, chunk.cpu().numpy())
                for chunk in chunks
            ]
        except BrokenExecutor:
            raise
        except RuntimeError as error:  # as after the end of a with block
            warnings.warn(
                f"The executor takes no more tasks ({error}): log densities are evaluated in this"
                " process from now on. Ask for what needs them while the executor is open",
                stacklevel=5,
            )
            self.executor = None
            return [function(self.log_density, chunk) for chunk in chunks]
        outcomes = []
        try:
            for future in futures:
                arrays, *counts = future.result()
                outcomes.append(Outcome(tuple(map(torch.tensor, arrays)), *counts))
        except Exception as error:
            index = len(outcomes)
            first = index * self.chunk_size
            raise RuntimeError(
                f"Expected the executor to evaluate {len(chunks)} chunks, but got"
                f" {type(error).__name__} for chunk {index}, points {first} to"
                f" {first + len(chunks[index]) - 1}: {error}"
            ) from error
        finally:
            for future in futures:
                future.cancel()
        return outcomes


class Shipped:
    """A log density on its way to workers: pickled once, and unpickled once by each of them."""

    def __init__(self, log_density: LogDensity) -> None:
        self.log_density = log_density
        self._bytes: bytes | None = None

    def __reduce__(self) -> Any:
        if self._bytes is None:
            try:
                self._bytes = pickle.dumps(self.log_density)
            except Exception:  # an executor may have a pickle of its own that can do more
                return Shipped, (self.log_density,)
        return _unpacked, (self._bytes,)


@functools.lru_cache(maxsize=4)
def _unpacked(pickled: bytes) -> Shipped:
    return Shipped(pickle.loads(pickled))


def _task(function: Function, shipped: Shipped, z: Any) -> tuple[Any, ...]:
    """What a worker does: arrays, which need no shared memory, stand for tensors."""
    tensors, *counts = function(shipped.log_density, torch.tensor(z))
    return tuple(tensor.numpy() for tensor in tensors), *counts
