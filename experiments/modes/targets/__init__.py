"""The posteriors and densities of the experiment, each with its truth."""

from __future__ import annotations

import functools
from collections.abc import Callable

from experiments.modes.targets import mixtures, posteriordb, regressions, simulators
from experiments.modes.targets.target import Evidence, Target

__all__ = ["TARGETS", "Evidence", "Target"]

TARGETS: dict[str, Callable[[], Target]] = {
    "gaussian_process": regressions.gaussian_process,
    "two_moons": simulators.two_moons,
    "radial_velocity": regressions.radial_velocity,
    "slcp": simulators.slcp,
    **{
        f"ten_normals_{dimension}{near}": functools.partial(mixtures.ten_normals, dimension, box)
        for near, box in (("", 50.0), ("_near", 10.0))
        for dimension in (2, 10, 20)
    },
    "star": mixtures.star,
    "robot_1": functools.partial(simulators.robot, 1),
    "robot_4": functools.partial(simulators.robot, 4),
    **posteriordb.POSTERIORDB,
    "gmm20": functools.partial(mixtures.published_normals, 20),
    "gmm100": functools.partial(mixtures.published_normals, 100),
    "forty_normals": mixtures.forty_normals,
    "student_20": functools.partial(mixtures.student_mixture, 20, 10, 20.0),
    "student_300": functools.partial(mixtures.student_mixture, 300, 20, 25.0),
    "many_well": mixtures.many_well,
    "funnel": mixtures.funnel,
    "breast_cancer": regressions.breast_cancer,
    "logistic_regression": regressions.logistic_regression,
    "needle": mixtures.needle,
}
"""Makers of the targets by their names."""
