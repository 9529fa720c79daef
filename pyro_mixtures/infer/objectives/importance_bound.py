"""The importance weighted bound: the logarithm of the mean of p / q over particles."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_mixtures.infer.free_bits import FREE_BITS
from pyro_mixtures.infer.objectives.objective import Loss, Objective, felt
from pyro_mixtures.infer.objectives.terms import Term, Terms, is_drawn, plates, sum_but
from pyro_mixtures.numerics.precision import double


@dataclass(frozen=True)
class Part:
    """What a run of guide and model has for the logarithms.

    Args:
        log_weights: ``(T, *units)`` of all particles, or ``(1, *units)`` of one.
        held: what in them is no density of a drawn sample: all of the model, and of the guide
            what it observes, ``pyro.factor`` and ``Delta``; by draws.
        score: the score functions of each particle, summed within the units, or None.
        scale: of the units.
        outside: terms that are in no logarithm.
    """

    log_weights: Tensor
    held: Tensor
    score: Tensor | None
    scale: float | Tensor
    outside: tuple[Term, ...]


@dataclass(frozen=True)
class LogWeights:
    r"""Log importance weights of the particles of a step.

    Args:
        values: :math:`\log w_t`, ``(T, *units)``, with a logarithm of the mean for each unit.
        parts: of the runs that they come from.
    """

    values: Tensor
    parts: tuple[Part, ...]

    @property
    def scale(self) -> float | Tensor:
        """Of the units."""
        return self.parts[0].scale

    @property
    def scores(self) -> Tensor | None:
        """Score functions, ``(T, *units)``; None if no site has one."""
        if all(part.score is None for part in self.parts):
            return None
        zeros = (torch.zeros_like(part.log_weights) for part in self.parts)
        pairs = zip(self.parts, zeros, strict=True)
        return torch.cat([zero if part.score is None else part.score for part, zero in pairs])

    def log_means(self) -> Tensor:
        """The bound of each unit, ``(*units)``."""
        return self.values.logsumexp(0) - math.log(self.values.shape[0])

    def rest(self) -> Tensor:
        """The mean of log p - log q over particles of what is in no unit."""
        terms = [term for part in self.parts for term in part.outside]
        rest: Any = sum(term.sign * term.log_prob.sum() for term in terms)
        return rest / self.values.shape[0]

    def costs(self) -> Tensor:
        """What each unit's score functions meet with one particle, ``(*units)``, detached."""
        return (self.scale * self.log_means() + self.rest()).detach()

    def bound(self) -> Tensor:
        """Of all units, and what is in none."""
        return (self.scale * self.log_means()).sum() + self.rest()


class _SameSubsamples(Messenger):
    """Has all particles of a step draw the same subsamples, for their weights meet one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[tuple[str, int, int], Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and msg["value"] is None:
            msg["value"] = self.known.get(_plate(msg))
            msg["done"] = msg["value"] is not None

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            self.known[_plate(msg)] = msg["value"]


def _plate(msg: Any) -> tuple[str, int, int]:
    return msg["name"], msg["fn"].size, msg["fn"].subsample_size


class ImportanceBound(Objective):
    r"""The logarithm of the mean weight :math:`w = p / q` over particles.

    Score functions S of sites get :math:`(L - L_{-t}) \nabla S_t` with the bound L and what it is
    with the geometric mean of the other weights in place of :math:`w_t`; with one particle, L and
    all that is outside of it less the decaying average of that over earlier steps.

    All that lies in the plates of ``_units`` is summed within the logarithms of their elements.
    """

    def _units(self, terms: Terms) -> dict[str, int | None]:
        """The plates whose elements have a logarithm of their own."""
        raise NotImplementedError

    def _bound(self, terms: Sequence[Terms]) -> Tensor:
        return self._log_weights(terms).bound()

    def _losses(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Iterator[Loss]:
        weights = self._log_weights(list(self._get_traces(model, guide, args, kwargs)))
        bound = weights.bound()
        if (scores := weights.scores) is None:
            yield Loss(-bound, -bound)
            return
        if self.num_particles > 1:
            credit = weights.scale * credits(weights.values.detach())  # (T, *units)
        else:
            costs = weights.costs()
            if "bound" not in self._averages:
                with torch.no_grad():
                    again = list(self._get_traces(model, guide, args, kwargs))
                    self._start_averages({"bound": self._log_weights(again).costs()})
            credit = (costs - self._average("bound", costs)).unsqueeze(0)
            self._update_averages({"bound": costs})
        yield Loss(-bound, -bound - (felt(credit) * scores).sum())

    def _get_traces(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Iterator[Any]:
        same = _SameSubsamples()
        return super()._get_traces(same(model), same(guide), args, kwargs)

    def _log_weights(self, terms: Sequence[Terms]) -> LogWeights:
        parts = tuple(self._part(each) for each in terms)
        if self.num_particles > 1:
            units = sorted(self._units(terms[0]))
            check_outside([part.outside for part in parts], terms[0].particles_dim, units)
        return LogWeights(torch.cat([part.log_weights for part in parts]), parts)

    def _part(self, terms: Terms) -> Part:
        check_no_free_bits(terms)
        units = self._units(terms)
        inside: list[Term] = []
        outside: list[Term] = []
        for term in terms.all:
            shares = units.keys() <= term.plates.keys() and self._belongs(terms, term)
            (inside if shares else outside).append(term)
        scale = terms.common_scale(inside, units.values())
        kept = {terms.particles_dim, *units.values()}
        log_weights = held = torch.zeros(())
        for term in inside:
            log_prob = term.sign * sum_but(term.log_prob / scale, self._draws(terms, kept))
            log_weights = log_weights + log_prob
            if term.sign > 0 or not is_drawn(terms.guide_trace.nodes[term.name]):
                held = held + log_prob
        values = terms.particles_first(self._over_draws(terms, log_weights))
        score: Any = None
        for name, each in terms.scores.items():
            check_inside(name, plates(terms.guide_trace.nodes[name]), units)
            one = terms.particles_first(sum_but(each, kept)).expand_as(values)
            score = one if score is None else score + one
        return Part(values, held, score, scale, tuple(outside))

    def _belongs(self, terms: Terms, term: Term) -> bool:
        """Whether a term in the units' plates has to be within the logarithms."""
        return True

    def _draws(self, terms: Terms, kept: set[int | None]) -> set[int | None]:
        """The dimensions of what is averaged in the logarithms, and of units."""
        return kept

    def _over_draws(self, terms: Terms, log_weights: Tensor) -> Tensor:
        """Log weights of particles, from those of draws."""
        return log_weights


