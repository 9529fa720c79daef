"""All that a search knows, as plain values: to be saved, and to go on from to the same numbers."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_mixtures.infer.search.evaluations import Evaluations
from pyro_mixtures.infer.search.growing import Candidates
from pyro_mixtures.infer.search.laplace import Optima
from pyro_mixtures.infer.search.natural_normals import FullNormals
from pyro_mixtures.infer.search.parts import Parts
from pyro_mixtures.infer.search.sample_store import Batch
from pyro_mixtures.numerics.saving import save_whole

Search = Any
"""A ``ModeSearch``, whose file imports this one."""

SETTINGS = ("starts", "num_components", "max_evaluations", "covariance", "seed")
"""Of a search, which those of the state must equal."""

PLAIN = ("counts", "log", "improper", "stopped", "settling", "converged")
"""Attributes that are numbers, words, or lists of these."""

RECORDED = ("elbos", "spreads")
"""Of each step."""

PROBES = 8
"""Points at which a density is compared with that of the state."""

COUNTED = ("count", "without_mass", "failed", "first_failure")
"""Of the evaluations."""


def state_of(search: Search) -> dict[str, Any]:
    """Tensors, numbers and words, in lists and dicts, which ``torch.load`` reads as weights."""
    state = {name: getattr(search, name) for name in SETTINGS}
    state |= {name: getattr(search, name) for name in PLAIN}
    for name in ("counts", "log", "improper"):
        state[name] = list(state[name])
    state |= {name: list(getattr(search.record, name)) for name in RECORDED}
    state["evaluations"] = {name: getattr(search.evaluations, name) for name in COUNTED}
    state["generator"] = search.generator.get_state()
    store, candidates = search.store, search.candidates
    state["store"] = {
        "size": store.size,
        "batches": [_flat(batch) for batch in store.batches],
        "proposals": list(store.proposals),
    }
    if search.parts is not None:
        state["parts"] = _flat(search.parts)
        state["optima"] = list(search.optima)
        state["candidates"] = [candidates.first, *candidates.batches]
    return state


def restore(search: Search, state: dict[str, Any]) -> None:
    """Let a search of the same settings be as the other was.

    Raises:
        ValueError: for a state of another search: with other settings, or of another density,
            as of a model with other data.
    """
    for name in SETTINGS:
        own, given = getattr(search, name), state[name]
        tensors = isinstance(own, torch.Tensor)
        if not (torch.equal(own, given) if tensors else own == given):
            raise ValueError(
                f"Expected the state of a search with the same {name}, but got another"
                + ("" if tensors else f": {given} for {own}")
            )
    if "parts" in state:
        _check_density(search, *state["candidates"][0])
    for name in PLAIN:
        value = state[name]
        setattr(search, name, list(value) if isinstance(value, list) else value)
    for name in RECORDED:
        setattr(search.record, name, list(state[name]))
    for name in COUNTED:
        setattr(search.evaluations, name, state["evaluations"][name])
    search.generator.set_state(state["generator"])
    store = state["store"]
    search.store.size, search.store.proposals = store["size"], list(store["proposals"])
    search.store.batches = [
        Batch(*_with_normals(Batch, values, search.kind)) for values in store["batches"]
    ]
    search.parts = search.optima = search.candidates = None
    if "parts" in state:
        search.parts = Parts(*_with_normals(Parts, state["parts"], search.kind))
        search.optima = Optima(*state["optima"])
        first, *batches = state["candidates"]
        search.candidates = Candidates(*first)
        search.candidates.batches = list(batches)


def _check_density(search: Search, points: Tensor, values: Tensor) -> None:
    """That it has the values of the state at some of its points ``(N, D)``, which do not count."""
    some = torch.linspace(0, len(points) - 1, PROBES).long()
    points, expected = points[some], values[some]
    known = search.evaluations
    # as those of the state were: a point whose gradient is not finite counts as one without mass
    fresh = Evaluations(known.log_density, executor=known.executor)
    found, _ = fresh.values_and_gradients(points)
    dtype = getattr(known.log_density, "dtype", torch.float64)
    allowed = torch.finfo(dtype).eps ** 0.5  # of what other batches and machines round differently
    if not torch.allclose(found, expected, rtol=allowed, atol=allowed):
        row = int((found - expected).abs().nan_to_num(torch.inf).argmax())
        raise ValueError(
            "Expected the state of a search of the same log density, but got another, as of a"
            f" model with other data: {expected[row].item():.6g} for {found[row].item():.6g} at"
            f" {points[row].tolist()[:8]}"
        )


def _flat(value: Any) -> dict[str, Any]:
    """Fields by name, and those of Normals as a pair."""
    found = {field.name: getattr(value, field.name) for field in fields(value)}
    return found | {"normals": (found["normals"].locs, found["normals"].factor)}


def _with_normals(made: Any, values: dict[str, Any], kind: type[FullNormals]) -> list[Any]:
    normals = kind(*values["normals"])
    return [normals if f.name == "normals" else values[f.name] for f in fields(made)]


def save(search: Search, path: Path) -> None:
    """Write the state to a file, which is whole at any time."""
    save_whole(state_of(search), path)
