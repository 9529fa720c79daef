"""Batches of points: runs of a model in the first way that gives what single points give."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_mixtures.infer.search.model_runs import ModelRuns

WAYS = ("plate", "vmap", "loop")
"""To evaluate a batch, from the fastest to the slowest."""

REPETITIONS = 3
"""Further runs at each point, of which one differs if the density is random."""

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-7}
"""Relative difference of two ways to evaluate one density."""

ROUNDING = 1e3
"""Units of rounding by which a point may differ in two batches of one size, of one arithmetic."""


class ModelBatches:
    """The log density of a model for a batch of points, in the fastest way that is right.

    Values and gradients are compared with single evaluations, which finds out a model that mixes
    the points of a batch. What is not finite alone is expected to be that among others.

    Args:
        runs: of the model.
        points: at which the ways are compared, ``(P, D)`` with at least four.
        way: "plate", "vmap" or "loop"; by default the first of these that is right.
        gradients: whether these are asked for, and compared, too.

    Attributes:
        way: in which batches are evaluated.
        refused: why each of the faster ways is not taken, by its name.
        flat: whether the points' gradients are all zero, ``(D,)``; true without gradients.

    Raises:
        ValueError: for a log density that is random, and for a way that the model does not allow.
    """

    def __init__(
        self, runs: ModelRuns, points: Tensor, way: str | None = None, *, gradients: bool = True
    ) -> None:
        self._runs, self._gradients = runs, gradients
        self.refused: dict[str, str] = {}
        alone = [self._compared(runs.log_density, point) for point in points]
        self.flat = torch.stack([gradient == 0 for _, gradient in alone]).all(0)
        self._check_repeated(points, alone)
        self.way = self._find_way(points, alone, way)

    def __call__(self, z: Tensor) -> Tensor:
        """Log densities ``(S,)`` of points ``(S, D)``, differentiable."""
        return self._evaluated(self.way, z)

    def _compared(
        self, log_density: Callable[[Tensor], Tensor], z: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of points, or of one: the log density and its gradient, zero where none is asked for."""
        if self._gradients:
            return with_gradient(log_density, z)
        return log_density(z), torch.zeros_like(z)

    @torch.no_grad()
    def _check_repeated(self, points: Tensor, alone: list[tuple[Tensor, Tensor]]) -> None:
        for point, (value, _) in zip(points, alone, strict=True):
            for _ in range(REPETITIONS):
                again = self._runs.log_density(point)
                if not self._equal(again, value):
                    raise ValueError(
                        "Expected a log density that is the same in each run of the model, but got"
                        f" {value.item()} and {again.item()} at one point: draw random numbers by"
                        " pyro.sample only, hide no random sites by a block, and switch dropout"
                        " off"
                    )

    def _find_way(
        self, points: Tensor, alone: list[tuple[Tensor, Tensor]], asked: str | None
    ) -> str:
        for way in WAYS if asked is None else (asked,):
            reason = self._difference(way, points, alone)
            if reason is None:
                break
            self.refused[way] = reason
        if way in self.refused:
            raise ValueError(
                f"Expected a model that can be evaluated with way = {way!r}, but got one of which"
                f" {self.refused[way]}"
            )
        return way

    def _difference(
        self, way: str, points: Tensor, alone: list[tuple[Tensor, Tensor]]
    ) -> str | None:
        """What is wrong with a way, or None if values and gradients are those of single points.

        Two sizes, since one may by chance be that of another dimension of the model. In a third
        batch the others of a point are other ones, which should make no difference at all.
        """
        found = []
        for batch in (points[1:], points, points[[0, 1, 1, 1]]):
            try:
                found.append(self._compared(lambda z: self._evaluated(way, z), batch))
            except Exception as error:  # whatever a model does with shapes that it does not know
                line = (str(error).splitlines() or [""])[0]
                return f"a batch raises {type(error).__name__}: {line}"
        for (values, gradients), expected in zip(found, (alone[1:], alone), strict=False):
            for row, (value, gradient) in enumerate(expected):
                if not self._equal(values[row], value):
                    return (
                        f"one point of {len(values)} has the log density {values[row].item()}, and"
                        f" {value.item()} alone"
                    )
                if not self._equal(gradients[row], gradient):
                    return f"one point of {len(values)} has another gradient than alone"
        _, usual, changed = found
        rounding = ROUNDING * torch.finfo(self._runs.sites.dtype).eps
        pairs = zip(changed, usual, strict=True)  # of values, and of gradients
        if not all(_close(one[0], other[0], rounding) for one, other in pairs):
            return "the log density of a point depends on the other points of a batch"
        return None

    def _equal(self, first: Tensor, second: Tensor) -> bool:
        return _close(first, second, TOLERANCE[self._runs.sites.dtype])

    def _evaluated(self, way: str, z: Tensor) -> Tensor:
        if way == "plate":
            return self._runs.log_density(z)
        if way == "vmap":
            return self._runs.mapped_log_density(z)
        return torch.stack([self._runs.log_density(point) for point in z])


def _close(first: Tensor, second: Tensor, tolerance: float) -> bool:
    """Of one point's values, or of its gradients, relative to the largest."""
    same = (first == second) | (first.isnan() & second.isnan())
    return bool((same | ((first - second).abs() <= tolerance * (1 + second.abs().max()))).all())


def with_gradient(log_density: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    """Of points, or of one."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        values = log_density(z)
        if not values.requires_grad:
            return values, torch.zeros_like(z)
        (gradient,) = torch.autograd.grad(values.sum(), z)
    return values.detach(), gradient
