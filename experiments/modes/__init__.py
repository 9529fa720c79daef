"""Posteriors with several modes: what each way of inference finds of them, and at what cost."""

from experiments.modes.experiment import Modes

__all__ = ["Modes"]
