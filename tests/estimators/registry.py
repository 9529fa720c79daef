"""Every estimator with what the tests need to judge it: a new estimator is one more line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from pyro_mixtures.components.compiled_normals import CompiledNormals
from pyro_mixtures.estimators import ESTIMATORS, blended
from pyro_mixtures.samples.blending import Blending
from tests.registry import FAMILIES

ALL = tuple(FAMILIES)
DIAGONAL = tuple(name for name, family in FAMILIES.items() if not family.has_full_factors)


@dataclass(frozen=True)
class Case:
    """What is true of an estimator.

    Args:
        families: that it serves, by their names in ``tests.registry``.
        unbiased: whether its mean is the exact gradient.
        score: whether ``score_parts`` has a part of the gradient, for several groups.
        refinement: of the grid, for fields with poles beside the real line.
    """

    families: tuple[str, ...] = ALL
    unbiased: bool = True
    score: bool = False
    refinement: int = 1


def half_blended(mixture):
    """With the transport's share at 0.3, as if that had been learned."""
    blending, size = Blending(), mixture.num_components
    moments = torch.stack([torch.full((size,), 0.3), torch.ones(size)]).double()
    blending.load_state_dict({"moments": moments, "num_draws": 10**12})
    return blended(mixture, blending)


LEARNED = {"blended": half_blended}

CASES = {
    "pathwise": Case(),
    "clustered": Case(score=True),
    "blended": Case(score=True),
    "hybrid": Case(score=True),
    "score": Case(score=True),
    "implicit": Case(refinement=3),
    "graves": Case(DIAGONAL, refinement=3),
    "stratified": Case(),
    "gumbel_soft": Case(DIAGONAL, unbiased=False),
    "gumbel_hard": Case(DIAGONAL, unbiased=False),
}


def each(**properties: Any):
    """Parametrize by ``name`` and ``family``, for the estimators with these properties."""
    return pytest.mark.parametrize(
        ("name", "family"),
        [
            pytest.param(name, FAMILIES[family], id=f"{name}-{family}")
            for name, case in CASES.items()
            if all(getattr(case, key) == value for key, value in properties.items())
            for family in case.families
        ],
    )


def estimated(name: str, mixture) -> Any:
    return {**ESTIMATORS, **LEARNED}[name](mixture)


def named(name: str) -> Any:
    """What ``expectation`` takes for it."""
    return LEARNED.get(name, name)


def sample_at(distribution: Any, points: Tensor) -> Tensor:
    """A sample with a chosen outcome ``(*sample_shape, *batch_shape, D)``.

    Only the drawing is replaced: shapes and the backward pass are the real ones.
    """
    mixture = getattr(distribution, "mixture", distribution)

    def draw(index, *components):
        return points.reshape(-1, *index.shape[:-1], points.shape[-1]).movedim(0, -2)

    sample_shape = points.shape[: points.dim() - 1 - len(mixture.batch_shape)]
    # loops that draw would not ask for it
    with (
        mock.patch.object(CompiledNormals, "draw", return_value=None),
        mock.patch.object(mixture.core.components, "draw", draw),
    ):
        return distribution.rsample(sample_shape)


def score_of(distribution: Any, value: Tensor) -> Tensor:
    """Its score function term as a tensor."""
    return torch.as_tensor(distribution.score_parts(value).score_function)
