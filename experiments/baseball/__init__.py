"""Baseball: a 20-dimensional posterior by mean field and by mixtures (sections 6.2.2 and E.3)."""

from experiments.baseball.experiment import Baseball

__all__ = ["Baseball"]
