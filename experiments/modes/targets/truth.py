"""How the evidence was had: ``python -m experiments.modes.targets.truth [NAMES]``."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.distributions import Categorical

from experiments.modes.targets.target import Target

OPTIONS = {"dtype": torch.float64}


def axis(low: float, high: float, points: int) -> tuple[Tensor, float]:
    """Midpoints of equal cells, and the log of a cell's size."""
    size = (high - low) / points
    return low + size * (torch.arange(points, **OPTIONS) + 0.5), math.log(size)


def on_grid(
    target: Target, bounds: list[tuple[float, float]], points: int
) -> tuple[float, Tensor]:
    """The evidence and the weights of modes by the midpoint rule, one slab after another."""
    axes, sizes = zip(*(axis(low, high, points) for low, high in bounds), strict=True)
    sums = torch.full((len(target.mode_weights),), -math.inf, **OPTIONS)
    for first in axes[0]:
        rest = torch.cartesian_prod(*axes[1:]).reshape(-1, len(axes) - 1)
        z = torch.cat([first.expand(len(rest), 1), rest], -1)
        values, modes = target.log_density(z), target.mode_of(z)
        for mode in range(len(sums)):
            part = values[modes == mode].logsumexp(0)
            sums[mode] = torch.logaddexp(sums[mode], part)
    evidence = sums.logsumexp(0)
    return evidence.item() + sum(sizes), (sums - evidence).exp()


def mean_of_weights(log_weights: Tensor) -> tuple[float, float]:
    """The log of the mean of weights, and its standard error."""
    value = log_weights.logsumexp(0) - math.log(len(log_weights))
    ratios = (log_weights - value).exp()
    return value.item(), (ratios.std() / math.sqrt(len(ratios))).item()


class Proposal:
    """A mixture of Student t with five degrees of freedom, fitted to weighted points."""

    def __init__(self, points: Tensor, components: int, *, widen: float) -> None:
        found = GaussianMixture(components, random_state=0, reg_covar=1e-10, max_iter=200)
        scale = points.std(0)
        found.fit((points / scale).numpy())
        self.weights = torch.from_numpy(found.weights_)
        self.locs = torch.from_numpy(found.means_) * scale
        covariances = torch.from_numpy(found.covariances_) * scale * scale.unsqueeze(-1)
        self.roots = torch.linalg.cholesky(covariances) * widen

    def draw(self, count: int) -> Tensor:
        """Points, ``(count, D)``."""
        index = Categorical(self.weights).sample((count,))
        noise = torch.randn(count, self.locs.shape[-1], **OPTIONS)
        radius = torch.distributions.Chi2(torch.tensor(5.0, **OPTIONS)).sample((count, 1)) / 5
        white = (noise / radius.sqrt()).unsqueeze(-1)
        return self.locs[index] + (self.roots[index] @ white).squeeze(-1)

    def log_density(self, z: Tensor) -> Tensor:
        """Of points, ``(S,)``."""
        parts = [
            weight.log() + self._student(z - loc, root)
            for weight, loc, root in zip(self.weights, self.locs, self.roots, strict=True)
        ]
        return torch.stack(parts, -1).logsumexp(-1)

    @staticmethod
    def _student(offset: Tensor, root: Tensor) -> Tensor:
        dimension = offset.shape[-1]
        white = torch.linalg.solve_triangular(root, offset.T, upper=False)
        power = (5 + dimension) / 2
        constant = math.lgamma(power) - math.lgamma(2.5) - 0.5 * dimension * math.log(5 * math.pi)
        log_det = root.diagonal().log().sum()
        return constant - log_det - power * (white.square().sum(0) / 5).log1p()


def by_importance(
    log_density: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    components: int = 8,
    rounds: int = 8,
    count: int = 20_000,
    final: int = 1_000_000,
) -> tuple[float, float]:
    """Importance sampling from a mixture that is fitted to the density in some rounds.

    Args:
        log_density: zero mass outside of what the start's region is.
        start: points from which the first mixture is fitted, ``(N, D)``.
    """
    proposal = Proposal(start, 1, widen=1.5)
    for _ in range(rounds):
        z = proposal.draw(count)
        log_weights = log_density(z) - proposal.log_density(z)
        # few points must not become components of no width
        top = log_weights.topk(count // 100)[0][-1]
        index = Categorical(logits=log_weights.clamp(max=top)).sample((count,))
        proposal = Proposal(z[index], components, widen=1.1)
    parts = []
    for _ in range(final // count):
        z = proposal.draw(count)
        parts.append(log_density(z) - proposal.log_density(z))
    return mean_of_weights(torch.cat(parts))
