"""Time of an SVI step of the baseball guide: ours against the same guide with Pyro's mixture.

``python -m benchmarks.svi_step`` prints medians over contenders that alternate in one process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyro.distributions as dist
import torch
import tyro

from experiments.baseball.fits import K20, MEAN_FIELD, PEER_K20, step
from experiments.lab.timing import medians
from pyro_mixtures.distributions import MixtureOfDiagNormals


@dataclass
class Settings:
    """Settings of the benchmark."""

    repeats: int = 301
    """Runs of each contender."""
    threads: int = 1
    """Threads of torch."""


def mixture_step(family: type, particles: int) -> Callable[[], object]:
    """The mixture's part alone: construct, expand, rsample, log_prob and backward."""
    torch.manual_seed(0)
    locs = (0.3 * torch.randn(20, 20)).requires_grad_()
    scales = (0.5 + torch.rand(20, 20)).requires_grad_()
    logits = torch.randn(20).requires_grad_()

    def run() -> None:
        q = family(locs, scales, logits)
        q = q.expand((particles,)) if particles > 1 else q
        z = q.rsample()
        (z.square().sum(-1) / 2 + q.log_prob(z)).mean().backward()

    return run


def main(settings: Settings) -> None:
    """Print the table."""
    torch.set_num_threads(settings.threads)
    print("| K = D = 20 | particles | ours, ms | Pyro's, ms | ratio | mean field, ms |")
    print("| --- | --- | --- | --- | --- | --- |")
    for particles in (1, 32):
        whole = {row.name: step(row, particles) for row in (K20, PEER_K20, MEAN_FIELD)}
        ours, peer, least = medians(whole, settings.repeats).values()
        print(f"| SVI step | {particles} | {1e3 * ours:.2f} | {1e3 * peer:.2f}", end="")
        print(f" | {ours / peer:.2f} | {1e3 * least:.2f} |")
        families = {"ours": MixtureOfDiagNormals, "peer": dist.MixtureOfDiagNormals}
        alone = {name: mixture_step(family, particles) for name, family in families.items()}
        ours, peer = medians(alone, settings.repeats).values()
        print(f"| mixture alone | {particles} | {1e3 * ours:.2f} | {1e3 * peer:.2f}", end="")
        print(f" | {ours / peer:.2f} | |")


if __name__ == "__main__":
    main(tyro.cli(Settings))
