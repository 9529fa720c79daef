"""Time of SVI steps: of the baseball guide and of an amortized one, and of our objective in them.

``python -m benchmarks.svi_step`` prints medians over contenders that alternate in one process. The
unit is Pyro's guide of one Normal under Pyro's ``Trace_ELBO``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import tyro
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam  # type: ignore[attr-defined]
from torch import nn

from benchmarks.report import table
from experiments.baseball.fits import K20, MEAN_FIELD, PEER_K20, Candidate
from experiments.baseball.model import model as baseball
from experiments.lab.timing import medians
from pyro_mixtures.distributions import MixtureOfDiagNormals
from pyro_mixtures.infer import BaselinedTrace_ELBO

Steps = Mapping[str, Callable[[], object]]

UNIT, PEER, OURS = "one Normal", "Pyro's mixture", "ours"

AMORTIZED = {"data": 100, "components": 3, "size": 10}
"""Sizes: a network has a mixture for each datum of a plate."""


@dataclass
class Settings:
    """Settings of the benchmark."""

    repeats: int = 301
    """Runs of each contender."""
    threads: int = 1
    """Threads of torch."""


def baseball_step(candidate: Candidate, objective: Any, particles: int) -> Callable[[], object]:
    """A step of a guide of the 18 batting averages, D = 20."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = candidate.guide()
    guide()
    guide._pyro_name = f"{candidate.name}, {objective}"  # parameters of its own beside others'
    elbo = objective(particles, vectorize_particles=particles > 1, max_plate_nesting=1)
    return SVI(baseball, guide, Adam({"lr": 5e-3}), elbo).step


def amortized_step(family: Any, objective: Any, particles: int) -> Callable[[], object]:
    """A step of a guide in which a network makes a distribution of each datum of a plate.

    Args:
        family: of mixtures; None for one Normal.
        objective: a class.
        particles: of the objective.
    """
    torch.manual_seed(0)
    count, size = AMORTIZED["data"], AMORTIZED["size"]
    components = 1 if family is None else AMORTIZED["components"]
    data, loadings = torch.randn(count, 2 * size), torch.randn(size, 2 * size)
    sizes = [components * size, components * size, components]
    network = nn.Sequential(
        nn.Linear(2 * size, 32), nn.Tanh(), nn.Linear(32, sum(sizes))
    )  # (data, sum of sizes)
    adam = torch.optim.Adam(network.parameters(), 1e-3)

    def model() -> None:
        with pyro.plate("data", count):
            z = pyro.sample("z", dist.Normal(torch.zeros(size), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ loadings, 1.0).to_event(1), obs=data)

    def guide() -> None:
        locs, log_scales, logits = network(data).split(sizes, -1)
        with pyro.plate("data", count):
            if family is None:
                fn: Any = dist.Normal(locs, log_scales.exp()).to_event(1)
            else:
                shape = (count, components, size)
                fn = family(locs.reshape(shape), log_scales.exp().reshape(shape), logits)
            pyro.sample("z", fn)

    elbo = objective(particles, vectorize_particles=particles > 1, max_plate_nesting=1)

    def step() -> None:
        adam.zero_grad()
        elbo.differentiable_loss(model, guide).backward()
        adam.step()

    return step


def mixture_step(family: Any, particles: int) -> Callable[[], object]:
    """The baseball mixture's part alone: construct, expand, rsample, log_prob and backward."""
    torch.manual_seed(0)
    locs = (0.3 * torch.randn(20, 20)).requires_grad_()
    scales = (0.5 + torch.rand(20, 20)).requires_grad_()
    logits = torch.randn(20).requires_grad_()

    def run() -> None:
        if family is None:
            q = dist.Normal(locs[0], scales[0]).to_event(1)
        else:
            q = family(locs, scales, logits)
        q = q.expand((particles,)) if particles > 1 else q
        z = q.rsample()
        (z.square().sum(-1) / 2 + q.log_prob(z)).mean().backward()

    return run


def guides(particles: int) -> dict[str, Steps]:
    """Ours and Pyro's, by what is measured."""
    families = {OURS: MixtureOfDiagNormals, PEER: dist.MixtureOfDiagNormals, UNIT: None}
    candidates = {OURS: K20, PEER: PEER_K20, UNIT: MEAN_FIELD}
    objectives = {OURS: BaselinedTrace_ELBO, PEER: Trace_ELBO, UNIT: Trace_ELBO}
    return {
        "baseball, K = D = 20": {
            name: baseball_step(each, objectives[name], particles)
            for name, each in candidates.items()
        },
        "its mixture alone": {
            name: mixture_step(family, particles) for name, family in families.items()
        },
        "amortized, 100 data, K = 3, D = 10": {
            name: amortized_step(family, objectives[name], particles)
            for name, family in families.items()
        },
    }


def plain(*args: Any, **kwargs: Any) -> BaselinedTrace_ELBO:
    """The objective with its baseline alone."""
    return BaselinedTrace_ELBO(*args, blending=False, **kwargs)


def objectives(particles: int) -> dict[str, Steps]:
    """Pyro's and ours, by the guide."""
    classes = {"Trace": Trace_ELBO, "baseline": plain, "blending": BaselinedTrace_ELBO}
    makers: dict[str, Callable[[Any], Callable[[], object]]] = {
        "baseball, mean field": lambda each: baseball_step(MEAN_FIELD, each, particles),
        "baseball, K = 20": lambda each: baseball_step(K20, each, particles),
        "amortized, one Normal": lambda each: amortized_step(None, each, particles),
        "amortized, K = 3": lambda each: amortized_step(MixtureOfDiagNormals, each, particles),
    }
    return {
        guide: {name: make(each) for name, each in classes.items()}
        for guide, make in makers.items()
    }


def main(settings: Settings) -> None:
    """Print the tables."""
    torch.set_num_threads(settings.threads)
    rows, of_objectives = [], []
    for particles in (1, 32):
        for what, steps in guides(particles).items():
            found = medians(steps, settings.repeats)
            ours, peer, unit = (found[name] for name in (OURS, PEER, UNIT))
            times = [f"{1e3 * seconds:.2f}" for seconds in (ours, peer, unit)]
            ratios = [f"{ours / peer:.2f}", f"{ours / unit:.2f}"]
            rows.append([what, str(particles), *times, *ratios])
        for what, steps in objectives(particles).items():
            found = medians(steps, settings.repeats)
            times = [f"{1e3 * seconds:.2f}" for seconds in found.values()]
            ratios = [f"{found[name] / found['Trace']:.2f}" for name in ("baseline", "blending")]
            of_objectives.append([what, str(particles), *times, *ratios])
    units = ["ours / Pyro's", "ours / Normal"]
    print(table(["step", "particles", "ours, ms", "Pyro's, ms", "Normal, ms", *units], rows))
    header = ["guide", "particles", "Trace_ELBO, ms", "baseline, ms", "with blending, ms"]
    print(table([*header, "baseline / Trace", "blending / Trace"], of_objectives))


if __name__ == "__main__":
    main(tyro.cli(Settings))
