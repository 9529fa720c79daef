"""Values, gradients and Hessians of a log density at points, of which bad ones harm no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LogDensity = Callable[[Tensor], Tensor]

STEPS = {torch.float32: 5e-3, torch.float64: 1e-5}
"""Of central differences, relative to the size of a coordinate: cube roots of the precision."""

NARROW, RESOLVED = 0.01, 64
"""Of a step where a Hessian is checked: widths of the density, by that Hessian, at most, since
farther out it may be another; and roundings of the coordinate at least."""

AGREEMENT = 0.05
"""Relative difference that a Hessian may have from one of gradients, along one direction."""


class Outcome(NamedTuple):
    """What points have, and how many have nothing."""

    tensors: tuple[Tensor, ...]
    without_mass: int = 0
    """Points with a log density of ``-inf``."""
    failed: int = 0
    """Points with one of NaN or ``+inf``, with an infinite gradient, and where it raised."""
    first_failure: str | None = None


class WrongShape(ValueError):
    """Of a function that is no log density of points."""


def value_outcome(log_density: LogDensity, z: Tensor) -> Outcome:
    """Log densities ``(S,)``, of bad points ``-inf``, at points ``(S, D)``."""
    try:
        with torch.no_grad():
            values = _values(log_density, z)
    except WrongShape:
        raise
    except Exception as error:
        return _by_halves(value_outcome, log_density, z, error)
    return _judged(z, values, None)


def gradient_outcome(log_density: LogDensity, z: Tensor) -> Outcome:
    """Log densities ``(S,)`` and gradients ``(S, D)``, of bad points ``-inf`` and zero."""
    try:
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            values = _values(log_density, leaf)
            gradients = _gradient(values, leaf)
    except WrongShape:
        raise
    except Exception as error:
        return _by_halves(gradient_outcome, log_density, z, error)
    return _judged(z, values.detach(), gradients)


def hessian_outcome(log_density: LogDensity, z: Tensor) -> Outcome:
    """Second derivatives ``(S, D, D)`` at points ``(S, D)``, NaN where one is not finite.

    By automatic differentiation; by central differences of the gradient where that raises, or
    where it disagrees with a difference of gradients along one direction, since part of the
    gradient has no derivative.
    """
    try:
        hessians = _by_autograd(log_density, z)
    except WrongShape:
        raise
    except Exception:
        hessians = _of_good_points(log_density, z)
    symmetric = (hessians + hessians.mT) / 2
    finite = symmetric.isfinite().flatten(1).all(1)
    return Outcome((torch.where(finite[:, None, None], symmetric, torch.nan),))


def _values(log_density: LogDensity, z: Tensor) -> Tensor:
    values = log_density(z)
    if values.shape != z.shape[:1]:
        raise WrongShape(
            f"Expected log_density to return one value for each of {len(z)} points, but got the"
            f" shape {tuple(values.shape)}"
        )
    return values.to(z.dtype)


def _gradient(values: Tensor, z: Tensor, *, create_graph: bool = False) -> Tensor:
    """Of each value by its own point."""
    if not values.requires_grad:
        return torch.zeros_like(z)
    (gradients,) = torch.autograd.grad(
        values.sum(), z, create_graph=create_graph, materialize_grads=True
    )
    return gradients


def _judged(z: Tensor, values: Tensor, gradients: Tensor | None) -> Outcome:
    good = values.isfinite()
    if gradients is not None:
        good = good & gradients.isfinite().all(-1)
    if bool(good.all()):
        return Outcome((values,) if gradients is None else (values, gradients))
    empty = values == -torch.inf
    failed = ~good & ~empty
    first = None
    if bool(failed.any()):
        row = int(failed.nonzero()[0])
        value = values[row].item()
        infinite_gradient = bool(values[row].isfinite())
        what = f"a log density of {value}" + (" and a gradient that is not" * infinite_gradient)
        first = f"{what}, at {_shown(z[row])}"
    kept = [torch.where(good, values, -torch.inf)]
    if gradients is not None:
        kept.append(torch.where(good[:, None], gradients, 0.0))
    return Outcome(tuple(kept), int(empty.sum()), int(failed.sum()), first)


def _by_halves(
    function: Callable[[LogDensity, Tensor], Outcome],
    log_density: LogDensity,
    z: Tensor,
    error: Exception,
) -> Outcome:
    """Of points that raise together: each one's own."""
    if len(z) == 1:
        empty = z.new_full((1,), -torch.inf), torch.zeros_like(z)
        tensors = empty if function is gradient_outcome else empty[:1]
        first = f"{type(error).__name__}: {error}, at {_shown(z[0])}"
        return Outcome(tensors, failed=1, first_failure=first)
    halves = [function(log_density, half) for half in z.split((len(z) + 1) // 2)]
    return joined(halves)


def joined(outcomes: list[Outcome]) -> Outcome:
    """That of all points, in their order."""
    if len(outcomes) == 1:
        return outcomes[0]
    columns = zip(*(outcome.tensors for outcome in outcomes), strict=True)
    failures = (outcome.first_failure for outcome in outcomes)
    return Outcome(
        tuple(torch.cat(column) for column in columns),
        sum(outcome.without_mass for outcome in outcomes),
        sum(outcome.failed for outcome in outcomes),
        next((failure for failure in failures if failure is not None), None),
    )


def _shown(point: Tensor) -> str:
    """A point in few digits, and few coordinates."""
    some = ", ".join(f"{value:.4g}" for value in point[:8].tolist())
    return f"z = ({some}{', ...' if len(point) > 8 else ''})"


def _of_good_points(log_density: LogDensity, z: Tensor) -> Tensor:
    """Hessians where a batch raised, for a bad point in it or for want of derivatives."""
    values, gradients = gradient_outcome(log_density, z).tensors
    good = values.isfinite()
    hessians = z.new_full((*z.shape, z.shape[1]), torch.nan)
    if bool(good.any()):
        try:
            hessians[good] = _by_autograd(log_density, z[good])
        except Exception:
            hessians[good] = _by_differences(log_density, z[good])
    return hessians


def _by_autograd(log_density: LogDensity, z: Tensor) -> Tensor:
    """A backward pass for each coordinate of the gradient, ``(S, D, D)``."""
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        values = _values(log_density, leaf)
        gradients = _gradient(values, leaf, create_graph=True)
        if not gradients.requires_grad:
            hessians = z.new_zeros(*z.shape, z.shape[1])
        else:
            columns = gradients.unbind(1)
            hessians = torch.stack(
                [
                    torch.autograd.grad(
                        column.sum(), leaf, retain_graph=True, materialize_grads=True
                    )[0]
                    for column in columns
                ],
                1,
            )
    finite = values.isfinite() & hessians.isfinite().flatten(1).all(-1)
    for row in finite.nonzero()[:1, 0]:
        if not _agrees(log_density, z[row], gradients[row].detach(), hessians[row]):
            return _by_differences(log_density, z)
    return hessians


def _agrees(log_density: LogDensity, point: Tensor, gradient: Tensor, hessian: Tensor) -> bool:
    """Whether a Hessian is the derivative of the gradient, along one direction."""
    dtype = _precision(log_density)
    step = STEPS[dtype] * point.abs().clamp(min=1)  # (D,)
    step = torch.minimum(step, NARROW * hessian.diagonal().abs().rsqrt())
    step = torch.maximum(step, RESOLVED * torch.finfo(dtype).eps * point.abs())
    values, gradients = gradient_outcome(
        log_density, torch.stack([point + step, point - step])
    ).tensors
    if not bool(values.isfinite().all()):
        return True
    expected = (gradients[0] - gradients[1]) / 2
    found = hessian @ step
    rounding = 1e4 * torch.finfo(dtype).eps * gradient.abs().max()
    allowed = AGREEMENT * (hessian.abs() @ step + expected.abs()) + rounding
    return bool(((expected - found).abs() <= allowed).all())


def _by_differences(log_density: LogDensity, z: Tensor) -> Tensor:
    """Central differences of gradients, ``(S, D, D)``."""
    step = STEPS[_precision(log_density)] * z.abs().clamp(min=1)  # (S, D)
    moves = torch.diag_embed(step)  # (S, D, D)
    moved = torch.stack([z[:, None] + moves, z[:, None] - moves])  # (2, S, D, D)
    values, gradients = gradient_outcome(log_density, moved.flatten(0, 2)).tensors
    gradients = gradients.masked_fill(~values.isfinite()[:, None], torch.nan)
    above, below = gradients.reshape(moved.shape)
    return (above - below) / (2 * step[..., None])


def _precision(log_density: LogDensity) -> torch.dtype:
    """In which a log density is evaluated; what is no ``ModelLogDensity`` takes the points'."""
    return getattr(log_density, "dtype", torch.float64)
