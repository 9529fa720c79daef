"""One look for each estimator, the same in all figures."""

from __future__ import annotations

STYLES: dict[str, tuple[str, str, str]] = {
    "score": ("0.45", "o", "S"),
    "displacement": ("C0", "s", "D"),
    "telescoping": ("C2", "^", "T"),
    "pairwise": ("C4", "v", "L"),
    "radial": ("#006d5b", "<", "R"),
    "implicit": ("C1", "D", "I"),
    "paper": ("C3", "X", "P"),
    "clustered": ("C9", "P", "C"),
    "blended": ("#d4a000", "*", "B"),
    "learned hub": ("C6", "h", "H"),
    "stratified": ("C5", ">", ""),
    "marginalized": ("C7", "p", ""),
    "gumbel_soft": ("C1", "o", ""),
    "gumbel_hard": ("C3", "s", ""),
}
"""Colour, marker and letter."""

LABELS = {
    "score": "score (hybrid)",
    "pairwise": "pairwise (lines)",
    "implicit": "implicit (graves)",
    "paper": "paper's field, corrected",
    "blended": "clustered and blended",
}


def label(name: str) -> str:
    """What a legend says."""
    return LABELS.get(name, name)
