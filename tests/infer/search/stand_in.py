"""What a result needs of a search that has ended, without the search."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_mixtures.distributions import MixtureOfDiagNormals, MixtureOfNormals
from pyro_mixtures.infer import ModelLogDensity
from pyro_mixtures.infer.search.evaluations import Evaluations
from pyro_mixtures.infer.search.fit_result import FitResult


@dataclass
class FoundOptima:
    points: Tensor
    values: Tensor
    log_masses: Tensor


@dataclass
class EndedSearch:
    mixture: MixtureOfNormals | MixtureOfDiagNormals
    evaluations: Evaluations
    optima: FoundOptima
    converged: float = 1.0
    starts: Tensor = field(default_factory=lambda: torch.zeros(300, 1))
    num_components: int | None = None
    max_evaluations: int = 100_000
    log: list[str] = field(default_factory=list)
    elbos: list[float] = field(default_factory=lambda: [0.0] * 100)
    stopped: str = "flat"
    at_cap: bool = False
    improper: list[int] = field(default_factory=list)


def normals(locs, stddevs, weights):
    """A mixture of Normals with the same standard deviations in all directions."""
    locs = torch.as_tensor(locs, dtype=torch.float64)
    scales = torch.as_tensor(stddevs, dtype=torch.float64).expand(len(locs))
    tril = scales[:, None, None] * torch.eye(locs.shape[-1], dtype=torch.float64)
    return MixtureOfNormals(locs, tril, torch.as_tensor(weights, dtype=torch.float64).log())


def optima_at(points, log_density, log_masses):
    points = torch.as_tensor(points, dtype=torch.float64)
    values = log_density(points).detach()
    return FoundOptima(points, values, torch.as_tensor(log_masses, dtype=torch.float64))


def result_of(model, mixture, *args, optima=None, seconds=1.5, **options):
    """A result, as a fit that ended at a mixture would give it."""
    density = ModelLogDensity(model, args)
    if optima is None:  # one that is covered
        optima = mixture.locs[:1], [-math.inf]
    found = optima_at(optima[0], density, optima[1])
    search = EndedSearch(mixture, Evaluations(density), found, **options)
    return FitResult(search, density, model, args, {}, seconds)
