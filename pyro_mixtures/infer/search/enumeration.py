"""The log density of a model with discrete sites, which Pyro's parallel enumeration sums out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pyro
import torch
from opt_einsum import shared_intermediates
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.ops.contract import contract_tensor_tree
from pyro.ops.rings import LogRing
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_mixtures.infer.search import log_sum_exp
from pyro_mixtures.infer.search.model_handlers import log_density_of

POINTS = "_points"
"""Name of the outer plate."""


class MappedRing(LogRing):
    """Pyro's, under ``torch.func.vmap`` and with second derivatives as well."""

    _backend = log_sum_exp.__name__


class Enumerating(EnumMessenger):
    """Pyro's handler for values of ``torch.func.vmap``, of which only the shapes are asked."""

    def _pyro_post_sample(self, msg: Any) -> None:
        value = msg["value"]
        if isinstance(value, Tensor):
            msg = {**msg, "value": torch.empty(value.shape, device="meta")}
        super()._pyro_post_sample(msg)


def enumerated(
    model: Callable[..., Any], args: Any, kwargs: Any, nesting: int, count: int | None
) -> list[Tensor]:
    """Terms of the log density, each ``(S,)`` or ``()``, with the discrete sites summed out.

    Args:
        model: a Pyro model.
        args: of the model.
        kwargs: of the model.
        nesting: how many dimensions on the right plates take.
        count: S, for a run in an outer plate; None for one point.
    """
    if count is not None:
        model = pyro.plate(POINTS, count, dim=-nesting - 1)(model)
        nesting += 1
    with poutine.trace() as tracing, Enumerating(first_available_dim=-nesting - 1):
        config_enumerate(model)(*args, **kwargs)
    trace = tracing.trace
    for site in trace.nodes.values():
        if site["type"] == "sample":
            site["log_prob"] = site["unscaled_log_prob"] = log_density_of(site)
    trace.pack_tensors()
    tree: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    for site in trace.nodes.values():
        if site["type"] == "sample" and not site_is_subsample(site):
            frames = (frame for frame in site["cond_indep_stack"] if frame.vectorized)
            plates = frozenset(trace.plate_to_symbol[frame.name] for frame in frames)
            tree.setdefault(plates, []).append(site["packed"]["log_prob"])
    symbols = set(trace.symbol_to_dim) - set(trace.plate_to_symbol.values())
    with shared_intermediates() as cache:
        contracted = contract_tensor_tree(tree, symbols, ring=MappedRing(cache))
    points = trace.plate_to_symbol.get(POINTS)
    return [_total(term, points) for terms in contracted.values() for term in terms]


def _total(term: Any, kept: str | None) -> Tensor:
    """The sum over all packed dimensions, but for that of a symbol."""
    others = [place for place, symbol in enumerate(term._pyro_dims) if symbol != kept]
    summed: Tensor = term.sum(others) if others else term
    return summed
