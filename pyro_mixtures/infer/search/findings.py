"""What a fit has to say about how far to trust it, in words: alarms and notes, the worst first."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_mixtures.distributions import MixtureDistribution
from pyro_mixtures.infer.search.starts import SHARE
from pyro_mixtures.numerics.pareto import largest_khat
from pyro_mixtures.numerics.weighing import Weighing, verdict

NOTABLE = 1e-3
"""Share of the evidence that an optimum outside has at least, by its Laplace approximation."""

OUTSIDE = 5.0
"""Nats by which the posterior's log density is above the mixture's at an optimum outside.

At optima of modes that were covered it was at most 1.6 above, in 22 fits of 11 posteriors; of
modes that were left out on purpose it found each one that had an optimum.
"""

MISSED = 0.05
"""Probability with which a mode of the basin that is told of is missed."""

RARE, MANY = 0.01, 0.1
"""Share of draws without a density, or of starts without an end, from which on it is told, and of
starts that were cut off, from which on it is an alarm."""

SHOWN = 5
"""Names of coordinates at most."""


ASCENT = 50
"""Evaluations that an ascent needs to find an optimum, in most densities."""


def trusted(weighing: Weighing) -> bool:
    """Whether importance weights can mend means and weights of modes."""
    return weighing.khat <= largest_khat(len(weighing.log_weights))


def weightless(count: int) -> Weighing:
    """What draws tell none of which has a density: that they are of no use."""
    return Weighing(
        khat=math.inf,
        effective_sample_size=0.0,
        elbo=-math.inf,
        elbo_error=math.nan,
        log_evidence=-math.inf,
        log_evidence_error=math.nan,
        log_weights=torch.full((count,), -math.log(count), dtype=torch.float64),
    )


def alarms(
    search: Any,
    density: Any,
    mixture: MixtureDistribution,
    weighing: Weighing,
    without_density: int,
) -> list[str]:
    """Why the posterior is not to be trusted, in words, the worst first.

    Args:
        search: that has ended.
        density: of the model.
        mixture: the posterior: that of the search, or what was made of it.
        weighing: of draws of the mixture.
        without_density: how many of these lie where the model has none.
    """
    count = len(weighing.log_weights)
    found: list[str] = []
    wide = [density.coordinate_names[index] for index in search.improper]
    improper = list(dict.fromkeys([*wide, *density.flat_coordinates]))
    if improper:
        found.append(
            f"the posterior looks improper, without end along {_some(improper)}: give it priors"
        )
    if not trusted(weighing):
        size = weighing.effective_sample_size
        found.append(verdict(weighing.khat, size, count))
    outside = optima_outside(search.optima, mixture, weighing.log_evidence)
    if len(outside):
        share = float(outside.logsumexp(0).sigmoid())  # of all, with what the mixture has
        found.append(
            f"{len(outside)} of {len(search.optima.values)} optima that the starts found lie"
            f" outside of the mixture, with about {percent(share)} of the evidence:"
            f" {_why_outside(search)}"
        )
    if search.converged < 1 - MANY and _cuts_starts_off(search):
        found.append(_cut_off(search))
    if without_density > RARE * count:
        found.append(
            f"{without_density} of {count} draws of the mixture lie where the model has no density"
        )
    if search.stopped == "interrupted":
        steps = len(search.elbos)
        found.append(f"interrupted after {steps} steps, before the mixture had settled")
    if search.stopped == "budget" and not trusted(weighing):
        found.append(_out_of_budget(search))
    return found


def notes(search: Any, density: Any, weighing: Weighing, without_density: int) -> list[str]:
    """What else is to be known, in words, and at last what cannot be known.

    Arguments are those of :func:`alarms`, without the mixture.
    """
    count = len(weighing.log_weights)
    evaluations = search.evaluations
    found: list[str] = []
    if trusted(weighing):
        found.append(verdict(weighing.khat, weighing.effective_sample_size, count))
    if 0 < without_density <= RARE * count:
        found.append(
            f"{without_density} of {count} draws of the mixture lie where the model has no"
            " density, which makes the ELBO -inf; importance weights leave them out"
        )
    if search.stopped == "budget" and trusted(weighing):
        found.append(_out_of_budget(search))
    if search.at_cap and search.num_components is None:
        found.append("the largest number of components is reached: more of them may fit better")
    unended = 1 - search.converged
    if RARE < unended <= MANY and _cuts_starts_off(search):
        found.append(_cut_off(search))
    if unended > RARE and not _cuts_starts_off(search):
        found.append(
            f"{percent(unended)} of the starts found no optimum, as in a funnel, on long ridges or"
            " kinks, or where a posterior is improper"
        )
    if evaluations.failed:
        found.append(
            f"{evaluations.failed} of {evaluations.count} points failed and were given no mass,"
            f" the first with {evaluations.first_failure}"
        )
    if density.unsampled_sites:
        found.append(
            f"{_some(density.unsampled_sites)} cannot be drawn from a prior: starts are within"
            " +-2, unconstrained, and modes farther out may be missed"
        )
    if not len(search.optima.values):
        found.append(
            "no start has led to an optimum with a Laplace approximation: whether there are any"
            " outside of the mixture is not known"
        )
    found.append(unknowable(len(search.starts)))
    return found


def _cuts_starts_off(search: Any) -> bool:
    """Whether the budget leaves ascents less than they need as a rule."""
    return SHARE * search.max_evaluations < ASCENT * len(search.starts)


def _cut_off(search: Any) -> str:
    return (
        f"{percent(1 - search.converged)} of the starts were cut off by the budget before they"
        " found an optimum, and modes may be missed: take a larger budget, or fewer starts"
    )


def _why_outside(search: Any) -> str:
    if search.num_components is not None:
        return "take more components, or a larger budget"
    if search.at_cap:
        return "more components are needed than there may be"
    reasons = {"budget": "budget too small", "interrupted": "the search has ended too early"}
    return reasons.get(search.stopped, "compare with a fit by another seed")


def _out_of_budget(search: Any) -> str:
    return (
        f"stopped by the budget of {search.max_evaluations} evaluations before the ELBO was flat:"
        " a larger one fits better, and may find more"
    )


def optima_outside(optima: Any, mixture: MixtureDistribution, log_evidence: float) -> Tensor:
    """Log masses, against the evidence, of optima where the mixture has next to no mass, ``(N,)``.

    Args:
        optima: with Laplace approximations.
        mixture: the posterior.
        log_evidence: of the model, or what the mixture shows of it.
    """
    masses: Tensor = optima.log_masses - log_evidence
    if not len(masses):
        return masses
    lack = optima.values - log_evidence - mixture.log_prob(optima.points)
    return masses[(masses > math.log(NOTABLE)) & (lack > OUTSIDE)]


def unknowable(num_starts: int) -> str:
    """What starts cannot show.

    A mode is found if a start lies in its basin. One whose basin holds a share b of the prior is
    missed by n starts with the probability (1 - b)^n, which is 0.05 for b = 1 - 0.05^(1 / n).

    Example:
        >>> print(unknowable(300))
        cannot be known: whether there are modes that no start leads to; of modes whose basin
        holds 0.99 % of the prior, 300 starts miss one in 20, and of smaller basins more
    """
    basin = 1 - MISSED ** (1 / num_starts)
    return (
        "cannot be known: whether there are modes that no start leads to; of modes whose basin"
        f" holds {percent(basin)} of the prior, {num_starts} starts miss one in"
        f" {round(1 / MISSED)}, and of smaller basins more"
    )


def percent(share: float) -> str:
    """In two digits, from 0.01 percent on.

    Example:
        >>> percent(0.00994), percent(0.234), percent(1.0)
        ('0.99 %', '23 %', '100 %')
    """
    digits = 0 if share >= 0.0995 else 1 if share >= 0.00995 else 2
    told = f"{100 * share:.{digits}f}"
    return f"{told.rstrip('0').rstrip('.') if digits else told} %"


def _some(names: list[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
