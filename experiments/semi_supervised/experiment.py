"""What ``python -m experiments semi-supervised`` does."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.lab.comparison import Comparison
from experiments.semi_supervised.studies import STUDIES


@dataclass
class SemiSupervised(Comparison):
    """Digits of MNIST of which few have labels, by a model of labels and styles."""

    name = "semi_supervised"
    all_studies = STUDIES
