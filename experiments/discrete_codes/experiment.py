"""What ``python -m experiments discrete-codes`` does."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.discrete_codes.studies import STUDIES
from experiments.lab.comparison import Comparison


@dataclass
class DiscreteCodes(Comparison):
    """Gradients through discrete variables: by enumeration, and in autoencoders of MNIST."""

    name = "discrete_codes"
    all_studies = STUDIES
