"""Handlers of a Pyro model: values from the prior, or from packed vectors, and log densities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_mixtures.infer.search.model_sites import (
    ChangingSites,
    ModelSites,
    no_transform,
    unconstraining,
)
from pyro_mixtures.infer.search.validity import valid_parameters, valid_values

if TYPE_CHECKING:
    from typing_extensions import Self

RADIUS = 2.0
"""Of the box from which unconstrained values come where the prior cannot be sampled, as in
``init_to_uniform``."""


class Apart(Messenger):
    """The outermost handler: what is outside sees no message, and the parameter store stays.

    Args:
        parameters: initial values, by name, of parameters that Pyro's store does not have; filled
            by the first run.
    """

    def __init__(self, parameters: dict[str, Any]) -> None:
        super().__init__()
        self.parameters = parameters

    def __enter__(self) -> Self:
        self._stored = len(pyro.get_param_store())
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        store = pyro.get_param_store()
        if len(store) > self._stored:  # a PyroModule puts its parameters there without a message
            for name in list(store.keys())[self._stored :]:
                del store[name]

    def _process_message(self, msg: Any) -> None:
        msg["stop"] = True
        super()._process_message(msg)

    def _pyro_param(self, msg: Any) -> None:
        name = msg["name"]
        if name in pyro.get_param_store():
            return
        if name not in self.parameters:
            if len(msg["args"]) < 2:
                return  # Pyro tells what is missing
            init = msg["args"][1]
            self.parameters[name] = init() if callable(init) else init
        msg["value"], msg["done"] = self.parameters[name], True


class FromPrior(Apart):
    """Latent sites are drawn from the prior.

    Args:
        parameters: as in ``Apart``.
        shape: of draws, ``(S, 1, ..., 1)``, or ``()`` for one.

    Attributes:
        drawn: names of all sites that are latent.
        unconstrained: values of the continuous sites, by name.
        unsampled: names of those without a distribution to draw from.
    """

    def __init__(self, parameters: dict[str, Any], shape: torch.Size) -> None:
        super().__init__(parameters)
        self.shape = shape
        self.drawn: set[str] = set()
        self.unconstrained: dict[str, Tensor] = {}
        self.unsampled: list[str] = []

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"] or site_is_subsample(msg):
            return
        fn = msg["fn"]
        if self.shape:
            fn = fn.expand(torch.broadcast_shapes(self.shape, fn.batch_shape))
        msg["done"] = True
        self.drawn.add(msg["name"])
        if fn.support.is_discrete:
            msg["value"] = fn.sample()
            return
        transform = unconstraining({**msg, "fn": fn})
        try:
            with torch.no_grad():
                msg["value"] = fn.sample()
            unconstrained = transform.inv(msg["value"])
        except NotImplementedError:
            shape = transform.inverse_shape(fn.batch_shape + fn.event_shape)
            unconstrained = torch.empty(shape).uniform_(-RADIUS, RADIUS)
            msg["value"] = transform(unconstrained)
            self.unsampled.append(msg["name"])
        self.unconstrained[msg["name"]] = unconstrained.detach()


class AtPoints(Apart):
    """Latent sites have the values at points of the unconstrained space.

    Args:
        parameters: as in ``Apart``.
        sites: of the model.
        z: packed points ``(S, D)``, or one, ``(D,)``.

    Attributes:
        values: of the sites, by name.
        supports: of the sites' distributions, by name.
        terms: of the log determinant of the Jacobian, each ``(S,)`` or ``()``.
    """

    def __init__(self, parameters: dict[str, Any], sites: ModelSites, z: Tensor) -> None:
        super().__init__(parameters)
        self.sites, self.z = sites, z
        self.values: dict[str, Tensor] = {}
        self.supports: dict[str, Any] = {}
        self.terms: list[Tensor] = []

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"] or site_is_subsample(msg):
            return
        site = self.sites.latent.get(msg["name"])
        if site is None:
            raise ChangingSites(
                "Expected the same latent sites in each run of the model, all of them continuous"
                f" or enumerated in parallel, but got one with {msg['name']!r}"
            )
        leading = site.batch_shape
        if self.z.dim() == 2:
            ones = (1,) * (self.sites.nesting - len(leading))
            leading = torch.Size((len(self.z), *ones, *leading))
        points = self.z[..., site.start : site.stop].to(site.dtype)
        points = points.reshape(leading + site.unconstrained_event_shape)
        transform = unconstraining(msg)
        value = transform(points)
        if value is not points:
            if value.shape != leading + site.event_shape:
                raise ValueError(
                    f"Expected the support of site {site.name!r} to depend on no discrete site,"
                    f" for values of the shape {tuple(leading + site.event_shape)}, but got"
                    f" {tuple(value.shape)}"
                )
            try:
                jacobian = transform.log_abs_det_jacobian(points, value)
            except NotImplementedError as error:
                raise no_transform(msg) from error
            self.terms.append(self.of_points(jacobian))
        self.values[site.name], self.supports[site.name] = value, msg["fn"].support
        msg["value"], msg["done"] = value, True

    def of_points(self, terms: Tensor) -> Tensor:
        """Their sums ``(S,)`` for points, or ``()`` for one or where all have the same."""
        if self.z.dim() == 1 or terms.dim() <= self.sites.nesting:
            return terms.sum()
        return terms.flatten(1).sum(1) if terms.dim() > 1 else terms


class LogDensityAtPoints(AtPoints):
    """``AtPoints`` with ``terms`` of the log density of values and data as well."""

    def _pyro_post_sample(self, msg: Any) -> None:
        if not has_density(msg):
            return
        log_prob = log_density_of(msg)
        if self.z.dim() == 2 and log_prob.dim() > self.sites.nesting:
            rows, *rest = log_prob.shape
            if rows not in (1, len(self.z)) or len(rest) > self.sites.nesting:
                raise ValueError(
                    f"Expected site {msg['name']!r} to have a log density with at most"
                    f" {self.sites.nesting} dimensions after {len(self.z)} points, but got the"
                    f" shape {tuple(log_prob.shape)}"
                )
        self.terms.append(self.of_points(log_prob))


class Checks(Messenger):
    """What validation would refuse, for each point.

    Args:
        nesting: dimensions on the right of points.
        many: whether there are several points, in dimension ``-nesting - 1``.

    Attributes:
        parameters: whether all distributions have valid ones, each ``(S,)`` or ``()``.
        values: whether all values and data are in their supports.
    """

    def __init__(self, nesting: int, many: bool) -> None:
        super().__init__()
        self.nesting, self.many = nesting, many
        self.parameters: list[Tensor] = []
        self.values: list[Tensor] = []

    def _pyro_post_sample(self, msg: Any) -> None:
        if has_density(msg):
            self.parameters += map(self._of_points, valid_parameters(msg["fn"]))
            self.values += map(self._of_points, valid_values(msg["fn"], msg["value"]))

    def _of_points(self, valid: Tensor) -> Tensor:
        if self.many and valid.dim() > self.nesting:
            moved = valid.movedim(-self.nesting - 1, 0)
            return moved.flatten(1).all(1) if moved.dim() > 1 else moved
        return valid.all()

    def applied(self, log_densities: Tensor) -> Tensor:
        """``-inf`` for points outside of a support, NaN for those with invalid parameters."""
        for valid in self.values:
            log_densities = torch.where(valid, log_densities, -torch.inf)
        for valid in self.parameters:
            log_densities = torch.where(valid, log_densities, torch.nan)
        return log_densities


def has_density(msg: Any) -> bool:
    """Whether a site is one of those that count."""
    return not (site_is_subsample(msg) or msg["infer"].get("_deterministic"))


def log_density_of(msg: Any) -> Tensor:
    """That of a site's value, of the batch shape."""
    log_prob = msg["fn"].log_prob(msg["value"], *msg["args"], **msg["kwargs"])
    return torch.as_tensor(scale_and_mask(log_prob, msg["scale"], msg["mask"]))
