"""The posterior by NUTS, in the unconstrained space."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy
import pyro
import torch
from arviz_stats.base.array import array_stats
from pyro.infer import MCMC, NUTS
from torch import Tensor

from experiments.baseball.model import COORDINATES, log_joint
from experiments.lab.run import Run, atomic_write


def reference(run: Run, chains: int, draws: int, warmup: int, seed: int) -> dict[str, Any]:
    """NUTS chains, each cached as it ends, and their diagnostics.

    Returns:
        ``draws`` of shape ``(chains, draws, 20)``, ``mean``, ``std``, ``rhat`` and ``ess`` of each
        coordinate.
    """
    found = [
        run.stage(f"nuts_{chain}", functools.partial(_chain, draws, warmup, seed + chain))
        for chain in range(chains)
    ]
    samples = torch.stack(found).numpy()
    return {
        "draws": samples,
        "mean": samples.mean((0, 1)),
        "std": samples.std((0, 1)),
        "rhat": array_stats.rhat(samples, chain_axis=0, draw_axis=1),
        "ess": array_stats.ess(samples, chain_axis=0, draw_axis=1),
    }


SHIPPED = Path(__file__).with_name("reference.npz")
"""Summary and thinned draws of the full run, for those who do not want to wait for NUTS."""


def write(path: Path, result: dict[str, Any]) -> None:
    """Store a reference with its draws thinned to about 2000, in single precision."""
    draws = result["draws"].reshape(-1, len(COORDINATES))
    thinned = draws[:: max(1, len(draws) // 2000)].astype(numpy.float32)
    arrays = {**result, "draws": thinned}
    atomic_write(path, lambda file: numpy.savez_compressed(file, **arrays))


def read(path: Path = SHIPPED) -> dict[str, Any]:
    """A reference written by :func:`write`."""
    with numpy.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _chain(draws: int, warmup: int, seed: int) -> Tensor:
    pyro.set_rng_seed(seed)
    start = 0.1 * torch.randn(len(COORDINATES), dtype=torch.float64)
    start[:2] += torch.tensor([-1.0, 2.0])
    start[2:] -= 1.0

    def potential(values: dict[str, Tensor]) -> Tensor:
        return -log_joint(values["z"])

    kernel = NUTS(potential_fn=potential, jit_compile=True, ignore_jit_warnings=True)
    mcmc = MCMC(kernel, num_samples=draws, warmup_steps=warmup, initial_params={"z": start})
    mcmc.run()
    samples: Tensor = mcmc.get_samples()["z"]
    return samples
