"""Expectations that a fit has to have: an augmented Lagrangian of samples."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from pyro_mixtures.numerics.validation import check_at_least

STUCK = 0.5
"""A violation that is more than this part of an earlier one has hardly fallen."""

SURE = 3.0
"""Standard errors from which on a violation is no noise."""


class Violation(NamedTuple):
    """What an update has found.

    Args:
        mean: of the violations, ``(M,)``.
        error: standard error of it, ``(M,)``.
        multipliers: after the update, ``(M,)``.
        penalty: after the update.
    """

    mean: Tensor
    error: Tensor
    multipliers: Tensor
    penalty: float

    def __str__(self) -> str:
        return (
            f"Violations {_rounded(self.mean)} +- {_rounded(self.error)}, multipliers"
            f" {_rounded(self.multipliers)}"
        )

    @property
    def norm(self) -> float:
        """Length of the mean, without what its noise adds to the square."""
        return math.sqrt(max(0.0, float((self.mean.square() - self.error.square()).sum())))

    @property
    def is_sure(self) -> bool:
        """Whether some mean is no noise."""
        return bool((self.mean.abs() > SURE * self.error).any())


class AugmentedLagrangian:
    r"""Costs that lead expectations to given values.

    For the constraints :math:`v(\theta) = E_{q_\theta}[T(z)] - c = 0` the loss gets

    .. math:: \lambda^T v(\theta) + \frac{\gamma}{2} \| v(\theta) \|^2

    with multipliers that an update moves by :math:`\gamma v`, and a penalty :math:`\gamma` that
    grows where the violation does not fall fast enough. The square of a mean over samples is too
    large by its variance, and would punish that. Here each half of the samples is weighed by the
    mean of the other: the gradient is unbiased.

    :func:`train_constrained` is the loop around it.

    Args:
        penalty: the first :math:`\gamma`.
        growth: factor of the penalty, at updates at which the violation is more than
            ``decrease`` times that before, on the same side, and no noise.
        decrease: see there, in (0, 1).
        patience: so many updates in a row with growing penalty and a violation that hardly falls
            (to half) mean that the constraints cannot be met.

    Attributes:
        history: what each update has found; a list of
            :class:`~pyro_mixtures.infer.constrained.Violation`.

    Raises:
        ValueError: for numbers outside of their range, and for violations of another shape, fewer
            than two samples, or not finite; by :meth:`update`, for constraints that cannot be
            met.

    Reference:
        Loaiza-Ganem, Gao and Cunningham, *Maximum Entropy Flow Networks* (2017),
        https://arxiv.org/abs/1701.03504.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> loc = torch.tensor([1.0], requires_grad=True)
        >>> lagrangian = AugmentedLagrangian(penalty=2.0)
        >>> z = loc + torch.randn(1000, 1)
        >>> lagrangian.costs(z - 3.0).mean().backward()  # E[z] = 3: the violation is -2
        >>> loc.grad.round()
        tensor([-4.])
        >>> lagrangian.update(z.detach() - 3.0).multipliers.round()
        tensor([-4.])
    """

    def __init__(
        self,
        *,
        penalty: float = 1.0,
        growth: float = 2.0,
        decrease: float = 0.5,
        patience: int = 6,
    ) -> None:
        for name, value, low, high in (
            ("penalty", penalty, 0.0, math.inf),
            ("growth", growth, 1.0, math.inf),
            ("decrease", decrease, 0.0, 1.0),
        ):
            if not (isinstance(value, (int, float)) and low < value < high):
                raise ValueError(f"Expected {low} < {name} < {high}, but got {value!r}")
        check_at_least(1, patience=patience)
        self.penalty, self.growth = float(penalty), growth
        self.decrease, self.patience = decrease, patience
        self.multipliers: Tensor | None = None
        self.history: list[Violation] = []
        self._grown = 0

    def costs(self, violations: Tensor) -> Tensor:
        """What to add to the cost of each sample.

        Args:
            violations: :math:`T(z) - c` of independent samples, with their gradients, ``(S, M)``.

        Returns:
            Costs ``(S,)``. The gradient of their mean is that of the two terms. (Their values are
            not those of the terms. A score term is multiplied by them as by any cost.)
        """
        self._check(violations)
        mean, size = violations.detach(), len(violations)
        first, second = mean[: size // 2].mean(0), mean[size // 2 :].mean(0)  # (M,)
        others = torch.cat([second.expand(size // 2, -1), first.expand(size - size // 2, -1)])
        weights = self.penalty * others  # (S, M)
        if self.multipliers is not None:
            weights = weights + self.multipliers.to(weights)
        return (weights * violations).sum(-1)

    @torch.no_grad()
    def update(self, violations: Tensor) -> Violation:
        """Move the multipliers, and let the penalty grow if need be.

        Args:
            violations: of fresh samples, ``(S, M)``; of many, as their noise goes into the
                multipliers.

        Returns:
            What was found.
        """
        self._check(violations)
        mean, error = violations.mean(0), violations.std(0) / len(violations) ** 0.5
        before = torch.zeros_like(mean) if self.multipliers is None else self.multipliers
        self.multipliers = before + self.penalty * mean
        found = Violation(mean, error, self.multipliers, self.penalty)
        self._grown = self._grown + 1 if self._is_slow(found) else 0
        if self._grown:
            self.penalty *= self.growth
            found = Violation(mean, error, self.multipliers, self.penalty)
        self.history.append(found)
        self._check_progress(found)
        return found

    def _is_slow(self, found: Violation) -> bool:
        """Whether the violation is on one side still, and hardly smaller."""
        if not (self.history and found.is_sure):
            return False
        last = self.history[-1]
        same_side = float((found.mean * last.mean).sum()) > 0
        return same_side and found.norm > self.decrease * last.norm

    def _check_progress(self, found: Violation) -> None:
        if self._grown < self.patience:
            return
        first = self.history[-1 - self.patience]
        if found.norm > STUCK * first.norm:
            raise ValueError(
                "Expected constraints that can be met, but the multipliers run away: over"
                f" {self.patience} updates the violation went from {first.norm:.3g} to"
                f" {found.norm:.3g}, while the penalty grew to {self.penalty:.3g}. {found}: look"
                " for constraints that contradict each other or the support, or take more steps"
                " between updates, or more patience"
            )

    def _check(self, violations: Tensor) -> None:
        size = None if self.multipliers is None else len(self.multipliers)
        expected = "(S, M)" if size is None else f"(S, {size})"
        if not isinstance(violations, Tensor) or violations.dim() != 2 or len(violations) < 2:
            given = getattr(violations, "shape", type(violations).__name__)
            raise ValueError(
                f"Expected violations of shape {expected} with S > 1, but got {given}"
            )
        if size not in (None, violations.shape[1]):
            raise ValueError(
                f"Expected violations of shape {expected}, but got {tuple(violations.shape)}"
            )
        if not bool(violations.isfinite().all()):
            raise ValueError("Expected finite violations, but got some that are not")


def _rounded(x: Tensor) -> list[float]:
    return [float(f"{value:.3g}") for value in x.tolist()]


def train_constrained(
    draw: Callable[[int], tuple[Tensor, Tensor]],
    optimizer: Optimizer,
    *,
    tolerance: float = 1e-3,
    num_updates: int = 20,
    num_steps: int = 200,
    num_samples: int = 64,
    num_checked: int = 10_000,
    lagrangian: AugmentedLagrangian | None = None,
) -> AugmentedLagrangian:
    r"""Minimize a mean cost of samples under constraints on other means of them.

    .. math:: \min_\theta E_{q_\theta}[f(z)] \quad \text{such that} \quad E_{q_\theta}[T(z)] = c

    Maximum entropy is :math:`f = \log q_\theta`. Steps of the optimizer alternate with updates of
    the multipliers, until each violation is known to within the tolerance and is no more than two
    of its standard errors above that.

    Args:
        draw: from a number S to the costs ``(S,)`` and the violations :math:`T(z) - c`,
            ``(S, M)``, of so many fresh, independent samples.
        optimizer: of torch, of all parameters. It is not made anew between updates, so that a
            schedule of learning rates is the caller's.
        tolerance: of each violation.
        num_updates: of the multipliers, at most.
        num_steps: of the optimizer before each of them.
        num_samples: S in each step.
        num_checked: S for an update; of a variance of one the standard error is then
            ``num_checked ** -0.5``.
        lagrangian: one with other options, or that of an earlier run, to go on.

    Returns:
        The Lagrangian, whose ``history`` tells how it went; its last entry has the violations that
        are left. A warning tells of those that are too large.

    Raises:
        ValueError: for constraints that cannot be met
            (:class:`~pyro_mixtures.infer.AugmentedLagrangian`), and costs of another shape.

    Example:
        >>> from pyro_mixtures import MixtureOfDiagNormals
        >>> _ = torch.manual_seed(0)
        >>> locs = torch.tensor([[-1.0], [1.5]], requires_grad=True)
        >>> log_scale, logits = torch.zeros(2, 1, requires_grad=True), torch.zeros(2)
        >>> def draw(count):
        ...     q = MixtureOfDiagNormals(locs, log_scale.exp(), logits, weight_gradient="pathwise")
        ...     z = q.rsample((count,))
        ...     return q.log_prob(z), torch.cat([z, z.square() - 1], -1)
        >>> optimizer = torch.optim.Adam([locs, log_scale], lr=0.02)
        >>> lagrangian = train_constrained(draw, optimizer, tolerance=0.03, num_steps=100)
        >>> bool(lagrangian.history[-1].mean.abs().max() < 0.06)
        True
    """
    counts = {"num_updates": num_updates, "num_steps": num_steps}
    check_at_least(1, **counts)
    check_at_least(2, num_samples=num_samples, num_checked=num_checked)
    if not (isinstance(tolerance, (int, float)) and 0 < tolerance < math.inf):
        raise ValueError(f"Expected a finite tolerance > 0, but got {tolerance!r}")
    lagrangian = AugmentedLagrangian() if lagrangian is None else lagrangian
    for _ in range(num_updates):
        for _ in range(num_steps):
            costs, violations = draw(num_samples)
            added = lagrangian.costs(violations)
            if costs.shape != added.shape:
                raise ValueError(
                    f"Expected draw to return costs of shape {tuple(added.shape)}, but got"
                    f" {tuple(costs.shape)}"
                )
            optimizer.zero_grad()
            (costs + added).mean().backward()
            optimizer.step()
        with torch.no_grad():
            found = lagrangian.update(draw(num_checked)[1])
        met = (found.mean.abs() <= tolerance + 2 * found.error) & (found.error <= tolerance)
        if bool(met.all()):
            return lagrangian
    warnings.warn(
        f"After {num_updates} updates the constraints do not hold to within {tolerance:g}."
        f" {lagrangian.history[-1]}: go on with a lower learning rate or more num_samples, and"
        " with more num_checked where the errors are larger than the tolerance",
        stacklevel=2,
    )
    return lagrangian
