"""The expectation of a cost, with the gradient of any estimator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pyro_mixtures.distributions.mixture_distribution import MixtureDistribution
from pyro_mixtures.estimators.clustered import clustered
from pyro_mixtures.estimators.costs import sampled_expectation
from pyro_mixtures.estimators.graves import graves
from pyro_mixtures.estimators.gumbel_hard import gumbel_hard
from pyro_mixtures.estimators.gumbel_soft import gumbel_soft
from pyro_mixtures.estimators.hybrid import hybrid
from pyro_mixtures.estimators.implicit import implicit
from pyro_mixtures.estimators.pathwise import pathwise
from pyro_mixtures.estimators.score import score
from pyro_mixtures.estimators.stratified import stratified
from pyro_mixtures.numerics.validation import check_at_least

ESTIMATORS: dict[str, Callable[..., Any]] = {
    "pathwise": pathwise,
    "clustered": clustered,
    "hybrid": hybrid,
    "score": score,
    "implicit": implicit,
    "graves": graves,
    "stratified": stratified,
    "gumbel_soft": gumbel_soft,
    "gumbel_hard": gumbel_hard,
}
"""Functions of a mixture, by name; all are unbiased but for the last two."""


def expectation(
    mixture: MixtureDistribution,
    cost: Callable[[Tensor], Tensor],
    *,
    estimator: str | Callable[..., Any] = "clustered",
    num_samples: int = 1,
    baseline: Tensor | float | None = None,
) -> Tensor:
    r"""An estimate of :math:`E_q[f(z)]` whose gradient is that of an estimator.

    The value is the mean cost of the samples. Its gradient flows to the mixture's parameters by
    the samples, by their score function where the estimator has one, and to whatever else the cost
    depends on, such as parameters in a :math:`\log q(z)` of its own. It is for first derivatives:
    those of a score function term know nothing of second ones.

    Args:
        mixture: of any class that the estimator serves.
        cost: f, maps samples ``(S, *B, *E)`` to one cost each, ``(S, *B)``; the cost of one sample
            must not depend on the others.
        estimator: a name in :data:`ESTIMATORS`, or a function of the mixture that returns a
            distribution, such as ``functools.partial(gumbel_soft, temperature=0.1)``.
        num_samples: S, at least 1.
        baseline: what is taken from the costs that multiply a score function: a tensor that
            broadcasts with ``(S, *B)`` and does not depend on the samples. By default the mean
            cost of the other samples, or zero for a single one. Without effect for estimators
            without a score function.

    Returns:
        ``(*B,)``.

    Raises:
        ValueError: for an unknown name, ``num_samples < 1``, a cost or a baseline of another
            shape, or what is no mixture of this package.
        NotImplementedError: for a class of mixtures that the estimator does not serve.

    Reference:
        Mohamed, Rosca, Figurnov and Mnih, *Monte Carlo Gradient Estimation in Machine Learning*
        (2020), https://arxiv.org/abs/1906.10652.

    Example:
        >>> import torch
        >>> from pyro_mixtures.distributions import MixtureOfDiagNormals
        >>> _ = torch.manual_seed(0)
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> q = MixtureOfDiagNormals(torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1), logits)
        >>> cost = lambda z: z.squeeze(-1)
        >>> mean = expectation(q, cost, estimator="implicit", num_samples=100_000)
        >>> mean.backward()  # the exact gradient is [-1/2, 1/2]
        >>> torch.allclose(logits.grad, torch.tensor([-0.5, 0.5]), atol=0.02)
        True
    """
    check_at_least(1, num_samples=num_samples)
    return sampled_expectation(_named(estimator)(mixture), cost, num_samples, baseline)


def _named(estimator: str | Callable[..., Any]) -> Callable[..., Any]:
    if callable(estimator):
        return estimator
    if estimator not in ESTIMATORS:
        raise ValueError(
            f"Expected estimator to be one of {', '.join(ESTIMATORS)}, or a function of a mixture,"
            f" but got {estimator!r}"
        )
    return ESTIMATORS[estimator]
