"""Four estimators of the same gradient: ELBO curves over many seeds, as one batch (Fig. 3b)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from experiments.baseball.model import COORDINATES, log_joint
from experiments.lab.full_batch import Schedule, train
from experiments.lab.run import Run
from pyro_mixtures.distributions import MixtureOfDiagNormals

ESTIMATORS = (
    "score, no baseline",
    "hybrid, no baseline",
    "score",
    "hybrid",
    "pathwise",
    "clustered",
)
BASELINE_DECAY = 0.9


@dataclass
class Fits:
    """Independent fits of ``seeds`` mixtures, a batch, with one estimator.

    ``score`` takes the whole gradient from the score function; ``hybrid`` takes the components'
    from Eq. 12 and the weights' from the score function; ``pathwise`` and ``clustered`` are the
    distribution's. Where the cost multiplies a score, a decaying average of it, one for each seed,
    is subtracted, unless the name says otherwise.
    """

    estimator: str
    seeds: int
    num_components: int

    def __post_init__(self) -> None:
        generator = torch.Generator("cpu").manual_seed(0)  # the same start for all estimators
        shape = (self.seeds, self.num_components, len(COORDINATES))
        start = torch.tensor([-1.0, 2.0] + [-1.0] * (len(COORDINATES) - 2))
        noise = torch.randn(shape, generator=generator, device=generator.device)
        locs = start + 0.1 * noise.to(start)
        self.locs = locs.requires_grad_()
        self.raw_scale = torch.full(shape, 0.1).expm1().log().requires_grad_()
        self.logits = torch.zeros(shape[:-1]).requires_grad_()
        with torch.no_grad():  # the averages start from an independent evaluation
            q = self.mixture()
            z = q.sample()
            self.baseline = log_joint(z) - q.log_prob(z)  # (seeds,)
        if self.estimator.endswith("no baseline"):
            self.baseline.zero_()

    @property
    def parameters(self) -> list[Tensor]:
        """Leaf tensors to train."""
        return [self.locs, self.raw_scale, self.logits]

    def mixture(self) -> MixtureOfDiagNormals:
        """The batch of guides."""
        plain = self.estimator not in ("pathwise", "clustered")
        return MixtureOfDiagNormals(
            self.locs,
            softplus(self.raw_scale),
            self.logits,
            weight_gradient="hybrid" if plain else self.estimator,
        )

    def loss(self) -> Tensor:
        """Minus the ELBO by one sample for each seed, summed, with the estimator's gradient."""
        q = self.mixture()
        if self.estimator.startswith("score"):
            z = q.sample()
            log_q = q.log_prob(z)
            elbo, score = (log_joint(z) - log_q).detach(), log_q
        else:
            z = q.rsample()
            log_q, score, entropy = q.score_parts(z)
            elbo = log_joint(z) - entropy
        cost = elbo.detach()
        surrogate = elbo + (cost - self.baseline) * (score - _constant(score))
        if not self.estimator.endswith("no baseline"):
            self.baseline += (1 - BASELINE_DECAY) * (cost - self.baseline)
        return -surrogate.sum()

    def evaluate(self) -> dict[str, Any]:
        """Mean and standard deviation over the seeds of the ELBO, by 100 samples each."""
        q = self.mixture()
        z = q.sample((100,))
        elbos = (log_joint(z) - q.log_prob(z)).mean(0)  # (seeds,)
        return {"elbo": elbos.mean().item(), "elbo_std": elbos.std().item()}


def _constant(score: Tensor | int) -> Tensor | int:
    return score.detach() if isinstance(score, Tensor) else score


def curve(
    run: Run, estimator: str, seeds: int, num_components: int, schedule: Schedule
) -> list[dict[str, Any]]:
    """Rows of ``metrics.csv`` for one estimator."""
    torch.manual_seed(0)
    fits = Fits(estimator, seeds, num_components)
    state = {"baseline": fits.baseline}
    name = f"curve {estimator}"
    return train(run, name, fits.parameters, fits.loss, fits.evaluate, schedule, state)
