"""Deep Markov models of chorales, by mixtures at each time step (sections 6.2.4, E.5)."""

from experiments.dmm.experiment import DMM

__all__ = ["DMM"]
