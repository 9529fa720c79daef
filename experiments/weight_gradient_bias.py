"""The error of the weight gradients of Pyro's mixture and of ours, without sampling noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import pyro.distributions as dist
import torch
from pyro.distributions.diag_normal_mixture import _MixDiagNormalSample
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from pyro_mixtures.distributions import MixtureOfDiagNormals

COSTS: dict[str, Callable[[Tensor], Tensor]] = {
    "z . z": lambda z: z.square().sum(-1),
    "sum z^3": lambda z: z.pow(3).sum(-1),
    "cos(sum z)": lambda z: z.sum(-1).cos(),
    "(z . z)^2": lambda z: z.square().sum(-1).square(),
    "product z": lambda z: z.prod(-1),
}


@dataclass
class WeightGradientBias:
    """Expected logit gradients of E f(z) for a mixture with K = 3 and D = 2, on a grid.

    Points of a grid are passed to the backward pass as samples, with q(z) grad f(z) dA as the
    incoming gradient: that integrates its expectation to rounding.
    """

    shift: float = 0.0
    """Added to all means."""

    def run(self) -> None:
        """Print the table."""
        torch.set_default_dtype(torch.float64)
        locs = torch.tensor([[-0.8, 0.3], [0.9, 0.7], [0.2, -1.1]]) + self.shift
        scales = torch.tensor([[0.7, 1.1], [1.0, 0.6], [0.8, 0.9]])
        logits = torch.tensor([0.3, -0.2, 0.1])
        side = torch.linspace(-10, 10, 401)
        grid = torch.cartesian_prod(side, side) + locs.mean(0)
        area = (side[1] - side[0]) ** 2
        print("Relative error of the expected logit gradient (K = 3, D = 2):\n")
        print("| cost | displacement | telescoping | Pyro |\n| --- | --- | --- | --- |")
        for name, cost in COSTS.items():
            exact = exact_gradient(cost, locs, scales, logits, grid, area)
            incoming = incoming_gradient(cost, locs, scales, logits, grid, area)
            answers = [
                our_gradient(transport, grid, incoming, locs, scales, logits)
                for transport in ("displacement", "telescoping")
            ]
            answers.append(pyro_gradient(grid, incoming, locs, scales, logits))
            errors = [((a - exact).norm() / exact.norm()).item() for a in answers]
            print(f"| {name} | " + " | ".join(f"{error:.1e}" for error in errors) + " |")


def exact_gradient(cost, locs, scales, logits, grid, area) -> Tensor:
    """Gradient of the integral of q f, by differentiating q."""
    logits = logits.clone().requires_grad_()
    q = MixtureSameFamily(Categorical(logits=logits), Independent(Normal(locs, scales), 1))
    (q.log_prob(grid).exp() * cost(grid) * area).sum().backward()
    return logits.grad


def incoming_gradient(cost, locs, scales, logits, grid, area) -> Tensor:
    """q(z) grad f(z) dA."""
    grid = grid.clone().requires_grad_()
    cost(grid).sum().backward()
    density = MixtureOfDiagNormals(locs, scales, logits).log_prob(grid.detach()).exp()
    return density.unsqueeze(-1) * grid.grad * area


def our_gradient(transport, grid, incoming, locs, scales, logits) -> Tensor:
    """What our backward pass makes of it."""
    logits = logits.clone().requires_grad_()
    q = MixtureOfDiagNormals(locs, scales, logits, transport=transport)
    q.reparameterize(grid).backward(incoming)
    return logits.grad


def pyro_gradient(grid, incoming, locs, scales, logits) -> Tensor:
    """What Pyro's makes of it."""
    probs = dist.MixtureOfDiagNormals(locs, scales, logits).probs
    context = SimpleNamespace(saved_tensors=(grid, scales, locs, logits, probs))
    return _MixDiagNormalSample.backward(context, incoming)[2]
