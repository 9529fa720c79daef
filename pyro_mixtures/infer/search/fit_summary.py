"""The report of a fit."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field

from torch import Tensor

from pyro_mixtures.infer.search.modes import Mode

WIDTH = 99
MOST_MODES = 10
MOST_NUMBERS = 6
"""Of a mode's location, in its line."""


@dataclass(frozen=True)
class FitSummary:
    r"""Figures of a fit, and in words how far to trust it; ``print`` shows it as a report.

    Attributes:
        elbo: :math:`E_q[\log p(z, y) - \log q(z)]`, in nats; ``-inf`` where a draw lies where the
            model has no density.
        elbo_error: its standard error.
        log_evidence: by importance sampling, with Pareto-smoothed weights.
        log_evidence_error: its standard error.
        khat: shape :math:`\hat k` of the tail of the importance weights.
        effective_sample_size: what the draws are worth, of their number.
        num_samples: draws from which all this is.
        num_components: of the mixture.
        modes: the heaviest first.
        evaluations: of the log density at a point, by the search and what came after it.
        without_mass: how many of these had a log density of ``-inf``.
        failed: how many of these had none: NaN, ``+inf`` or an error.
        seconds: that the search took.
        alarms: why not to trust the posterior, in words, the worst first.
        notes: what else is to be known, in words.
        symmetries: permutations of coordinates under which components are the same, in words.
    """

    elbo: float
    elbo_error: float
    log_evidence: float
    log_evidence_error: float
    khat: float
    effective_sample_size: float
    num_samples: int
    num_components: int
    modes: list[Mode] = field(repr=False)
    evaluations: int
    without_mass: int
    failed: int
    seconds: float
    alarms: list[str]
    notes: list[str] = field(repr=False)
    symmetries: list[str] = field(repr=False, default_factory=list)

    @property
    def passed_checks(self) -> bool:
        """Whether no check has raised an alarm. It does not say that every mode is found."""
        return not self.alarms

    def __str__(self) -> str:
        size = f"{self.effective_sample_size:.0f} of {self.num_samples}"
        points = f"{self.evaluations}, of which {self.without_mass} without mass"
        figures = {
            "ELBO": f"{self.elbo:.3f} ± {self.elbo_error:.3f}",
            "log evidence": f"{self.log_evidence:.3f} ± {self.log_evidence_error:.3f}",
            "k-hat": f"{self.khat:.2f}",
            "effective sample size": size,
            "components": str(self.num_components),
            "evaluations": f"{points} and {self.failed} failed",
            "seconds": f"{self.seconds:.1f}",
        }
        lines = [f"{name:<24}{told}" for name, told in figures.items()]
        lines += ["", *_table(self.modes), "", *_bullets("!", self.alarms)]
        return "\n".join([*lines, *_bullets("-", [*self.symmetries, *self.notes])])


def _table(modes: list[Mode]) -> list[str]:
    """A line for each of the heaviest modes."""
    number = f"{len(modes)} modes" if len(modes) > 1 else "1 mode"
    lines = [f"{number}: weight, median ± spread of each site"]
    for index, mode in enumerate(modes[:MOST_MODES]):
        error = f" ± {mode.weight_error:.3f}" if mode.weight_error >= 0 else ""
        start = f"  {index:<3}{mode.weight:.3f}{error}  "
        lines.append(start + _location(mode.location, mode.spread))
    rest = modes[MOST_MODES:]
    if rest:
        lines.append(f"  and {len(rest)} more, with {sum(mode.weight for mode in rest):.2g}")
    return lines


def _location(location: dict[str, Tensor], spread: dict[str, Tensor]) -> str:
    """The first numbers, each with its spread."""
    parts: list[str] = []
    left = MOST_NUMBERS
    for name, values in location.items():
        if left <= 0:
            return ", ".join([*parts, "..."])
        pairs = zip(values.flatten().tolist(), spread[name].flatten().tolist(), strict=True)
        numbers = [f"{value:.3g} ± {width:.2g}" for value, width in pairs]
        shown, left = numbers[:left], left - len(numbers)
        if len(shown) < len(numbers):
            shown = [*shown, "..."]
        told = ", ".join(shown)
        parts.append(f"{name} [{told}]" if values.dim() else f"{name} {told}")
    return ", ".join(parts)


def _bullets(mark: str, texts: list[str]) -> list[str]:
    """Each text as lines behind a mark."""
    return [
        line
        for text in texts
        for line in textwrap.wrap(
            text, WIDTH, initial_indent=f"{mark} ", subsequent_indent="  ", break_on_hyphens=False
        )
    ]
