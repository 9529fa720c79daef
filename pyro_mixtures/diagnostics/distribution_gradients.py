"""The variance of the gradients that a distribution's samples carry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_mixtures.diagnostics.moments import (
    GradientVariance,
    Moments,
    check_sizes,
    chunk_sizes,
    gradients_of,
    repeated,
)
from pyro_mixtures.estimators import expectation, marginalized
from pyro_mixtures.estimators.costs import checked_costs, sampled_expectation
from pyro_mixtures.numerics.validation import check_at_least


@torch.enable_grad()
def gradient_variance(
    distribution: Callable[..., Distribution],
    cost: Callable[[Tensor], Tensor],
    parameters: Mapping[str, Tensor],
    *,
    num_draws: int = 1000,
    chunk_size: int | None = None,
    estimator: str | Callable[..., Any] | None = None,
    num_samples: int = 1,
    baseline: Tensor | float | None = None,
) -> dict[str, GradientVariance]:
    r"""Variance of the gradient of a cost's expectation, for each parameter.

    The estimate is :math:`G = \nabla_\theta f(z)` with one sample :math:`z = z_\theta(\epsilon)`
    of ``rsample`` (and the score function term, where ``score_parts`` of the distribution has
    one), or for several the mean of theirs. Each parameter is given a leading dimension of draws,
    so that one ``rsample`` and one backward pass yield many independent estimates.

    Args:
        distribution: a class, or a function that returns a distribution, called with the
            parameters by name. Constants that broadcast against a batch, or a ``control_var``
            whose gradient is not that of the cost, are bound by ``functools.partial``.
        cost: maps samples ``(N, *B, *E)`` to one cost each, ``(N, *B)``; the cost of one sample
            must not depend on the others.
        parameters: tensors by name, all with the distribution's batch shape ``B`` in front of
            their own dimensions; they stay as they are.
        num_draws: of the estimate, at least 2.
        chunk_size: draws at a time; by default so many that a parameter's gradients stay within a
            budget of memory.
        estimator: of the gradient, for mixtures: what
            :func:`~pyro_mixtures.estimators.expectation` takes, or
            :func:`~pyro_mixtures.estimators.marginalized` itself. By default the distribution's
            own ``rsample`` and ``score_parts``.
        num_samples: of one estimate.
        baseline: taken from the costs that multiply a score function; a number, or a tensor that
            broadcasts with ``B``. By default the mean cost of the estimate's other samples, or
            zero for a single one.

    Returns:
        A :class:`GradientVariance` for each parameter, by name.

    Raises:
        ValueError: for no parameters, ``num_draws < 2``, ``chunk_size < 1``, ``num_samples < 1``,
            a distribution without ``rsample`` where there is no ``estimator``, parameters whose
            batch shapes differ, a cost of another shape, a parameter that the cost gives no
            gradient, or gradients that are not finite.

    Example:
        >>> import torch
        >>> from torch.distributions import Normal
        >>> _ = torch.manual_seed(0)
        >>> parameters = {"loc": torch.tensor(1.0), "scale": torch.tensor(2.0)}
        >>> found = gradient_variance(Normal, torch.square, parameters, num_draws=10_000)
        >>> loc = found["loc"]  # of the gradient 2 z: mean 2, variance 16
        >>> bool(abs(loc.variance - 16) < 4 * loc.variance_error)
        True
    """
    check_sizes(num_draws, chunk_size)
    check_at_least(1, num_samples=num_samples)
    if not parameters:
        raise ValueError("Expected parameters to name at least one tensor, but got none")
    batch_shape = _batch_shape(distribution, parameters, needs_rsample=estimator is None)
    mean_cost: Callable[..., Tensor] = partial(sampled_expectation, baseline=baseline)
    if estimator is marginalized:
        mean_cost = marginalized
    elif estimator is not None:
        mean_cost = partial(expectation, estimator=estimator, baseline=baseline)
    flat_cost = partial(_flat_cost, cost, batch_shape)
    moments = {name: Moments(name) for name in parameters}
    sizes = [value.expand(num_samples, *value.shape) for value in parameters.values()]
    for draws in chunk_sizes(num_draws, chunk_size, sizes):
        leaves = {name: repeated(value, (draws,)) for name, value in parameters.items()}
        estimates = mean_cost(distribution(**leaves), flat_cost, num_samples=num_samples)
        for name, gradient in gradients_of("cost", estimates.sum(), leaves).items():
            moments[name].add(gradient)
    return {name: moment.result(parameters[name].dtype) for name, moment in moments.items()}


def _flat_cost(cost: Callable[[Tensor], Tensor], batch_shape: torch.Size, z: Tensor) -> Tensor:
    """Costs ``(S, draws, *B)`` of samples ``(S, draws, *B, *E)``."""
    return checked_costs(cost, z.flatten(0, 1), batch_shape).unflatten(0, z.shape[:2])


def _batch_shape(
    distribution: Callable[..., Distribution],
    parameters: Mapping[str, Tensor],
    *,
    needs_rsample: bool,
) -> torch.Size:
    """Shape of the distribution's batch, with a check that the draws will lie before it."""
    batch_shape = distribution(**parameters).batch_shape
    sizes = {size for value in parameters.values() for size in value.shape}
    draws = next(number for number in count(2) if number not in sizes)  # broadcasts with no other
    expected = (draws, *batch_shape)
    leaves = {name: repeated(value, (draws,)) for name, value in parameters.items()}
    try:
        batch = distribution(**leaves)
        found: Any = tuple(batch.batch_shape)
    except (ValueError, RuntimeError) as error:
        found = error
    if found != expected:
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in parameters.items())
        raise ValueError(
            f"Expected parameters of one batch shape, {tuple(batch_shape)}, so that with a leading"
            f" dimension of {draws} draws the distribution's is {expected}, but got {found};"
            f" the parameters' shapes are {shapes}"
        )
    if needs_rsample and not batch.has_rsample:
        raise ValueError(
            f"Expected a distribution with rsample, but got {type(batch).__name__}; of a mixture"
            " estimator='score' needs none"
        )
    return batch_shape
