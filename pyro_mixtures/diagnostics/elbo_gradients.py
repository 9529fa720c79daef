"""The variance of the gradients of Pyro's objectives."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoContinuous
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor
from torch.func import functional_call

from pyro_mixtures.diagnostics.log_weights import Draws
from pyro_mixtures.diagnostics.moments import (
    GradientVariance,
    Moments,
    check_reached,
    check_sizes,
    chunk_sizes,
    gradients_of,
    repeated,
)


@torch.enable_grad()
def elbo_gradient_variance(
    elbo: Any,
    model: Callable,
    guide: Callable,
    *args: Any,
    num_draws: int = 1000,
    names: Collection[str] | None = None,
    vectorize: bool = False,
    chunk_size: int | None = None,
    **kwargs: Any,
) -> dict[str, GradientVariance]:
    r"""Variance of the gradient that a step of ``SVI`` would take, for each parameter.

    The gradients are those of the loss, minus the ELBO, by ``elbo.loss_and_grads`` with the
    particles that ``elbo`` has, with respect to the unconstrained values, in which the optimizer
    steps. Parameters, their ``.grad`` and the parameter store stay as they are; ``elbo`` is
    copied, so that running averages in it stay too. A guide that was never called is set up, as
    the first step would.

    Args:
        elbo: an objective with ``loss`` and ``loss_and_grads``, as all of Pyro's.
        model: a Pyro model.
        guide: a Pyro guide.
        args: arguments of model and guide.
        num_draws: at least 2.
        names: of the parameters wanted, as in the parameter store; by default all that a first
            evaluation of the loss meets. Leave out a ``control_var``, whose gradient is not that
            of the loss.
        vectorize: draw as one batch, which is much faster: each parameter of the guide gets
            a leading dimension of draws. For guides of the kind ``AutoContinuous`` without
            networks, ``Trace_ELBO`` or ``TraceMeanField_ELBO`` with one particle, and models that
            have no parameters and allow ``vectorize_particles``.
        chunk_size: draws at a time, as for :func:`gradient_variance`.
        kwargs: keyword arguments of model and guide.

    Returns:
        A :class:`GradientVariance` for each parameter, by name. A draw in which a parameter has no
        gradient counts as zero.

    Raises:
        ValueError: for ``num_draws < 2``, ``chunk_size < 1``, unknown or no ``names``, a parameter
            without a gradient in any draw, gradients that are not finite, or ``vectorize``
            where it does not apply.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro.infer import Trace_ELBO
        >>> from pyro.infer.autoguide import AutoNormal
        >>> pyro.set_rng_seed(0)
        >>> def model():
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(2.0))
        >>> found = elbo_gradient_variance(Trace_ELBO(), model, AutoNormal(model), num_draws=100)
        >>> sorted(found)
        ['AutoNormal.locs.x', 'AutoNormal.scales.x']
    """
    check_sizes(num_draws, chunk_size)
    elbo = copy.deepcopy(elbo)
    store = pyro.get_param_store()
    with store.scope(store.get_state()):
        parameters = _met_parameters(partial(elbo.loss, model, guide, *args, **kwargs))
        wanted = list(parameters if names is None else dict.fromkeys(names))
        unknown = [name for name in wanted if name not in parameters]
        if unknown:
            raise ValueError(
                f"Expected names among {', '.join(parameters)}, but got {', '.join(unknown)}"
            )
        if not wanted:
            raise ValueError("Expected a model or guide with parameters, but got none")
        gradients: Iterator[dict[str, Tensor]]
        if vectorize:
            loss = _VectorizedLoss(elbo, model, guide, parameters, args, kwargs)
            chunks = chunk_sizes(num_draws, chunk_size, parameters.values())
            gradients = (loss.gradients(wanted, draws) for draws in chunks)
        else:
            loss_and_grads = partial(elbo.loss_and_grads, model, guide, *args, **kwargs)
            gradients = _drawn_in_turn(loss_and_grads, parameters, wanted, num_draws)
        moments = {name: Moments(name) for name in wanted}
        with _gradients_kept(parameters.values()):
            for drawn in gradients:
                for name in wanted:
                    moments[name].add(drawn[name])
    return {name: moments[name].result(parameters[name].dtype) for name in wanted}


@contextmanager
def _gradients_kept(parameters: Collection[Tensor]) -> Iterator[None]:
    """Afterwards the parameters' ``.grad`` is as it was."""
    before = [value.grad for value in parameters]
    try:
        yield
    finally:
        for value, gradient in zip(parameters, before, strict=True):
            value.grad = gradient


def _met_parameters(loss: Callable[[], Any]) -> dict[str, Tensor]:
    """The unconstrained parameters, by name, that one evaluation of the loss meets."""
    with torch.no_grad(), poutine.trace(param_only=True) as capture:
        loss()
    sites: Any = capture.trace.nodes.items()
    return {name: site["value"].unconstrained() for name, site in sites}


