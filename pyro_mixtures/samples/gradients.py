"""The backward pass of a mixture's samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.components.base import Components, Weighting
from pyro_mixtures.numerics.score_use import warn_unused
from pyro_mixtures.samples.blending import Draws
from pyro_mixtures.samples.groups import Grouping
from pyro_mixtures.samples.record import SampleRecord
from pyro_mixtures.samples.weights import surely_one_group, within_group


class Rule(NamedTuple):
    """How the weights get their gradient.

    Args:
        weight_gradient: as for :class:`~pyro_mixtures.distributions.MixtureDistribution`.
        transport: the field that moves weight; None if no weight is to be learned.
        learns: whether that field has parameters that are to be learned.
        draws: gets both gradients, if transport and score function are blended.
        inside: whether the samples are known to be inside of their support.
        num_parameters: of the components. What follows are the groups and, if they are blended,
            the transport's shares in them, where a graph is recorded to run with other values or
            ``torch.func`` hides them; else the record knows its groups.
    """

    weight_gradient: str
    transport: Callable[..., Tensor] | None
    learns: bool
    draws: Draws | None
    inside: bool
    num_parameters: int


def sample_gradients(
    known: SampleRecord,
    rule: Rule,
    z: Tensor,
    grad: Tensor,
    logits: Tensor,
    *tensors: Tensor,
    used: bool | None = None,
) -> tuple[Tensor, ...]:
    r"""Gradients of the logits and of the components' parameters from those at the samples.

    .. math::
        \nabla_{\mathrm{logit}_j} = \pi_j \sum_s \Big( A_{sj}
        - \sum_{k \in C} \frac{\pi_k}{\pi_C} A_{sk} \Big), \qquad j \in C

    with the contributions A of the transport. C are all components, or the group of j where a
    score term does the rest.

    Args:
        known: of the samples; its densities serve if ``z`` is its own.
        rule: how the weights get their gradient.
        z: ``(*B, S, D)``.
        grad: gradient at the samples, ``(*B, S, D)``.
        logits: ``(*B, K)``.
        tensors: the components' parameters, and what ``rule`` says.
        used: whether a score term does what is left to it: False if not, None if there is none or
            that is not known.
    """
    if not known.components.any_batch and z.dim() - 2 > len(known.components.batch_shape):
        rows = zip(z, grad, logits, *tensors, strict=True)
        each = [sample_gradients(known, rule, *row, used=used) for row in rows]
        return tuple(torch.stack(gradients) for gradients in zip(*each, strict=True))
    parameters, passed = tensors[: rule.num_parameters], tensors[rule.num_parameters :]
    itself = z is known.z
    components = known.components.rebuilt(*parameters)
    place = z if rule.inside else components.inside(z)
    densities = known.known_densities if itself and place is z else None
    groups = None
    if used and rule.weight_gradient == "clustered":
        groups = passed[0] if passed else known.groups
    alone = not used and logits.shape[-1] > 1
    weigh = rule.transport is not None and (alone or groups is not None)
    if used is False:
        _check_alone(components, known.grouping, rule, *passed[:1])
    transport = rule.transport if weigh else None
    compiled = components.compiled(place, grad)
    found: tuple[tuple[Tensor, ...], Tensor | None] | None = None
    if compiled is not None:
        found = compiled.sample_gradients(logits, place, grad, densities, groups, transport)
    here = SampleRecord(components, logits, place, known.grouping, densities)
    if found is None:
        precision = torch.promote_types(logits.dtype, torch.float32)
        found = _by_torch(here.cast(), rule, grad, groups, weigh, precision)
    (by_logits, *gradients), contributions = found
    if rule.draws is not None and groups is not None and contributions is not None:
        shares = passed[1] if passed else rule.draws.shares(groups)
        by_logits = by_logits * shares.to(by_logits)
        if itself and not torch.compiler.is_compiling():  # what is told has no place in a graph
            rule.draws.tell_transport(here.transported(contributions, groups))
    return _typed((by_logits, *gradients), (logits, *parameters))


def _by_torch(
    here: SampleRecord,
    rule: Rule,
    grad: Tensor,
    groups: Tensor | None,
    weigh: bool,
    precision: torch.dtype,
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """Gradients of the logits and of the parameters, and the contributions of the weights."""
    dtype = here.log_prob.dtype
    weighting = None
    if weigh:
        within = within_group(here.log_weights, groups)
        weighting = Weighting(rule.transport, within, precision, rule.learns)
    gradients, contributions = here.components.pullback(here, grad.to(dtype), weighting)
    if weighting is None or contributions is None:
        return (torch.zeros_like(here.logits), *gradients), None
    total = contributions.sum(-2, keepdim=True)  # (*B, 1, K)
    # of a component without weight, far away, it may have overflown
    total = total.masked_fill((here.log_weights == -math.inf).unsqueeze(-2), 0)
    average = (weighting.within.to(total) @ total.mT).squeeze(-1)  # (*B, K or 1)
    by_logits = here.log_weights.exp() * (total.squeeze(-2) - average)
    return (by_logits, *gradients), contributions


def _typed(gradients: tuple[Tensor, ...], parameters: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    pairs = zip(gradients, parameters, strict=False)  # the last ones may go without
    return tuple(
        gradient
        if gradient.dtype == parameter.dtype and gradient.shape == parameter.shape
        else gradient.to(parameter.dtype).reshape(parameter.shape)
        for gradient, parameter in pairs
    )


def _check_alone(
    components: Components, grouping: Grouping, rule: Rule, groups: Tensor | None = None
) -> None:
    """Warn of a loss that leaves the score term to the samples, or refuse if they cannot bear it.

    Raises:
        NotImplementedError: for components that cannot exchange weight.
    """
    if rule.transport is None:
        return
    if rule.weight_gradient == "hybrid":
        try:
            components.check(exchange=True)
        except (NotImplementedError, ValueError) as error:
            raise NotImplementedError(
                "The loss does not use the score term of a mixture with weight_gradient='hybrid',"
                " as Trace_ELBO, TraceEnum_ELBO, BaselinedTrace_ELBO and ImportanceWeighted_ELBO"
                f" do, and its components have no transport. {error}"
            ) from error
        warn_unused()
        return
    labels = grouping.labels if groups is None else groups
    if rule.draws is not None or not surely_one_group(labels):
        warn_unused()
