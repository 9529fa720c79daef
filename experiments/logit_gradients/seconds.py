"""Time of one forward and backward pass by each estimator, as a user would run it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from experiments.lab.timing import medians
from experiments.logit_gradients.paper import PaperMixtureOfDiagNormals
from pyro_mixtures.distributions import AVFMixtureOfDiagNormals, MixtureOfDiagNormals
from pyro_mixtures.estimators import blended, expectation, marginalized
from pyro_mixtures.samples.blending import Blending

SEPARATION = 2.0
"""Root mean square of the distances between means, in standard deviations."""

CALLS: dict[str, tuple[str, str]] = {
    "score": ("hybrid", "displacement"),
    "displacement": ("pathwise", "displacement"),
    "telescoping": ("pathwise", "telescoping"),
    "implicit": ("pathwise", "implicit"),
    "paper": ("pathwise", "paper"),
    "clustered": ("clustered", "displacement"),
    "stratified": ("stratified", "displacement"),
    "implicit, by matrices": ("implicit", "displacement"),
    "graves": ("graves", "displacement"),
    "gumbel_soft": ("gumbel_soft", "displacement"),
    "gumbel_hard": ("gumbel_hard", "displacement"),
}
"""Estimators of the package and transports, by the names of the tables."""


def square(z: Tensor) -> Tensor:
    """The cost, which takes next to no time."""
    return z.square().sum(-1)


def places(count: int, dim: int, separation: float, generator: torch.Generator) -> Tensor:
    """Random means, ``(K, D)``, of pairs whose distances have a given root mean square."""
    locs = torch.randn(count, dim, dtype=torch.float64, generator=generator)
    locs = locs - locs.mean(0)
    # the mean square over the pairs is 2 K / (K - 1) times that of the distances from the mean
    spread = 2 / (count - 1) * locs.square().sum()
    return locs * (separation / spread.sqrt())


def steps(count: int, dim: int, samples: int) -> dict[str, Callable[[], object]]:
    """A forward and backward pass by each estimator, with all parameters' gradients, float32."""
    generator = torch.Generator().manual_seed(0)
    parameters = {
        "locs": places(count, dim, SEPARATION, generator).float(),
        "coord_scale": torch.ones(count, dim),
        "component_logits": torch.zeros(count),
    }

    def leaves() -> dict[str, Any]:
        return {name: value.clone().requires_grad_() for name, value in parameters.items()}

    def step(estimator: str, transport: str) -> Callable[[], object]:
        def run() -> None:
            q = PaperMixtureOfDiagNormals(**leaves(), transport=transport, validate_args=False)
            expectation(q, square, estimator=estimator, num_samples=samples).backward()

        return run

    def sum_of_components() -> None:
        q = MixtureOfDiagNormals(**leaves(), validate_args=False)
        marginalized(q, square, num_samples=samples).backward()

    blending = Blending()
    control = torch.zeros(2, count, dim)

    def blending_step() -> None:
        q = MixtureOfDiagNormals(**leaves(), validate_args=False)
        chosen = partial(blended, blending=blending)
        expectation(q, square, estimator=chosen, num_samples=samples).backward()
        blending.learn()

    def learning() -> None:
        control_var = control.clone().requires_grad_()
        q = AVFMixtureOfDiagNormals(**leaves(), control_var=control_var, validate_args=False)
        expectation(q, square, estimator="pathwise", num_samples=samples).backward()

    found: dict[str, Callable[[], object]] = {name: step(*call) for name, call in CALLS.items()}
    found["marginalized"] = sum_of_components
    return {**found, "blended": blending_step, "learned hub": learning}


def seconds(count: int, dim: int, samples: int, repeats: int) -> dict[str, float]:
    """Medians over alternating repeats."""
    torch.manual_seed(0)
    return medians(steps(count, dim, samples), repeats)