def check_no_free_bits(terms: Terms) -> None:
    """Raise a ``NotImplementedError`` for sites whose scale is that of ``FreeBits``."""
    free = sorted(name for name, site in terms.guide_sites.items() if site["infer"].get(FREE_BITS))
    if free:
        raise NotImplementedError(
            "Expected no FreeBits around an objective that takes a logarithm over samples, which"
            f" has no rate as a part, but got it for {', '.join(free)}: use BaselinedTrace_ELBO or"
            " MarginalizedMixture_ELBO"
        )


def credits(log_weights: Tensor) -> Tensor:
    r"""What is due to each particle's own weight, :math:`L - L_{-t}`, in the same dtype.

    It is about 1 / T, which single precision would lose beside an L of hundreds. Where all other
    weights are zero, it is L alone: any baseline leaves the gradient unbiased but an infinite one.

    Args:
        log_weights: ``(T, *units)``, of at least two particles.
    """
    (values,) = double(log_weights)
    bound, baseline = values.logsumexp(0) - math.log(len(values)), leave_one_out(values)
    return (bound - baseline.masked_fill(baseline == -math.inf, 0)).to(log_weights)


def leave_one_out(log_weights: Tensor) -> Tensor:
    r"""Bounds in which a particle's weight is replaced by the geometric mean of the others.

    .. math::
        L_{-t} = \log \frac1T \Big( \sum_{s \ne t} w_s
        + \exp \frac{1}{T - 1} \sum_{s \ne t} \log w_s \Big)

    Args:
        log_weights: ``(T, *units)``, of at least two particles.

    Returns:
        ``(T, *units)``; no element depends on its own weight.

    Reference:
        Mnih and Rezende, *Variational Inference for Monte Carlo Objectives* (2016), Eq. 8 to 10.
    """
    count = log_weights.shape[0]
    start = torch.full_like(log_weights[:1], -math.inf)
    before = torch.cat([start, log_weights.logcumsumexp(0)[:-1]])
    after = torch.cat([log_weights.flip(0).logcumsumexp(0)[:-1].flip(0), start])
    # sums of the others alone: a difference would cancel where one weight is all of the total
    sums = torch.cat([torch.zeros_like(start), log_weights.cumsum(0)[:-1]])
    sums = sums + torch.cat([log_weights.flip(0).cumsum(0)[:-1].flip(0), torch.zeros_like(start)])
    others = torch.logaddexp(before, after)
    return torch.logaddexp(others, sums / (count - 1)) - math.log(count)


def check_inside(name: str, found: Collection[str], units: Collection[str]) -> None:
    """Raise an error for a site with a score function that belongs to no unit.

    Raises:
        NotImplementedError: with its name.
    """
    if missing := sorted(set(units).difference(found)):
        raise NotImplementedError(
            f"Expected site {name!r}, which has a score function, to lie in the plate(s)"
            f" {missing}, whose elements have a logarithm each: use BaselinedTrace_ELBO or"
            " MarginalizedMixture_ELBO"
        )


def check_outside(
    outside: Sequence[Sequence[Term]], particles_dim: int | None, units: Sequence[str]
) -> None:
    """Raise an error if what is in no logarithm differs between particles.

    Args:
        outside: the terms of each run.
        particles_dim: of the particles' plate, if they are in one run.
        units: the plates whose elements have a logarithm.

    Raises:
        NotImplementedError: with the name of a site.
    """
    names = [{each.name for each in run} for run in outside]
    if changing := sorted(set[str]().union(*names) - names[0].intersection(*names)):
        raise NotImplementedError(
            f"Expected the same sites outside of the plate(s) {units} for each particle, but got"
            f" {changing} for some of them: use num_particles=1 or BaselinedTrace_ELBO"
        )
    for same in zip(*outside, strict=True):
        if particles_dim is None:
            differ = any(not torch.equal(each.log_prob, same[0].log_prob) for each in same)
        else:
            low, high = same[0].log_prob.aminmax(dim=particles_dim)
            differ = bool((low != high).any())
        if differ:
            raise NotImplementedError(
                f"Expected site {same[0].name!r} to depend on no sample, outside of the plate(s)"
                f" {units}, whose elements have a logarithm each: with several particles its"
                " values would mix within the logarithms; use num_particles=1 or an ELBO"
                " (BaselinedTrace_ELBO, MarginalizedMixture_ELBO)"
            )
