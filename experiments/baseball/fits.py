"""Guides fitted to convergence and judged against NUTS: the table of the experiment."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoContinuous, AutoDiagonalNormal, init_to_median
from pyro.optim import Adam  # type: ignore[attr-defined]
from torch import Tensor
from torch.distributions import Distribution

from experiments.baseball.model import log_joint, model
from experiments.lab.full_batch import Schedule, train
from experiments.lab.run import Run
from pyro_mixtures.diagnostics import Evaluation
from pyro_mixtures.infer import AutoDiagonalNormalMixture, BaselinedTrace_ELBO


class AutoPyroMixture(AutoDiagonalNormalMixture):
    """The peer: the same guide with the mixture that Pyro ships, by Pyro's own ``forward``."""

    forward = AutoContinuous.forward
    sample_latent = AutoContinuous.sample_latent

    def get_posterior(self, *args, **kwargs):
        """Pyro's mixture of the same parameters."""
        return dist.MixtureOfDiagNormals(self.locs, self.coord_scale, self.component_logits)


@dataclass(frozen=True)
class Candidate:
    """A row of the table."""

    name: str
    num_components: int
    peer: bool = False

    def guide(self) -> AutoContinuous:
        """A guide at its starting point."""
        if self.name == MEAN_FIELD.name:
            return AutoDiagonalNormal(model, init_loc_fn=init_to_median)
        family = AutoPyroMixture if self.peer else AutoDiagonalNormalMixture
        return family(model, self.num_components, init_loc_fn=init_to_median)


MEAN_FIELD = Candidate("mean field", 1)
K5, K20 = Candidate("mixture, K = 5", 5), Candidate("mixture, K = 20", 20)
PEER_K5 = Candidate("Pyro's mixture, K = 5", 5, peer=True)
PEER_K20 = Candidate("Pyro's mixture, K = 20", 20, peer=True)


def start(candidate: Candidate, particles: int, seed: int) -> tuple[AutoContinuous, Any]:
    """A guide at its starting point and its objective."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    guide = candidate.guide()
    guide()
    objective = Trace_ELBO if candidate.peer else BaselinedTrace_ELBO
    several = particles > 1
    elbo = objective(num_particles=particles, vectorize_particles=several, max_plate_nesting=1)
    return guide, elbo


def fit(
    run: Run, candidate: Candidate, schedule: Schedule, particles: int, seed: int
) -> tuple[AutoContinuous, list[dict[str, Any]]]:
    """A trained guide, on the CPU, and its rows of ``metrics.csv``."""
    guide, elbo = start(candidate, particles, seed)
    rows = train(
        run,
        candidate.name,
        guide.parameters(),
        lambda: elbo.differentiable_loss(model, guide),
        lambda: {"elbo": log_weights(guide, 4000).mean().item()},
        schedule,
    )
    return guide.cpu(), rows


def step(candidate: Candidate, particles: int) -> Callable[[], float]:
    """A step of ``SVI``, to be timed."""
    guide, elbo = start(candidate, particles, seed=0)
    guide._pyro_name = candidate.name  # parameters of its own beside other guides'
    return SVI(model, guide, Adam({"lr": 5e-3}), elbo).step


def approximation(guide: AutoContinuous) -> Distribution:
    """The distribution in the unconstrained space; for the peer, ours of the same density."""
    if isinstance(guide, AutoDiagonalNormalMixture):
        return AutoDiagonalNormalMixture.get_posterior(guide)
    return guide.get_posterior()


@torch.no_grad()
def log_weights(guide: AutoContinuous, count: int) -> Tensor:
    """``log p(z, y) - log q(z)`` of samples of the guide in the unconstrained space."""
    posterior = approximation(guide)
    z = posterior.sample((count,))
    return log_joint(z.double()) - posterior.log_prob(z).double()


@torch.no_grad()
def judge(guide: AutoContinuous, reference: dict[str, Any], seed: int) -> dict[str, float]:
    """The figures of a row of the table."""
    pyro.set_rng_seed(seed)
    weights = log_weights(guide, 200_000)
    whole = Evaluation.from_log_weights(weights)
    blocks = Evaluation.from_log_weights(weights.reshape(20, 10_000).T)
    bounds = blocks.iw_bound  # 20 estimates of the 10,000-sample bound
    posterior = approximation(guide)
    mean = _error(posterior.mean.numpy() - reference["mean"], reference["std"])
    std = _error(posterior.stddev.numpy() - reference["std"], reference["std"])
    return {
        "elbo": whole.elbo.item(),
        "elbo_se": whole.elbo_error.item(),
        "iw_bound": bounds.mean().item(),
        "iw_bound_se": bounds.std().item() / math.sqrt(bounds.numel()),
        "khat": blocks.khat[0].item(),
        "mean_error": mean,
        "std_error": std,
    }


def _error(difference: NDArray[numpy.float64], scale: NDArray[numpy.float64]) -> float:
    """Root mean square over the coordinates, in posterior standard deviations."""
    return float(numpy.sqrt(numpy.mean((difference / scale) ** 2)))
