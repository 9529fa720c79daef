"""Bias and variance of each estimator's gradient against the exact one, by enumeration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.discrete_codes.autoencoder import Candidate, log_likelihood, start
from experiments.discrete_codes.choices import (
    ESTIMATORS,
    EVALUATIONS,
    KINDS,
    UNBIASED,
    Cost,
    Kind,
    marginalized,
)
from experiments.lab.comparison import Results, Rows, good
from experiments.lab.trainer_settings import Training
from experiments.vae import images

IMAGES = 10
"""Whose logits' gradients are measured."""
BLOCKS = 20
"""Of draws, for standard errors by leaving out one of them."""
OFTEN = 50
"""Draws that a state should have for a z-score of its logit."""
FALSE_ALARM = 0.001
"""Of one z-score among all, where all estimators are as unbiased as they say."""


@dataclass(frozen=True)
class Case:
    """Where gradients are measured: an autoencoder of few codes, trained for some steps.

    Attributes:
        kind: ``categorical`` or ``binary``.
        variables: d.
        states: K; two of binary variables.
        steps: by the exact gradient.
        draws: of each estimator and image, a multiple of :data:`BLOCKS`.
    """

    kind: str
    variables: int
    states: int
    steps: int
    draws: int = 10_000


@dataclass(frozen=True)
class Measured:
    """Of estimates of one gradient, in parts of its length.

    Args:
        bias: of the mean; the square of what noise is expected to add is taken off.
        bias_se: its standard error.
        deviation: the root of the variance summed over the coordinates.
        deviation_se: its standard error.
        z: largest z-score of a coordinate.
        scores: how many there are.
    """

    bias: float
    bias_se: float
    deviation: float
    deviation_se: float
    z: float
    scores: int


def measure(
    folder: Path, candidate: Case, training: Training, *, few: bool, resume: bool
) -> dict[str, Any]:
    """Train an autoencoder of digits by the exact gradient and measure all estimators there.

    Nothing is kept before the end, which comes soon: ``folder`` stays empty.

    Returns:
        For each estimator but the exact one, by name, a dict of :class:`Measured`'s figures.
    """
    torch.set_num_threads(1)
    kind = KINDS[candidate.kind]
    data = images.load("digits")
    settings = Candidate(
        "marginalized", candidate.kind, candidate.variables, candidate.states, 64, "digits"
    )
    decoder, encoder = start(settings, data.side**2, training.seed)
    parameters = [*decoder.parameters(), *encoder.parameters()]
    adam = torch.optim.Adam(parameters, lr=training.learning_rate)
    for _ in range(candidate.steps):
        chosen = torch.randint(len(data.train.images), (training.batch_size,))
        batch = torch.bernoulli(data.train.images[chosen])
        adam.zero_grad()
        encoder.loss(decoder, batch).mean().backward()
        adam.step()
    decoder = decoder.double().requires_grad_(False)
    rows = data.test.images[:: len(data.test.images) // IMAGES][:IMAGES].double()
    logits = encoder.double()(rows).detach()  # (N, d[, K])
    estimates: dict[str, list[Tensor]] = {name: [] for name in ESTIMATORS if name in NAMES}
    exact: list[Tensor] = []
    for each, image in zip(logits, rows, strict=True):

        def cost(z: Tensor, image: Tensor = image) -> Tensor:
            return log_likelihood(decoder(z), image[None])

        exact.append(gradients(kind, marginalized, each, cost, 1)[0])
        for name, found in estimates.items():
            found.append(gradients(kind, ESTIMATORS[name], each, cost, candidate.draws))
    often = torch.stack([_often(kind, each, candidate.draws) for each in logits])
    return {
        name: vars(compare(torch.cat(found, -1), torch.cat(exact), often.flatten()))
        for name, found in estimates.items()
    }


NAMES = tuple(name for name in ESTIMATORS if name != "marginalized")


def gradients(
    kind: Kind,
    estimator: Callable[[Kind, Tensor, Cost], Tensor],
    logits: Tensor,
    cost: Cost,
    draws: int,
) -> Tensor:
    """Independent estimates of a gradient, ``(draws, coordinates)``."""
    many = logits.expand(draws, *logits.shape).clone().requires_grad_()
    (found,) = torch.autograd.grad(estimator(kind, many, cost).sum(), many)
    return found.flatten(1)


def compare(estimates: Tensor, exact: Tensor, often: Tensor) -> Measured:
    """Estimates ``(draws, coordinates)`` beside the gradient; z-scores of some coordinates."""
    blocks = estimates.unflatten(0, (BLOCKS, -1))  # (B, N / B, C)
    sums, squares = blocks.sum(1), blocks.square().sum(1)  # (B, C)
    count = len(estimates)
    whole = _figures(sums.sum(0), squares.sum(0), count, exact)
    left = count - count // BLOCKS
    without = torch.stack(
        [
            _figures(sums.sum(0) - one, squares.sum(0) - square, left, exact)
            for one, square in zip(sums, squares, strict=True)
        ]
    )  # (B, 2)
    errors = ((BLOCKS - 1) * without.var(0, correction=0)).sqrt()
    error = estimates.std(0) / math.sqrt(count)
    told = often & (error > 0)
    scores = ((estimates.mean(0) - exact) / error)[told].abs()
    bias, deviation = whole.tolist()
    bias_error, deviation_error = errors.tolist()
    largest = scores.max().item() if len(scores) else math.nan
    return Measured(bias, bias_error, deviation, deviation_error, largest, len(scores))


def _figures(total: Tensor, squares: Tensor, count: int, exact: Tensor) -> Tensor:
    """Bias and deviation in parts of the gradient's length, ``(2)``; a bias may be below zero."""
    mean = total / count
    variance = (squares / count - mean.square()).clamp_min(0) * count / (count - 1)
    square = ((mean - exact).square() - variance / count).sum()
    bias = square.sign() * square.abs().sqrt()
    return torch.stack([bias, variance.sum().sqrt()]) / exact.norm()


def _often(kind: Kind, logits: Tensor, draws: int) -> Tensor:
    """Logits of states that are neither rare nor nearly sure, whose z-scores are nearly Normal."""
    p = kind.distribution(logits).probs
    return (p * draws >= OFTEN) & ((1 - p) * draws >= OFTEN)


def threshold(scores: int) -> float:
    """Below which the largest of so many z-scores is, but for :data:`FALSE_ALARM`."""
    part = torch.tensor(1 - FALSE_ALARM / (2 * scores), dtype=torch.float64)
    return math.sqrt(2) * torch.erfinv(2 * part - 1).item()


def rows(results: Results) -> Rows:
    """A row for each estimator of each case, in the order of the cases."""
    found: Rows = []
    for case, fits in results.items():
        for name in NAMES:
            for result in good(fits)[:1]:
                measured: Mapping[str, Any] = result[name]
                evaluations = EVALUATIONS.get(name, 1)
                root = math.sqrt(evaluations)
                unbiased = name in UNBIASED
                found.append(
                    {
                        "row": f"{case}, {name}",
                        "case": case,
                        "estimator": name,
                        **measured,
                        "evaluations": evaluations,
                        "each": root * measured["deviation"],
                        "each_se": root * measured["deviation_se"],
                        "allowed": threshold(max(1, measured["scores"])) if unbiased else None,
                        "unbiased": unbiased,
                    }
                )
    return found
