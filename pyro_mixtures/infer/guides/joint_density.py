"""The model's density at points that are not draws of a guide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_mixtures.infer.search.model_batches import ModelBatches
from pyro_mixtures.infer.search.model_runs import ModelRuns

POINTS = 4
"""Of those whose densities are asked for: at these, ways to evaluate a batch are compared."""


@torch.no_grad()
def joint_log_density(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    known: Sequence[str],
    z: Tensor,
) -> Tensor:
    """The log density of a guide's model at packed unconstrained vectors, ``(N, D) -> (N,)``.

    All points see the same subsamples; NaN counts as no density.

    Args:
        model: a Pyro model.
        args: its arguments.
        kwargs: its keyword arguments.
        known: names of the guide's sites, in the order in which ``z`` has them.
        z: the points.

    Raises:
        ValueError: for a model with a density that is random, without data, or with other latent
            sites than those of the guide.
    """
    runs = ModelRuns(model, args, kwargs, subsamples=True)
    for name in (*runs.sites.latent, *runs.sites.discrete):
        if name not in known:
            raise ValueError(
                f"Expected a guide for all latent sites of the model, but got {name!r}, which it"
                " does not know"
            )
    if (*runs.sites.latent,) != (*known,) or runs.sites.dimension != z.shape[1]:
        raise ValueError(
            f"Expected a model with the latent sites {', '.join(known)} of the guide, in"
            f" {z.shape[1]} unconstrained coordinates, but got {', '.join(runs.sites.latent)} in"
            f" {runs.sites.dimension}"
        )
    if not runs.sites.observed:
        raise ValueError(
            "Expected a model with data or factors, but got one of which the guide sees none: a"
            " block hides them"
        )
    some = z[torch.linspace(0, len(z) - 1, POINTS).long()]
    density = ModelBatches(runs, some, gradients=False)
    log_p = torch.cat([density(rows) for rows in z.split(runs.sites.batch_size)])
    return log_p.masked_fill(log_p.isnan(), -torch.inf)
