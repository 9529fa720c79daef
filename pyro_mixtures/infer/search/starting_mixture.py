"""A mixture from which SVI can start: at the modes that ascents find."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_mixtures.distributions import MixtureOfDiagNormals, MixtureOfNormals
from pyro_mixtures.infer.search.evaluations import Evaluations
from pyro_mixtures.infer.search.mode_search import LARGEST_FULL
from pyro_mixtures.infer.search.model_log_density import ModelLogDensity
from pyro_mixtures.infer.search.natural_normals import DiagonalNormals, FullNormals
from pyro_mixtures.infer.search.starts import prior_scale, started
from pyro_mixtures.normals.bounds import bhattacharyya_distances
from pyro_mixtures.numerics.validation import check_at_least

WANTED = 16
"""Samples of each local fit in a step."""

MAX_OVERLAP = 0.5
"""Bhattacharyya coefficient up to which a local fit is of another place."""

LEAST = 0.01
"""Share of an equal weight that each component has at least."""


def starting_mixture(
    model: Callable[..., Any],
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    *,
    num_components: int,
    num_starts: int = 300,
    max_evaluations: int = 50_000,
    seed: int = 0,
) -> MixtureOfNormals | MixtureOfDiagNormals:
    """Where a mixture guide may start: Normals at the modes that ascents from the prior find.

    The first part of :func:`~pyro_mixtures.infer.fit` on its own, for those who go on by SVI. The
    components are the heaviest Laplace approximations; then Normals that were fitted from draws
    of the prior, where they are of other places; then draws of the prior, half as wide as that.

    Args:
        model: a Pyro model with continuous latent sites; discrete ones are summed out.
        args: arguments of the model.
        kwargs: its keyword arguments.
        num_components: K, at least 1.
        num_starts: draws of the prior from which to ascend.
        max_evaluations: of the model's log density with its gradient, about.
        seed: of the random numbers; those of torch are left as they are.

    Returns:
        A mixture of K components over the packed unconstrained vector in float64, with full
        covariances up to 100 dimensions and else diagonal ones. Weights are those of the
        approximations, none of them very small.

    Raises:
        ValueError: for models and numbers as :func:`~pyro_mixtures.infer.fit` refuses them.
        NotImplementedError: for a plate that subsamples.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyro_mixtures as pm
        >>> def model(distance):  # the data leave the sign of x open
        ...     x = pyro.sample("x", dist.Normal(0.0, 3.0))
        ...     pyro.sample("y", dist.Normal(x.abs(), 0.5), obs=distance)
        >>> start = pm.starting_mixture(model, (torch.tensor(3.0),), num_components=2)
        >>> start.locs.flatten().sort().values
        tensor([-2.9189,  2.9189], dtype=torch.float64)
    """
    check_at_least(1, num_components=num_components)
    check_at_least(2, num_starts=num_starts)
    check_at_least(1, max_evaluations=max_evaluations)
    density = ModelLogDensity(model, args, kwargs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        draws = density.prior_draws(num_starts + num_components).to("cpu", torch.float64)
    draws, spare = draws[:num_starts], draws[num_starts:]
    kind = FullNormals if density.dimension <= LARGEST_FULL else DiagonalNormals
    start = started(
        Evaluations(density),
        draws,
        torch.Generator().manual_seed(seed),
        kind=kind,
        wanted=WANTED,
        max_parts=num_components,
        max_count=max_evaluations,
    )
    parts = start.parts.chosen(torch.arange(len(start.parts) - 1))  # without the wide one
    at_modes = min(len(start.optima.points), num_components)
    chosen = _apart(parts.normals, _in_order(parts.log_weights, at_modes))[:num_components]
    normals, masses = parts.normals[chosen], parts.log_weights[chosen]
    missing = spare[: num_components - len(normals)]
    normals = normals.beside(kind.of_stddevs(missing, (prior_scale(draws) / 2).expand_as(missing)))
    masses = torch.cat([masses, masses.new_full((len(missing),), -math.inf)])
    log_weights = masses.log_softmax(0).clamp(min=math.log(LEAST / num_components))
    made = MixtureOfNormals if kind is FullNormals else MixtureOfDiagNormals
    return made(normals.locs, normals.factor, log_weights.log_softmax(0))


def _in_order(log_weights: Tensor, at_modes: int) -> list[int]:
    """Those at modes, and then the others, the heaviest first of each."""
    order = log_weights.argsort(descending=True, stable=True)
    first = order < at_modes
    return [*order[first].tolist(), *order[~first].tolist()]


def _apart(normals: FullNormals, order: list[int]) -> Tensor:
    """Indices of those that do not overlap much with one before them."""
    locs, factor = normals.locs, normals.factor
    same = (-bhattacharyya_distances(locs, factor, locs, factor)).exp() > MAX_OVERLAP
    chosen: list[int] = []
    for index in order:
        if not bool(same[index, chosen].any()):
            chosen.append(index)
    return torch.tensor(chosen, dtype=torch.long)
