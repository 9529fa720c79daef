"""Semi-supervised learning of digits by a model of labels and styles."""

from experiments.semi_supervised.experiment import SemiSupervised

__all__ = ["SemiSupervised"]
