"""What ``python -m experiments conditional-prior`` does."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.conditional_prior.studies import STUDIES
from experiments.lab.comparison import Comparison


@dataclass
class ConditionalPrior(Comparison):
    """Lower halves of MNIST's digits given the upper ones, by conditional priors."""

    name = "conditional_prior"
    all_studies = STUDIES
