"""A log density at many points: counted, with bad points isolated, on one machine or many."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, NamedTuple

import torch
from torch import Tensor

LogDensity = Callable[[Tensor], Tensor]

CHUNK_SIZE = 1024
"""Points evaluated at once."""

EXECUTOR_CHUNK_SIZE = 16
"""Points in one task of an executor, whose densities are dear."""

STEPS = {torch.float32: 3e-3, torch.float64: 1e-5}
"""Of central differences, relative to the size of a coordinate: cube roots of the precision."""


class Evaluations:
    r"""A log density with its gradients and Hessians, of which a bad point is no harm to others.

    A point has no mass where the log density is ``-inf``, and has failed where it is NaN or
    ``+inf``, has a gradient that is not finite, or raises: its value is ``-inf`` and its gradient
    zero. Where a batch raises, halves of it are tried until the points are found that do.

    Args:
        log_density: from points ``(S, D)`` to log densities ``(S,)``, differentiable, with each
            row on its own, as ``ModelLogDensity``.
        executor: of ``concurrent.futures``, which evaluates the chunks of a batch; a pool of
            processes pickles the log density. The numbers are those of one worker.
        chunk_size: points evaluated at once; by default 1024, or 16 with an executor.

    Attributes:
        count: points evaluated with a value or a gradient; a Hessian counts as D of them.
        without_mass: how many of those points had a log density of ``-inf``.
        failed: how many of them were NaN or ``+inf`` or raised.
        first_failure: what the first of those was, or None.
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
        if chunk_size < 1:
            raise ValueError(f"Expected chunk_size to be at least 1, but got {chunk_size}")
        self.log_density, self.executor, self.chunk_size = log_density, executor, chunk_size
        self.count = self.without_mass = self.failed = 0
        self.first_failure: str | None = None
        self._shipped = _Shipped(log_density)

    def values_and_gradients(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log densities ``(S,)`` and gradients ``(S, D)`` of points ``(S, D)``, in float64."""
        values, gradients = self._evaluated(_values_and_gradients, z)
        self.count += len(z)
        return values, gradients

    def values(self, z: Tensor) -> Tensor:
        """Log densities ``(S,)`` of points ``(S, D)``, in float64."""
        (values,) = self._evaluated(_values, z)
        self.count += len(z)
        return values

    def hessians(self, z: Tensor) -> Tensor:
        """Second derivatives ``(S, D, D)`` at points ``(S, D)``, NaN where they are not finite.

        By automatic differentiation, or where the gradient has none by its central differences.
        """
        (hessians,) = self._evaluated(_hessians, z)
        self.count += len(z) * z.shape[-1]
        return hessians

    def _evaluated(self, function: Callable[..., _Result], z: Tensor) -> tuple[Tensor, ...]:
        parts = z.detach().to(torch.float64).split(self.chunk_size)
        if self.executor is None:
            results = [function(self.log_density, part) for part in parts]
        else:
            results = self._spread(self.executor, function, parts)
        for result in results:
            self.without_mass += result.without_mass
            self.failed += result.failed
            self.first_failure = self.first_failure or result.first_failure
        if len(results) == 1:
            return tuple(tensor.to(z.device) for tensor in results[0].tensors)
        columns = zip(*(result.tensors for result in results), strict=True)
        return tuple(torch.cat(column).to(z.device) for column in columns)

    def _spread(
        self, executor: Executor, function: Callable[..., _Result], parts: tuple[Tensor, ...]
    ) -> list[_Result]:
        """Results of the parts, in their order."""
        futures = [
            executor.submit(_task, function, self._shipped, part.cpu().numpy()) for part in parts
        ]
        results = []
        for index, future in enumerate(futures):
            try:
                tensors, *rest = future.result()
            except BaseException as error:
                for other in futures:
                    other.cancel()
                first = index * self.chunk_size
                raise RuntimeError(
                    f"The executor failed at chunk {index} of {len(parts)}, points {first} to"
                    f" {first + len(parts[index]) - 1}: {type(error).__name__}: {error}"
                ) from error
            results.append(_Result(tuple(map(torch.from_numpy, tensors)), *rest))
        return results


class _Result(NamedTuple):
    """Of a chunk."""

    tensors: tuple[Tensor, ...]
    without_mass: int = 0
    failed: int = 0
    first_failure: str | None = None


class _Shipped:
    """A log density that is pickled once, and unpickled once by each worker."""

    def __init__(self, log_density: LogDensity) -> None:
        self.log_density = log_density
        self._bytes: bytes | None = None

    def __reduce__(self) -> Any:
        if self._bytes is None:
            self._bytes = pickle.dumps(self.log_density)
        return _received, (self._bytes,)


@functools.lru_cache(maxsize=4)
def _received(pickled: bytes) -> _Shipped:
    return _Shipped(pickle.loads(pickled))


def _task(function: Callable[..., _Result], shipped: _Shipped, z: Any) -> tuple[Any, ...]:
    """What a worker does: arrays, which need no shared memory, for tensors."""
    tensors, *rest = function(shipped.log_density, torch.from_numpy(z))
    return tuple(tensor.numpy() for tensor in tensors), *rest


def _values_and_gradients(log_density: LogDensity, z: Tensor) -> _Result:
    try:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            values = _checked(log_density(z), z)
            if values.requires_grad:
                (gradients,) = torch.autograd.grad(values.sum(), z)
            else:
                gradients = torch.zeros_like(z)
    except _WrongShape:
        raise
    except Exception as error:
        return _halves(_values_and_gradients, log_density, z, error)
    values, gradients = values.detach().to(torch.float64), gradients.to(torch.float64)
    good = values.isfinite() & gradients.isfinite().all(-1)
    if bool(good.all()):
        return _Result((values, gradients))
    result = _judged(values, z, gradients)
    masked = torch.where(good, values, -torch.inf), torch.where(good[:, None], gradients, 0.0)
    return result._replace(tensors=masked)


def _values(log_density: LogDensity, z: Tensor) -> _Result:
    try:
        with torch.no_grad():
            values = _checked(log_density(z), z).to(torch.float64)
    except _WrongShape:
        raise
    except Exception as error:
        return _halves(_values, log_density, z, error)
    good = values.isfinite()
    if bool(good.all()):
        return _Result((values,))
    result = _judged(values, z)
    return result._replace(tensors=(torch.where(good, values, -torch.inf),))


class _WrongShape(ValueError):
    """A log density that is no log density of points."""


def _checked(values: Tensor, z: Tensor) -> Tensor:
    if values.shape != z.shape[:1]:
        raise _WrongShape(
            f"Expected log_density to return one value for each of {len(z)} points, but got the"
            f" shape {tuple(values.shape)}"
        )
    return values


def _judged(values: Tensor, z: Tensor, gradients: Tensor | None = None) -> _Result:
    """How many points have no mass, and how many have failed."""
    empty = values == -torch.inf
    failed = ~values.isfinite() & ~empty
    if gradients is not None:
        failed = failed | (~gradients.isfinite().all(-1) & ~empty)
    first = None
    if bool(failed.any()):
        row = int(failed.nonzero()[0])
        what = "" if bool(values[row].isfinite()) else f" {values[row].item()}"
        what = f"log density{what}" if what else "a gradient that is not finite"
        first = f"{what} at {_shown(z[row])}"
    return _Result((), int(empty.sum()), int(failed.sum()), first)


def _halves(
    function: Callable[..., _Result], log_density: LogDensity, z: Tensor, error: Exception
) -> _Result:
    """Of a chunk that raises: that of one point, or of both its halves."""
    count, dimension = z.shape
    if count == 1:
        value, gradient = z.new_full((1,), -torch.inf), z.new_zeros(1, dimension)
        tensors = {
            _values: (value,),
            _values_and_gradients: (value, gradient),
            _hessians: (z.new_full((1, dimension, dimension), torch.nan),),
        }[function]
        first = f"{type(error).__name__}: {error} at {_shown(z[0])}"
        detached = tuple(tensor.detach() for tensor in tensors)
        return _Result(detached, 0, 1, first)
    left, right = (function(log_density, half) for half in z.detach().split((count + 1) // 2))
    columns = zip(left.tensors, right.tensors, strict=True)
    return _Result(
        tuple(torch.cat(column) for column in columns),
        left.without_mass + right.without_mass,
        left.failed + right.failed,
        left.first_failure or right.first_failure,
    )


def _shown(point: Tensor) -> str:
    """A point in few digits, and few coordinates."""
    some = ", ".join(f"{value:.4g}" for value in point[:8].tolist())
    return f"z = ({some}{', ...' if len(point) > 8 else ''})"


def _hessians(log_density: LogDensity, z: Tensor) -> _Result:
    try:
        hessians = _by_autograd(log_density, z)
    except _WrongShape:
        raise
    except Exception as error:
        if len(z) > 1:
            return _halves(_hessians, log_density, z, error)
        hessians = _by_differences(log_density, z)
    symmetric = (hessians + hessians.mT) / 2
    finite = symmetric.isfinite().flatten(1).all(1)
    return _Result((torch.where(finite[:, None, None], symmetric, torch.nan),))


def _by_autograd(log_density: LogDensity, z: Tensor) -> Tensor:
    """A backward pass for each coordinate of the gradient."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        values = _checked(log_density(z), z)
        if not values.requires_grad:
            return z.new_zeros(*z.shape, z.shape[1]).detach()
        (gradients,) = torch.autograd.grad(values.sum(), z, create_graph=True)
        if not gradients.requires_grad:
            return z.new_zeros(*z.shape, z.shape[1]).detach()
        rows = [
            torch.autograd.grad(column.sum(), z, retain_graph=True)[0]
            for column in gradients.unbind(1)
        ]
    return torch.stack(rows, 1)  # (S, D, D)


def _by_differences(log_density: LogDensity, z: Tensor) -> Tensor:
    """Central differences of gradients."""
    count, dimension = z.shape
    z = z.detach()
    step = STEPS[getattr(log_density, "dtype", torch.float64)] * z.abs().clamp(min=1)  # (S, D)
    moves = torch.diag_embed(step)  # (S, D, D)
    moved = torch.stack([z[:, None] + moves, z[:, None] - moves])  # (2, S, D, D)
    values, gradients = _values_and_gradients(log_density, moved.flatten(0, 2)).tensors
    bad = ~values.isfinite()[:, None]
    above, below = gradients.masked_fill(bad, torch.nan).unflatten(0, (2, count, dimension))
    return (above - below) / (2 * step[..., None])
