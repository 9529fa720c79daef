"""The objectives of the matrix."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pyro
import torch
from pyro.contrib.gp.kernels import RBF
from pyro.infer import (
    EnergyDistance,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    Trace_MMD,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
    TraceTMC_ELBO,
)
from torch import Tensor

from pyro_mixtures.infer import (
    BaselinedTrace_ELBO,
    ImportanceWeighted_ELBO,
    MarginalizedMixture_ELBO,
)
from tests.infer.matrix_guides import Case
from tests.infer.quantiles import (
    PAIRS,
    Points,
    quantiles_for_components,
    quantiles_for_samples,
)


@dataclass
class Column:
    """How an objective is made and run.

    Args:
        make: the objective, of its options.
        reference: what the reference is run with, where that is another objective of the same
            expectation.
        count: particles, None for all points.
        loop: run the particles one by one.
        surrogate_only: whether the objective has no ``loss_and_grads``.
        shared_noise: whether components are drawn by Normal noise that they share.
        pairs: draw two particles at a time, all pairs of few points.
    """

    make: Callable[..., Any]
    reference: Callable[..., Any] | None = None
    count: int | None = None
    loop: bool = False
    surrogate_only: bool = False
    shared_noise: bool = False
    pairs: bool = False

    def gradients(self, case: Case, make: Callable[..., Any], nesting: int) -> list[Tensor]:
        pyro.set_rng_seed(1)
        case.points.position = 0
        for leaf in case.leaves:
            leaf.grad = None
        objective = make(
            num_particles=2 if self.pairs else self.count or len(case.points.values),
            vectorize_particles=not self.loop,
            max_plate_nesting=nesting - self.loop,
        )
        model, guide = case.model, case.guide
        if self.pairs:
            model, guide = (in_pairs(each, -nesting) for each in (model, guide))
        with (
            mock.patch.object(Points, "in_pairs", self.pairs),
            quantiles_for_samples(case.points),
            quantiles_for_components(self.shared_noise),
        ):
            if self.surrogate_only:
                objective(model, guide).backward()
            else:
                objective.loss_and_grads(model, guide)
        return [
            torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.clone()
            for leaf in case.leaves
        ]


def in_pairs(program: Callable[[], Any], dim: int) -> Callable[[], None]:
    """A model or guide in a plate of all pairs of points."""

    def repeated() -> None:
        with pyro.plate("pairs", PAIRS, dim=dim):
            program()

    return repeated


def tmc(num_particles: int, **options: Any) -> Any:
    return TraceTMC_ELBO(num_particles=num_particles, strict_enumeration_warning=False, **options)


def mmd(**options: Any) -> Any:
    return Trace_MMD(kernel=RBF(input_dim=1), **options)


def energy_distance(vectorize_particles: bool, **options: Any) -> Any:
    return EnergyDistance(**options)


quiet = {"ignore_jit_warnings": True}
OBJECTIVES: dict[str, Column] = {
    "Trace_ELBO": Column(Trace_ELBO),
    "BaselinedTrace_ELBO": Column(BaselinedTrace_ELBO, Trace_ELBO),
    "BaselinedTrace_ELBO, sticking the landing": Column(
        functools.partial(BaselinedTrace_ELBO, sticking_the_landing=True), Trace_ELBO
    ),
    "ImportanceWeighted_ELBO": Column(ImportanceWeighted_ELBO, pairs=True),
    "ImportanceWeighted_ELBO, doubly reparameterized": Column(
        functools.partial(ImportanceWeighted_ELBO, doubly_reparameterized=True), pairs=True
    ),
    "MarginalizedMixture_ELBO": Column(MarginalizedMixture_ELBO, Trace_ELBO, shared_noise=True),
    "TraceEnum_ELBO": Column(
        functools.partial(TraceEnum_ELBO, strict_enumeration_warning=False), Trace_ELBO
    ),
    "TraceTMC_ELBO": Column(tmc),
    "TraceGraph_ELBO": Column(TraceGraph_ELBO),
    "TraceMeanField_ELBO": Column(TraceMeanField_ELBO),
    "TraceTailAdaptive_ELBO": Column(
        functools.partial(TraceTailAdaptive_ELBO, tail_adaptive_beta=-0.5), count=300
    ),
    "RenyiELBO": Column(functools.partial(RenyiELBO, alpha=0.3)),
    "ReweightedWakeSleep": Column(ReweightedWakeSleep),
    "Trace_MMD": Column(mmd, count=300),
    "EnergyDistance": Column(energy_distance, count=300, surrogate_only=True),
    "JitTrace_ELBO": Column(functools.partial(JitTrace_ELBO, **quiet), Trace_ELBO),
    "JitTraceEnum_ELBO": Column(
        functools.partial(JitTraceEnum_ELBO, strict_enumeration_warning=False, **quiet),
        Trace_ELBO,
    ),
    "JitTraceGraph_ELBO": Column(functools.partial(JitTraceGraph_ELBO, **quiet), Trace_ELBO),
    "JitTraceMeanField_ELBO": Column(
        functools.partial(JitTraceMeanField_ELBO, **quiet), Trace_ELBO
    ),
}

LOOPS: dict[str, Column] = {
    "Trace_ELBO": Column(Trace_ELBO, loop=True),
    "BaselinedTrace_ELBO": Column(BaselinedTrace_ELBO, Trace_ELBO, loop=True),
    "TraceEnum_ELBO": Column(
        functools.partial(TraceEnum_ELBO, strict_enumeration_warning=False),
        Trace_ELBO,
        loop=True,
    ),
    "TraceGraph_ELBO": Column(TraceGraph_ELBO, loop=True),
    "TraceMeanField_ELBO": Column(TraceMeanField_ELBO, loop=True),
    "RenyiELBO": Column(functools.partial(RenyiELBO, alpha=0.3), loop=True),
    "ReweightedWakeSleep": Column(ReweightedWakeSleep, loop=True),
}
"""Some of the objectives with particles one by one."""
