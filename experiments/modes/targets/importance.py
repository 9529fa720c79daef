"""Evidence by importance sampling from a mixture that is fitted to the density itself."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.distributions import Categorical, Chi2, MultivariateNormal

from experiments.modes.targets.target import Target

DEGREES = 5.0
OPTIONS: dict[str, Any] = {"dtype": torch.float64}


@dataclass(frozen=True)
class Kind:
    """How to sample a target.

    Args:
        copies: modes that a symmetry makes equal; one of them is sampled.
        components: of the proposal.
        by_chains: fit the proposal to chains, which see tails that a few weighted draws miss.
    """

    copies: int = 1
    components: int = 8
    by_chains: bool = False


def mean_of_weights(log_weights: Tensor) -> tuple[float, float]:
    """The log of the mean of weights, and its standard error."""
    value = log_weights.logsumexp(0) - math.log(len(log_weights))
    ratios = (log_weights - value).exp()
    return value.item(), (ratios.std() / math.sqrt(len(ratios))).item()


class Proposal:
    """A mixture of Student t, ``(K,)``, ``(K, D)`` and ``(K, D, D)``."""

    def __init__(self, weights: Tensor, locs: Tensor, roots: Tensor) -> None:
        self.weights, self.locs, self.roots = weights, locs, roots

    @staticmethod
    def fitted(points: Tensor, components: int, *, widen: float) -> Proposal:
        """The mixture of points, ``(N, D)``, by EM."""
        found = GaussianMixture(components, random_state=0, reg_covar=1e-10, max_iter=200)
        scale = points.std(0)
        found.fit((points / scale).numpy())
        covariances = torch.from_numpy(found.covariances_) * scale * scale.unsqueeze(-1)
        locs = torch.from_numpy(found.means_) * scale
        return Proposal(
            torch.from_numpy(found.weights_), locs, torch.linalg.cholesky(covariances) * widen
        )

    def draw(self, count: int) -> Tensor:
        """Points, ``(count, D)``."""
        index = Categorical(self.weights).sample((count,))
        noise = torch.randn(count, self.locs.shape[-1], **OPTIONS)
        radius = Chi2(torch.tensor(DEGREES, **OPTIONS)).sample((count, 1)) / DEGREES
        white = (noise / radius.sqrt()).unsqueeze(-1)
        return self.locs[index] + (self.roots[index] @ white).squeeze(-1)

    def log_density(self, z: Tensor) -> Tensor:
        """Of points, ``(S,)``."""
        parts = [
            weight.log() + _student(z - loc, root)
            for weight, loc, root in zip(self.weights, self.locs, self.roots, strict=True)
        ]
        return torch.stack(parts, -1).logsumexp(-1)


def _student(offset: Tensor, root: Tensor) -> Tensor:
    dimension = offset.shape[-1]
    white = torch.linalg.solve_triangular(root, offset.mT, upper=False)
    power = (DEGREES + dimension) / 2
    constant = math.lgamma(power) - math.lgamma(DEGREES / 2)
    constant = constant - 0.5 * dimension * math.log(DEGREES * math.pi)
    return (
        constant - root.diagonal().log().sum() - power * (white.square().sum(0) / DEGREES).log1p()
    )


@torch.no_grad()
def by_importance(
    log_density: Callable[[Tensor], Tensor],
    proposal: Proposal,
    components: int,
    *,
    count: int = 20_000,
    final: int = 400_000,
) -> tuple[float, float]:
    """The log of a density's integral and its standard error.

    Args:
        log_density: ``(S, D) -> (S,)``.
        proposal: the first; eight more are fitted, each to the weighted draws of the last.
        components: of those.
        count: draws of each round.
        final: draws of the last proposal, from which the result is.
    """
    for _ in range(8):
        proposal = Proposal.fitted(
            _reweighted(log_density, proposal, count), components, widen=1.1
        )
    return _from(log_density, proposal, count, final)


@torch.no_grad()
def by_chains(
    log_density: Callable[[Tensor], Tensor],
    proposal: Proposal,
    components: int,
    *,
    count: int = 10_000,
    final: int = 600_000,
) -> tuple[float, float]:
    """The same, with proposals fitted to the ends of Metropolis-Hastings chains.

    One step in four is a draw of the proposal, the others are steps of the form of a component.
    """
    z = _reweighted(log_density, proposal, count)
    value = log_density(z)
    for share in (4, 2, 1.33, 1):
        for step in range(40):
            if step % 4:
                index = Categorical(proposal.weights).sample((count,))
                noise = proposal.roots[index] @ torch.randn(count, z.shape[-1], 1, **OPTIONS)
                moved = z + (0.1, 0.2, 0.45, 0.9)[step % 4] * noise.squeeze(-1)
                reverse = torch.zeros(count, **OPTIONS)
            else:
                moved = proposal.draw(count)
                reverse = proposal.log_density(z) - proposal.log_density(moved)
            changed = log_density(moved)
            accepted = changed - value + reverse > torch.rand(count, **OPTIONS).log()
            z = torch.where(accepted.unsqueeze(-1), moved, z)
            value = torch.where(accepted, changed, value)
        proposal = Proposal.fitted(z, round(components / share), widen=1.1)
    return _from(log_density, proposal, count, final)


def _reweighted(log_density: Callable[[Tensor], Tensor], proposal: Proposal, count: int) -> Tensor:
    z = proposal.draw(count)
    log_weights = log_density(z) - proposal.log_density(z)
    # few points must not become components of no width
    top = log_weights.topk(count // 100)[0][-1]
    return z[Categorical(logits=log_weights.clamp(max=top)).sample((count,))]


def _from(
    log_density: Callable[[Tensor], Tensor], proposal: Proposal, count: int, final: int
) -> tuple[float, float]:
    parts = []
    for _ in range(final // count):
        z = proposal.draw(count)
        parts.append(log_density(z) - proposal.log_density(z))
    return mean_of_weights(torch.cat(parts))


def by_annealing(target: Target, *, count: int = 2000, steps: int = 100) -> tuple[float, float]:
    """Annealed importance sampling from the Laplace approximation of a target with one mode.

    Each step is a trajectory of Hamiltonian Monte Carlo in the coordinates in which that is white.

    Reference:
        Neal, *Annealed Importance Sampling* (2001).
    """
    start = target.prior_draws(1, torch.Generator().manual_seed(1))[0]
    _, loc, precision = climb(target, start)
    root = torch.linalg.inv(torch.linalg.cholesky(precision)).mT  # (D, D)
    volume = root.diagonal().log().sum() + 0.5 * target.dimension * math.log(2 * math.pi)

    def ratio(white: Tensor) -> Tensor:
        """The log of the density over that of the approximation."""
        return target.log_density(loc + white @ root.mT) + 0.5 * white.square().sum(-1) + volume

    def path(white: Tensor, power: float) -> tuple[Tensor, Tensor]:
        """The log density between both, and its gradient."""
        with torch.enable_grad():
            white = white.requires_grad_()
            value = power * ratio(white) - 0.5 * white.square().sum(-1)
            (gradient,) = torch.autograd.grad(value.sum(), white)
        return value.detach(), gradient

    white = torch.randn(count, target.dimension, **OPTIONS)
    log_weights = torch.zeros(count, **OPTIONS)
    for step in range(steps):
        with torch.no_grad():
            log_weights = log_weights + ratio(white) / steps
        white = _trajectory(functools.partial(path, power=(step + 1) / steps), white)
    return mean_of_weights(log_weights)


def _trajectory(
    path: Callable[[Tensor], tuple[Tensor, Tensor]], start: Tensor, *, leaps: int = 8
) -> Tensor:
    """Ends of Hamiltonian trajectories, or the starts where those are rejected."""
    size = 0.8 * start.shape[-1] ** -0.25
    velocity = torch.randn_like(start)
    value, gradient = path(start.detach().clone())
    before = value - 0.5 * velocity.square().sum(-1)
    white = start
    for _ in range(leaps):
        velocity = velocity + 0.5 * size * gradient
        white = (white + size * velocity).detach()
        value, gradient = path(white)
        velocity = velocity + 0.5 * size * gradient
    after = value - 0.5 * velocity.square().sum(-1)
    accepted = after - before > torch.rand_like(before).log()
    return torch.where(accepted.unsqueeze(-1), white, start).detach()


def climb(target: Target, z: Tensor) -> tuple[float, Tensor, Tensor]:
    """The optimum that L-BFGS finds from a point: its log density, itself and its precision."""
    z = z.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [z], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-8
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -target.log_density(z.unsqueeze(0)).sum()
        value.backward()
        return value

    optimizer.step(loss)
    z = z.detach()
    precision = -torch.autograd.functional.hessian(
        lambda x: target.log_density(x.unsqueeze(0)).sum(), z
    )
    return target.log_density(z.unsqueeze(0)).item(), z, precision


def evidence(target: Target, kind: Kind, *, starts: int = 40, **sizes: int) -> tuple[float, float]:
    """Of a target whose modes are copies of one, from the highest optimum of some starts.

    Args:
        target: whose evidence is wanted.
        kind: its symmetry, and how it is sampled.
        starts: draws of the prior from which L-BFGS climbs.
        sizes: ``count`` and ``final`` of :func:`by_importance` or :func:`by_chains`.
    """
    found = []
    for start in target.prior_draws(starts, torch.Generator().manual_seed(1)):
        value, z, precision = climb(target, start)
        root, info = torch.linalg.cholesky_ex(precision)
        if info == 0 and math.isfinite(value):
            found.append((value, z, precision))
    _, z, precision = max(found, key=lambda optimum: optimum[0])
    mode = target.mode_of(z.unsqueeze(0))

    def within(points: Tensor) -> Tensor:
        value = torch.cat([target.log_density(part) for part in points.split(1000)])
        return torch.where(target.mode_of(points) == mode, value, -math.inf)

    first = MultivariateNormal(z, precision_matrix=precision).sample((2000,))
    proposal = Proposal.fitted(first, 1, widen=1.5)
    sample = by_chains if kind.by_chains else by_importance
    value, error = sample(within, proposal, kind.components, **sizes)
    return value + math.log(kind.copies), error
