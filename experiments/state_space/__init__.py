"""A state space model with a many-moded posterior, by amortized mixtures (sections 6.2.3, E.4)."""

from experiments.state_space.experiment import StateSpace

__all__ = ["StateSpace"]
