"""Divergences of posteriors from priors: exact, sampled, or bounds."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from pyro_mixtures.estimators.costs import sampled_expectation
from pyro_mixtures.normals.divergence import kl_bounds
from pyro_mixtures.numerics.validation import check_at_least, check_choice

WAYS = ("auto", "sampled", "upper_bound", "lower_bound")


def prior_kl(
    posterior: Distribution, prior: Distribution, *, way: str = "auto", num_samples: int = 1
) -> Tensor:
    r"""The divergence :math:`KL(q \| p)` of a posterior from a prior, differentiable in both.

    It is exact where a closed form exists, and elsewhere the mean of
    :math:`\log q(z) - \log p(z)` over samples of q. The gradient of that is unbiased, for mixtures
    too, whose score function term comes along. The two bounds are no estimates: with the upper one
    in the place of the divergence a bound of the log evidence stays a lower bound, and with the
    lower one it does not.

    Args:
        posterior: q, with ``rsample``.
        prior: p; the batch shapes broadcast.
        way: ``"auto"`` for the exact value if torch, Pyro or, for one Normal each in whatever
            form (diagonal, full, a mixture of one), this package knows it, and else by samples;
            ``"sampled"``; ``"upper_bound"`` or ``"lower_bound"``, without samples, for mixtures of
            Normals and single ones, by :func:`~pyro_mixtures.normals.kl_bounds`.
        num_samples: of the posterior, where it is sampled.

    Returns:
        Of the broadcast batch shape.

    Raises:
        ValueError: for different event shapes, an unknown ``way`` or ``num_samples < 1``.
        NotImplementedError: for bounds of other distributions, and a posterior without
            ``rsample`` that would have to be sampled.

    Example:
        >>> from pyro_mixtures.nn import MixturePrior
        >>> from pyro.distributions import Normal
        >>> _ = torch.manual_seed(0)
        >>> prior = MixturePrior(2, num_components=5)
        >>> q = Normal(torch.zeros(10, 2), 0.3).to_event(1)
        >>> found = prior_kl(q, prior(), num_samples=10_000)
        >>> low, high = (prior_kl(q, prior(), way=f"{side}_bound") for side in ("lower", "upper"))
        >>> found.shape, bool(((low < found) & (found < high)).all())
        (torch.Size([10]), True)
    """
    check_choice("way", way, WAYS)
    check_at_least(1, num_samples=num_samples)
    check_event_shapes(posterior, prior)
    if way in ("upper_bound", "lower_bound"):
        lower, upper = kl_bounds(posterior, prior)
        return upper if way == "upper_bound" else lower
    exact = exact_kl(posterior, prior) if way == "auto" else None
    return _sampled(posterior, prior, num_samples) if exact is None else exact


def check_event_shapes(posterior: Distribution, prior: Distribution) -> None:
    """Raise a ``ValueError`` for distributions of different event shapes."""
    if posterior.event_shape != prior.event_shape:
        raise ValueError(
            "Expected posterior and prior of the same event shape, but got"
            f" {tuple(posterior.event_shape)} and {tuple(prior.event_shape)}"
        )


def exact_kl(posterior: Distribution, prior: Distribution) -> Tensor | None:
    """The divergence in closed form, or None where there is none."""
    try:
        return kl_divergence(posterior, prior)
    except NotImplementedError:
        pass
    if any(getattr(each, "num_components", 1) != 1 for each in (posterior, prior)):
        return None
    try:
        return kl_bounds(posterior, prior)[1]  # of one Normal each
    except NotImplementedError:
        return None


def _sampled(posterior: Distribution, prior: Distribution, num_samples: int) -> Tensor:
    if not posterior.has_rsample:
        raise NotImplementedError(
            f"A divergence by samples needs rsample, which is lacking in {posterior}"
        )
    shape = torch.broadcast_shapes(posterior.batch_shape, prior.batch_shape)
    q = posterior if posterior.batch_shape == shape else posterior.expand(shape)
    return sampled_expectation(q, lambda z: q.log_prob(z) - prior.log_prob(z), num_samples)