def _drawn_in_turn(
    loss_and_grads: Callable[[], Any],
    parameters: dict[str, Tensor],
    wanted: list[str],
    num_draws: int,
) -> Iterator[dict[str, Tensor]]:
    """One draw's gradients ``(1, *shape)`` after another, left in ``.grad`` too."""
    missing = set(wanted)
    for _ in range(num_draws):
        for value in parameters.values():
            value.grad = None
        loss_and_grads()
        missing -= {name for name in missing if parameters[name].grad is not None}
        yield {name: _gradient_or_zero(parameters[name]).unsqueeze(0) for name in wanted}
    check_reached(sorted(missing), "loss")


def _gradient_or_zero(value: Tensor) -> Tensor:
    return torch.zeros_like(value) if value.grad is None else value.grad


class _VectorizedLoss:
    """The loss of many draws at once: the guide's parameters get a leading dimension of draws."""

    def __init__(self, elbo, model, guide, parameters: dict[str, Tensor], args, kwargs) -> None:
        _check_vectorizable(elbo, guide)
        addresses = {id(value): f"guide.{name}" for name, value in guide.named_parameters()}
        foreign = [name for name, value in parameters.items() if id(value) not in addresses]
        if foreign:
            raise ValueError(
                "Expected vectorize = False for parameters outside the guide, but got"
                f" {', '.join(foreign)}"
            )
        self.parameters, self.args, self.kwargs = parameters, args, kwargs
        self.addresses = {name: addresses[id(value)] for name, value in parameters.items()}
        self.elbo, self.module = elbo, elbo(model, guide)
        elbo.vectorize_particles, elbo.num_particles = True, 2  # draws are particles to Pyro
        elbo.max_plate_nesting = math.inf
        elbo._guess_max_plate_nesting(model, guide, args, kwargs)
        _check_allows_draws_in_front(elbo, model, guide, args, kwargs)
        _check_does_not_mix(model, guide, args, kwargs)

    def gradients(self, wanted: list[str], draws: int) -> dict[str, Tensor]:
        """Independent gradients ``(draws, *shape)`` by name."""
        self.elbo.num_particles = max(draws, 2)  # a single one would get no plate
        batch = (self.elbo.num_particles,) + (1,) * (self.elbo.max_plate_nesting - 1)
        leaves = {name: repeated(value, batch) for name, value in self.parameters.items()}
        substituted = {self.addresses[name]: leaf for name, leaf in leaves.items()}
        with pyro.get_param_store().scope():  # an empty one: modules prefer what it holds
            mean = functional_call(self.module, substituted, self.args, self.kwargs)
        total = mean * self.elbo.num_particles
        gradients = gradients_of("loss", total, {name: leaves[name] for name in wanted})
        return {
            name: gradient.reshape(-1, *self.parameters[name].shape)[:draws]
            for name, gradient in gradients.items()
        }


def _check_vectorizable(elbo, guide) -> None:
    if type(elbo) not in (Trace_ELBO, TraceMeanField_ELBO):
        given = f"the objective {type(elbo).__name__}: its particles may depend on each other"
    elif elbo.num_particles > 1:
        given = f"an objective with num_particles = {elbo.num_particles}"
    elif not isinstance(guide, AutoContinuous):
        given = f"the guide {type(guide).__name__}: it is no AutoContinuous"
    else:
        return
    raise ValueError(f"Expected vectorize = False for {given}")


@torch.no_grad()
def _check_allows_draws_in_front(elbo, model, guide, args, kwargs) -> None:
    """Raise a ``ValueError`` where shapes tell that draws would mix, or share a subsample."""
    before = get_rng_state()
    traces = [trace for pair in elbo._get_traces(model, guide, args, kwargs) for trace in pair]
    set_rng_state(before)
    sites = [item for trace in traces for item in trace.nodes.items() if "log_prob" in item[1]]
    for name, site in sites:
        subsampled = [
            frame.name
            for frame in site["cond_indep_stack"]
            if frame.full_size not in (None, frame.size)
        ]
        if subsampled:
            raise ValueError(
                "Expected vectorize = False for a model or guide that subsamples, but got"
                f" the plate {subsampled[0]!r}"
            )
        shape = tuple(site["log_prob"].shape)
        if len(shape) != elbo.max_plate_nesting or shape[0] != elbo.num_particles:
            raise ValueError(
                "Expected vectorize = False for a model or guide that does not allow"
                f" vectorize_particles, but at site {name!r} {elbo.num_particles} draws gave"
                f" log_prob the shape {shape}"
            )


@torch.no_grad()
def _check_does_not_mix(model, guide, args, kwargs) -> None:
    """Raise a ``ValueError`` where values tell that draws would mix."""
    found = Draws(model, guide, args, kwargs, vectorize=True).difference()
    if found is not None:
        raise ValueError(f"Expected vectorize = False, for as a batch {found}")
