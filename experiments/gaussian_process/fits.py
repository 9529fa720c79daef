"""One fit: a Normal of full covariance whose gradients come from one of five estimators."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from experiments.gaussian_process.data import monthly_co2
from experiments.gaussian_process.model import Regression
from experiments.lab.full_batch import Schedule, train
from pyro_mixtures.distributions import AVFMultivariateNormal, OMTMultivariateNormal

ROWS = "AVF rows, M = 5"
NUM_ROTATIONS = {"RT": 0, "OMT": 0, "AVF, M = 1": 1, "AVF, M = 5": 5, ROWS: 5}
"""M of each estimator: none where nothing is adapted."""

INITIAL_SCALE = 0.1
CONTROL_SCALE = 0.1


@dataclass(frozen=True)
class Setting:
    """An estimator and Adam's settings, for the control variate its own ones."""

    estimator: str
    learning_rate: float
    beta: float = 0.9
    control_learning_rate: float | None = None
    control_beta: float | None = None

    @property
    def name(self) -> str:
        """All of it in a word, for tables and the names of files."""
        told = f"{self.estimator}, lr {self.learning_rate:g}, beta {self.beta:g}"
        if self.control_learning_rate is None:
            return told
        return f"{told}, control lr {self.control_learning_rate:g}, beta {self.control_beta:g}"


class Fit:
    """A Normal over the whitened latent values, and point estimates of the hyperparameters.

    The Cholesky factor is ``exp(log_scale)`` times a unit lower triangular matrix, as in Pyro's
    guides. The amplitude of the noise starts at the standard deviation of the series.

    Args:
        regression: the model.
        estimator: one of :data:`NUM_ROTATIONS`.
    """

    def __init__(self, regression: Regression, estimator: str) -> None:
        self.regression, self.estimator = regression, estimator
        y, rank = regression.y, NUM_ROTATIONS[estimator]
        start = regression.log_hyperparameters()
        start[-1] = 0.0
        self.hyperparameters = start.requires_grad_()
        self.loc = torch.zeros_like(y).requires_grad_()
        self.log_scale = torch.full_like(y, INITIAL_SCALE).log().requires_grad_()
        self.lower = torch.zeros_like(regression.jitter).requires_grad_()
        noise = CONTROL_SCALE * torch.randn(2, rank, len(y)).to(y)
        if estimator == ROWS:
            noise[0] = 0  # B: at first the plain gradient
        self.control_var = noise.requires_grad_() if rank else None

    def groups(self, setting: Setting) -> list[dict[str, Any]]:
        """Adam's parameter groups."""
        own = [self.loc, self.log_scale, self.lower, self.hyperparameters]
        groups: list[dict[str, Any]] = [{"params": own, "betas": (setting.beta, 0.999)}]
        if self.control_var is not None:
            betas = (setting.control_beta, 0.999)
            learning_rate = setting.control_learning_rate
            groups.append({"params": [self.control_var], "lr": learning_rate, "betas": betas})
        return groups

    def scale_tril(self) -> Tensor:
        """The Cholesky factor, ``(N, N)``."""
        unit = self.lower.tril(-1) + torch.eye(len(self.loc)).to(self.lower)
        return self.log_scale.exp().unsqueeze(-1) * unit

    def posterior(self) -> MultivariateNormal:
        """The Normal whose ``rsample`` carries the estimator's gradient."""
        return posterior(self.estimator, self.loc, self.scale_tril(), self.control_var)

    def loss(self) -> Tensor:
        """Minus the ELBO by one sample."""
        q = self.posterior()
        return -self.regression.log_joint(q.rsample(), self.hyperparameters) - q.entropy()

    def elbo(self) -> Tensor:
        """The ELBO, exactly."""
        loc, scale_tril, told = self.loc, self.scale_tril(), self.hyperparameters
        expected = self.regression.expected_log_joint(loc, scale_tril, told)
        return expected + MultivariateNormal(loc, scale_tril=scale_tril).entropy()

    def evaluate(self) -> dict[str, float]:
        """The figures of a row of ``metrics.csv``."""
        noise = self.hyperparameters[-1].exp() * self.regression.scale
        return {"elbo": self.elbo().item(), "noise_ppm": noise.item()}


def posterior(
    estimator: str, loc: Tensor, scale_tril: Tensor, control_var: Tensor | None
) -> MultivariateNormal:
    """A Normal whose ``rsample`` carries the estimator's gradient.

    With planes of rows, B and C are in the units of ``AutoAVFMultivariateNormal``.
    """
    if estimator == ROWS and control_var is not None:
        b, c = control_var
        units = torch.stack([b / scale_tril.detach().diagonal(), c / math.sqrt(len(loc))])
        return AVFMultivariateNormal(loc, scale_tril, units, planes="rows")
    if control_var is not None:
        return AVFMultivariateNormal(loc, scale_tril, control_var)
    if estimator == "OMT":
        return OMTMultivariateNormal(loc, scale_tril)
    return dist.MultivariateNormal(loc, scale_tril=scale_tril)


def fit(
    setting: Setting, seed: int, steps: int, months: int, log_every: int
) -> list[dict[str, Any]]:
    """The rows of ``metrics.csv`` of a fit from its start: a job of a sweep."""
    torch.manual_seed(seed)
    it = Fit(load(months), setting.estimator)
    schedule = Schedule(steps, setting.learning_rate, log_every=log_every)
    rows = train(None, setting.name, it.groups(setting), it.loss, it.evaluate, schedule)
    return [{**asdict(setting), "seed": seed, **row} for row in rows]


def load(months: int) -> Regression:
    """The regression of the first values of the series."""
    return Regression(torch.from_numpy(monthly_co2()[:months]))
