"""Flows on mixtures: densities, reverse KL, maximum entropy, and an inverse problem."""

from experiments.flows.experiment import Flows

__all__ = ["Flows"]
