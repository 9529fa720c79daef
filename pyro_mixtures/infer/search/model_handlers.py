"""Handlers of a Pyro model: values from the prior, or from packed vectors, and log densities."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to

from pyro_mixtures.infer.search.model_sites import LatentSite

PYRO = threading.RLock()
"""Held while a model runs: Pyro has one stack of handlers for all threads."""

RADIUS = 2.0
"""Of the box from which unconstrained values come where the prior cannot be sampled, as in
``init_to_uniform``."""


class Apart(Messenger):
    """The outermost handler: what is outside sees no message, and the parameter store stays.

    Args:
        parameters: initial values, by name, of those parameters that are not in Pyro's store;
            filled by the first run.
    """

    def __init__(self, parameters: dict[str, Any]) -> None:
        super().__init__()
        self.parameters = parameters

    def _process_message(self, msg: Any) -> None:
        msg["stop"] = True
        super()._process_message(msg)

    def _pyro_param(self, msg: Any) -> None:
        name = msg["name"]
        if name in pyro.get_param_store():
            return
        if name not in self.parameters:
            init = msg["args"][1] if len(msg["args"]) > 1 else msg["kwargs"].get("init_tensor")
            if init is None:
                return  # Pyro tells what is missing
            self.parameters[name] = init() if callable(init) else init
        msg["value"], msg["done"] = self.parameters[name], True


class FromPrior(Apart):
    """Latent sites are drawn from the prior.

    Args:
        parameters: as in ``Apart``.
        shape: of draws, ``(S, 1, ..., 1)``, or ``()`` for one.
    """

    def __init__(self, parameters: dict[str, Any], shape: torch.Size = torch.Size()) -> None:
        super().__init__(parameters)
        self.shape = shape
        self.unconstrained: dict[str, Tensor] = {}
        self.unsampled: list[str] = []

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"] or site_is_subsample(msg):
            return
        fn = msg["fn"]
        if self.shape:
            fn = fn.expand(torch.broadcast_shapes(self.shape, fn.batch_shape))
        discrete = fn.support.is_discrete
        try:
            with torch.no_grad():
                value = fn.sample()
            unconstrained = None if discrete else biject_to(fn.support).inv(value)
        except NotImplementedError:
            if discrete:
                raise
            transform = biject_to(fn.support)
            shape = transform.inverse_shape(fn.batch_shape + fn.event_shape)
            unconstrained = torch.empty(shape).uniform_(-RADIUS, RADIUS)
            value = transform(unconstrained)
            self.unsampled.append(msg["name"])
        msg["value"], msg["done"] = value, True
        if unconstrained is not None:
            self.unconstrained[msg["name"]] = unconstrained.detach()


class AtPoints(Apart):
    """Latent sites have the values at points of the unconstrained space.

    Args:
        parameters: as in ``Apart``.
        sites: where values stand.
        z: packed points, ``(S, D)``, or one, ``(D,)``.
        nesting: of dimensions on the right of S.
    """

    def __init__(
        self, parameters: dict[str, Any], sites: dict[str, LatentSite], z: Tensor, nesting: int
    ) -> None:
        super().__init__(parameters)
        self.sites, self.z, self.nesting = sites, z, nesting
        self.values: dict[str, Tensor] = {}
        self.terms: list[Tensor] = []

    def _pyro_sample(self, msg: Any) -> None:
        site = self.sites.get(msg["name"])
        if site is None or msg["is_observed"]:
            return
        shape = site.batch_shape + site.unconstrained_event_shape
        points = self.z[..., site.start : site.stop]
        if points.dtype != site.dtype:
            points = points.to(site.dtype)
        if self.z.dim() == 2:
            ones = (1,) * (self.nesting - len(site.batch_shape))
            shape = torch.Size((self.z.shape[0], *ones, *shape))
        points = points.reshape(shape)
        transform = biject_to(msg["fn"].support)
        value = transform(points)
        if value is not points:
            self.terms.append(self.total(transform.log_abs_det_jacobian(points, value)))
        self.values[site.name] = value
        msg["value"], msg["done"] = value, True

    def total(self, terms: Tensor) -> Tensor:
        """The sum over all dimensions, but that of points if all are there."""
        if self.z.dim() == 2:
            return terms.reshape(self.z.shape[0], -1).sum(-1)
        return terms.sum()


class LogDensityAtPoints(AtPoints):
    """``AtPoints`` whose ``terms`` add up to the log density of the values and the data."""

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) or msg["infer"].get("_deterministic"):
            return
        log_prob = msg["fn"].log_prob(msg["value"], *msg["args"], **msg["kwargs"])
        log_prob = torch.as_tensor(scale_and_mask(log_prob, msg["scale"], msg["mask"]))
        if self.z.dim() == 2 and log_prob.dim() > self.nesting:
            count = self.z.shape[0]
            if log_prob.dim() != self.nesting + 1 or log_prob.shape[0] != count:
                raise ValueError(
                    f"Expected site {msg['name']!r} to have a log density with at most"
                    f" {self.nesting} dimensions after {count} points, but got the shape"
                    f" {tuple(log_prob.shape)}"
                )
            self.terms.append(self.total(log_prob))
        else:
            self.terms.append(log_prob.sum())


def total(terms: Iterable[Tensor], dtype: torch.dtype) -> Tensor:
    """The sum of terms, each ``(S,)`` or ``()``, in a dtype."""
    result: Any = 0.0
    for term in terms:
        result = result + term.to(dtype)
    return torch.as_tensor(result, dtype=dtype)
