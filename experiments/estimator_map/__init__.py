"""Which estimator of the weights' gradient has the least variance, and where."""

from experiments.estimator_map.experiment import EstimatorMap

__all__ = ["EstimatorMap"]
