"""What one run of a Pyro model tells about its latent sites."""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import torch
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch.distributions import biject_to

from pyro_mixtures.numerics.chunks import MEMORY_BUDGET


class LatentSite(NamedTuple):
    """Where a continuous latent site stands in the packed vector, and in which form."""

    name: str
    start: int
    stop: int
    batch_shape: torch.Size
    """Of the distribution, with all plates."""
    event_shape: torch.Size
    """Of a value."""
    unconstrained_event_shape: torch.Size
    dtype: torch.dtype

    def coordinate_names(self) -> list[str]:
        """One for each element, in the order of the vector: ``"tau"``, ``"theta[3]"``."""
        shape = self.batch_shape + self.unconstrained_event_shape
        if not shape:
            return [self.name]
        indices = product(*map(range, shape))
        return [f"{self.name}[{','.join(map(str, index))}]" for index in indices]


class ModelSites(NamedTuple):
    """The sites of a model."""

    latent: dict[str, LatentSite]
    """Those that are continuous, by name, in the order of the model."""
    discrete: tuple[str, ...]
    """Names of those to be summed out."""
    observed: tuple[str, ...]
    """Names of data and factors."""
    parameters: tuple[str, ...]
    """Names of those of ``pyro.param``."""
    nesting: int
    """Dimensions on the right that plates, batches and observations take."""
    device: torch.device
    dimension: int
    """D, the length of the packed vector."""
    dtype: torch.dtype
    """The widest of those of the latent sites."""
    batch_size: int
    """Points in one run of the model, whose sites stay within the memory budget."""


class ChangingSites(ValueError):
    """Of a model that does not have the same latent sites in each run."""


def model_sites(trace: Trace, drawn: set[str], *, subsamples: bool = False) -> ModelSites:
    """The sites in a trace of a model on its prior.

    Args:
        trace: of one run.
        drawn: names of the latent sites, which no handler within the model has fixed.
        subsamples: whether plates may have them.

    Raises:
        ValueError: without continuous latent sites, and for discrete ones without enumeration.
        NotImplementedError: for plates with subsamples that they may not have.
    """
    latent: dict[str, LatentSite] = {}
    discrete: list[str] = []
    nesting, start, size = 0, 0, 1
    dtype, device = torch.float32, torch.device("cpu")
    nodes: dict[str, Any] = dict(trace.nodes)
    for name, site in nodes.items():
        if site["type"] != "sample":
            continue
        if not subsamples:
            _check_plates(name, site)
        if site_is_subsample(site):
            continue
        nesting = max(nesting, _num_batch_dims(site))
        fn, value = site["fn"], site["value"]
        size += torch.Size(fn.batch_shape).numel()
        if name not in drawn:
            continue
        size += value.numel()
        if fn.support.is_discrete:
            _check_enumerable(name, fn)
            discrete.append(name)
            continue
        batch_shape, event_shape = torch.Size(fn.batch_shape), torch.Size(fn.event_shape)
        shape = unconstraining(site).inverse_shape(value.shape)
        stop = start + shape.numel()
        inner = shape[len(batch_shape) :]
        latent[name] = LatentSite(name, start, stop, batch_shape, event_shape, inner, value.dtype)
        start, device = stop, value.device
        dtype = torch.promote_types(dtype, value.dtype)
    if start == 0:
        found = f"only {', '.join(discrete)}, discrete" if discrete else "none"
        raise ValueError(f"Expected a model with continuous latent sites, but got {found}")
    batch_size = max(1, MEMORY_BUDGET // (8 * size))
    parameters = tuple(name for name, site in nodes.items() if site["type"] == "param")
    observed = tuple(
        name for name in trace.observation_nodes if not nodes[name]["infer"].get("_deterministic")
    )
    return ModelSites(
        latent, tuple(discrete), observed, parameters, nesting, device, start, dtype, batch_size
    )


def unconstraining(site: Any) -> Any:
    """The transform from unconstrained values to those of a site."""
    try:
        return biject_to(site["fn"].support)
    except NotImplementedError as error:
        raise no_transform(site) from error


def no_transform(site: Any) -> ValueError:
    """What is wrong with a site that cannot be unconstrained."""
    return ValueError(
        "Expected latent sites with supports that have a bijection from unconstrained space with"
        f" a Jacobian, but got {site['fn'].support} at site {site['name']!r}; for matrices write"
        " LKJCholesky, and scales apart from it"
    )


def _check_plates(name: str, site: Any) -> None:
    for frame in site["cond_indep_stack"]:
        if frame.full_size is not None and frame.size != frame.full_size:
            _refuse_subsample(frame.name, frame.size, frame.full_size)
    if site_is_subsample(site):
        fn = site["fn"]
        if fn.subsample_size is not None and fn.subsample_size < fn.size:
            _refuse_subsample(name, fn.subsample_size, fn.size)


def _refuse_subsample(name: str, size: int, full_size: int) -> None:
    raise NotImplementedError(
        f"Expected plates without subsamples, but got plate {name!r} with {size} of {full_size}:"
        " the density would be another one in each run. Fit such a model by pyro.infer.SVI with a"
        " mixture guide, or run it on all data"
    )


def _check_enumerable(name: str, fn: Any) -> None:
    if not fn.has_enumerate_support:
        raise ValueError(
            f"Expected discrete sites that can be enumerated, but got {name!r}, a"
            f" {type(fn).__name__}: sum or integrate it out in the model, as GammaPoisson and"
            " BetaBinomial of pyro.distributions do, or cut it to finitely many values by a"
            " Categorical"
        )


def _num_batch_dims(site: Any) -> int:
    """Those of plates that a site is in, of its distribution and of its value."""
    frames = (-frame.dim for frame in site["cond_indep_stack"] if frame.vectorized)
    value, fn = torch.as_tensor(site["value"]), site["fn"]
    return max(len(fn.batch_shape), value.dim() - fn.event_dim, *frames, 0)
