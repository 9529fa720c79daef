"""What ``fit`` costs on posteriors with one mode, against Pyro's single Normal.

    .venv/bin/python -m experiments.modes.single_normal

For each target ``AutoMultivariateNormal`` is fitted by Adam with twice as many steps each time,
until its ELBO rises by less than a tenth of a nat or the most evaluations are reached. Printed are
its gap to the evidence and the CPU seconds of the last but one run, which had that ELBO already;
those after which ``fit`` had the same ELBO, and its gap, components and seconds at its end.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator

import torch

from experiments.modes.contenders import CONTENDERS, PARTICLES
from experiments.modes.judgement import State
from experiments.modes.targets import TARGETS, Target

UNIMODAL = ("logistic_regression", "breast_cancer", "eight_schools_noncentered")

DRAWS = 4000
"""By which an ELBO is estimated."""

SETTLED = 0.1
"""Nats by which twice the steps raise the ELBO of a Normal that has arrived."""

FIRST, MOST = 500, 8000
"""Steps of Adam."""

BUDGET = 100_000
"""Evaluations of ``fit`` at most, as in the experiment."""


def timed(states: Iterator[State]) -> Iterator[tuple[State, float]]:
    """States and the CPU seconds that they took, without what is done with them in between."""
    seconds, began = 0.0, time.process_time()
    for state in states:
        seconds += time.process_time() - began
        yield state, seconds
        began = time.process_time()


def gap(target: Target, state: State) -> float:
    """Evidence minus ELBO."""
    if state.log_density is None:
        raise ValueError("Expected a contender with a density, but got one with draws only")
    torch.manual_seed(0)
    with torch.no_grad():
        z = state.draw(DRAWS)
        gains = target.log_density(z) - state.log_density(z)
    return target.evidence.value - float(gains.mean())


def normal(target: Target, seed: int) -> tuple[float, float]:
    """Gap and CPU seconds of the single Normal."""
    before, spent, steps = math.inf, 0.0, FIRST
    while True:
        *_, (state, seconds) = timed(CONTENDERS["normal"](target, seed, PARTICLES * steps))
        now = gap(target, state)
        if before - now < SETTLED:
            return before, spent
        before, spent = now, seconds
        if steps >= MOST:
            return before, spent
        steps *= 2


def compared(target: Target, seed: int) -> str:
    """A line of the table."""
    target_gap, spent = normal(target, seed)
    reached = math.inf
    for state, seconds in timed(CONTENDERS["fit"](target, seed, BUDGET)):
        now = gap(target, state)
        if now <= target_gap:
            reached = min(reached, seconds)
    return (
        f"| {target.name} | {seed} | {target_gap:.2f} | {spent:.1f} | {reached:.1f} | {now:.2f} |"
        f" {state.components} | {seconds:.1f} | {seconds / spent:.1f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="fit against AutoMultivariateNormal")
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=UNIMODAL)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    print(
        "| target | seed | gap of the Normal | s | s of fit to it | gap | K | s in all | ratio |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.targets:
        for seed in range(arguments.seeds):
            print(compared(TARGETS[name](), seed), flush=True)


if __name__ == "__main__":
    main()
