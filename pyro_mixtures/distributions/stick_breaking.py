"""Random weights, broken from a stick: pieces of what the pieces before have left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor
from torch.distributions import (
    Beta,
    Dirichlet,
    Distribution,
    Independent,
    Kumaraswamy,
    constraints,
    kl_divergence,
    register_kl,
)
from torch.nn.functional import pad

from pyro_mixtures.distributions.sticks import (
    Sticks,
    divergence_from_beta,
    log_parts,
    sticks_of,
)
from pyro_mixtures.families.interior import bounds
from pyro_mixtures.numerics.precision import double
from pyro_mixtures.numerics.validation import check_at_least, check_shapes
from pyro_mixtures.samples.coordinates import keep_coordinates, kept_coordinates
from pyro_mixtures.samples.remembering import recall, remember
from pyro_mixtures.samples.score_parts import IndependentParts, ScoreTerm, mask_tensor
from pyro_mixtures.samples.shapes import Expandable

StickBreakingT = TypeVar("StickBreakingT", bound="StickBreaking")


class StickBreaking(Expandable):
    r"""Weights on the simplex: each takes a share of what those before it have left.

    .. math:: \pi_k = v_k \prod_{l < k} (1 - v_l), \quad k < K, \qquad
              \pi_K = \prod_{l < K} (1 - v_l)

    .. math:: \log p(\pi) = \sum_{k < K} \log p(v_k) - \sum_{l < K} (K - 1 - l) \log(1 - v_l)

    is the density with respect to the first K - 1 weights, as that of torch's ``Dirichlet``.

    Weights underflow where sticks are next to 0 or to 1. So a sample carries the logarithms that
    it was drawn in, and :meth:`log_weights` and ``log_prob`` of it are finite and right: in this
    distribution, in another of its kind, and in the model that a guide's sample is replayed in. A
    tensor made of it (a slice, a copy, ``detach()``) is a value like any other, whose zeros count
    as the smallest normal number.

    Sticks of ``Beta`` and ``Kumaraswamy`` distributions, and those that a ``SigmoidTransform``
    makes of real numbers (a logit-Normal, a mixture), are drawn and evaluated in logarithms. Of
    other families they are as exact as those families' own samples.

    ``kl_divergence`` is that of the sticks, where there is one: also of ``Kumaraswamy`` from
    ``Beta`` sticks, and from a ``Dirichlet``. ``entropy`` is there for these two.

    Args:
        sticks: over the unit interval, with ``rsample``: of batch shape ``(*B, K - 1)``, or of
            events ``(K - 1,)`` for sticks that depend on each other. K is at least 2: one weight
            alone is 1, and not random.

    Raises:
        ValueError: for sticks of other shapes or on another support, or without ``rsample``.
        NotImplementedError: by ``mean``, ``variance`` and ``entropy`` of sticks that have none.

    Reference:
        Sethuraman, *A Constructive Definition of Dirichlet Priors*, 1994; Nalisnick and Smyth,
        *Stick-Breaking Variational Autoencoders*, 2017, https://arxiv.org/abs/1605.06197.

    Example:
        >>> from torch.distributions import Normal, SigmoidTransform, TransformedDistribution
        >>> normal = Normal(torch.tensor([0.0, 200.0]), 1.0)
        >>> q = StickBreaking(TransformedDistribution(normal, [SigmoidTransform()]))
        >>> weights = q.rsample((5,))
        >>> weights[:, -1].tolist(), bool(q.log_weights(weights).isfinite().all())
        ([0.0, 0.0, 0.0, 0.0, 0.0], True)
    """

    arg_constraints = {}
    support = constraints.simplex
    has_rsample = True
    sticks: Any

    def __init__(self, sticks: Distribution, *, validate_args: bool | None = None) -> None:
        while isinstance(sticks, Independent) and len(sticks.event_shape) == 1:
            sticks = sticks.base_dist
        _check_sticks(sticks)
        self.sticks = sticks
        *batch_shape, count = sticks.batch_shape + sticks.event_shape
        if torch.Size(batch_shape).numel() == 0:
            validate_args = False  # torch's constraints fail for empty tensors
        event_shape = torch.Size([count + 1])
        super().__init__(torch.Size(batch_shape), event_shape, validate_args=validate_args)

    @staticmethod
    def gem(
        concentration: Tensor | float, num_weights: int, *, validate_args: bool | None = None
    ) -> StickBreaking:
        r"""The weights of a Dirichlet process, truncated: sticks of :math:`\mathrm{Beta}(1, c)`.

        Args:
            concentration: :math:`c > 0`, ``(*B)`` or a number.
            num_weights: K, at least 2.
            validate_args: check the concentration, and the values of ``log_prob``'s argument.

        Raises:
            ValueError: for other arguments.

        Example:
            >>> StickBreaking.gem(1.0, 4).mean
            tensor([0.5000, 0.2500, 0.1250, 0.1250])
        """
        check_at_least(2, num_weights=num_weights)
        if not isinstance(concentration, Tensor):
            concentration = torch.tensor(float(concentration))
        _check_positive(concentration, validate_args)
        c = concentration.unsqueeze(-1).expand(*concentration.shape, num_weights - 1)
        return StickBreaking(_beta(torch.ones_like(c), c), validate_args=validate_args)

    @staticmethod
    def dirichlet(concentration: Tensor, *, validate_args: bool | None = None) -> StickBreaking:
        r"""A Dirichlet distribution: sticks of :math:`\mathrm{Beta}(c_k, \sum_{j > k} c_j)`.

        Args:
            concentration: :math:`c > 0`, ``(*B, K)``.
            validate_args: check the concentration, and the values of ``log_prob``'s argument.

        Raises:
            ValueError: for other arguments.

        Example:
            >>> prior = StickBreaking.dirichlet(torch.full((4,), 0.05))
            >>> weights = prior.sample((1000,))
            >>> bool((weights == 0).any()), bool(prior.log_weights(weights).isfinite().all())
            (True, True)
        """
        check_shapes({"concentration": concentration}, {"concentration": "K"})
        _check_positive(concentration, validate_args)
        after = concentration.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        return StickBreaking(_beta(concentration[..., :-1], after), validate_args=validate_args)

    def expand(
        self: StickBreakingT, batch_shape: Sequence[int], _instance: Any = None
    ) -> StickBreakingT:
        batch_shape = torch.Size(batch_shape)
        new = self._get_checked_instance(type(self), _instance)
        new.sticks = self.sticks.expand(
            batch_shape + self.sticks.batch_shape[len(self.batch_shape) :]
        )
        self._shape_as_expanded(new, batch_shape)
        return new

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        sticks = sticks_of(self.sticks)
        logits, dtype, point = sticks.draw(torch.Size(sample_shape))
        log_v, log_rest = log_parts(logits)
        log_weights = pad(log_v, (0, 1)) + pad(log_rest.cumsum(-1), (1, 0))  # (*S, *B, K)
        weights = log_weights.exp().to(dtype)
        keep_coordinates(weights, log_weights, self.event_shape)
        remember(self, weights, (sticks, point))
        return weights

    def log_weights(self, value: Tensor) -> Tensor:
        r""":math:`\log \pi`, with gradients: finite for samples, also where these underflow.

        Args:
            value: weights, ``(*X, K)``.

        Returns:
            ``(*X, K)``: the ``component_logits`` of a mixture.
        """
        return self._coordinates(value).to(value.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        log_weights = self._coordinates(value)
        # what is left for each weight and those after it
        left = log_weights.flip(-1).logcumsumexp(-1).flip(-1)
        logits = log_weights[..., :-1] - left[..., 1:]  # (*X, K - 1)
        density, dtype = sticks_of(self.sticks).log_density(logits, value.dtype)
        if not self.sticks.event_shape:
            density = density.sum(-1)
        return (density - self._log_volume(log_parts(logits)[1])).to(dtype)

    def score_term(self, value: Tensor) -> ScoreTerm:
        """That of mixtures among the sticks."""
        log_prob, known = self.log_prob(value), recall(self, value)
        if known is None:
            return ScoreTerm(log_prob)
        sticks, point = known
        term = sticks.score_term(point)
        if term is None:
            return ScoreTerm(log_prob)
        term = term.summed(term.log_prob.dim() - log_prob.dim())
        return term._replace(log_prob=log_prob)

    def score_parts(self, x: Tensor, *args: Any, **kwargs: Any) -> ScoreParts:
        return self.score_term(x).parts(x)

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> Any:
        event = super().to_event(reinterpreted_batch_ndims)
        return event if event is self else IndependentParts(self, event.reinterpreted_batch_ndims)

    def mask(self, mask: Tensor | bool) -> Any:
        return super().mask(mask_tensor(mask, self.batch_shape, self.device))

    @property
    def device(self) -> torch.device:
        """Of the sticks, where they tell one."""
        known = getattr(self.sticks, "concentration1", self.sticks)
        return getattr(known, "device", torch.device("cpu"))

    @property
    def mean(self) -> Tensor:
        (first, dtype), _ = self._each.moments()
        return _products(first, 1 - first).to(dtype)

    @property
    def variance(self) -> Tensor:
        (first, dtype), (second, _) = self._each.moments()
        squares = _products(second, 1 - 2 * first + second)
        return (squares - _products(first, 1 - first).square()).to(dtype)

    def entropy(self) -> Tensor:
        entropy, dtype = self._each.entropy()
        _, log_rest = self._each.expected_logs()
        return (entropy.sum(-1) + self._log_volume(log_rest)).to(dtype)

    def _coordinates(self, value: Tensor) -> Tensor:
        """The logarithms of weights, those that belong to a sample if it is one."""
        least = torch.finfo(value.dtype).tiny
        kept = kept_coordinates(value, self.event_shape)
        if kept is not None:  # of another distribution's zeros, too
            return kept.masked_fill(kept == -math.inf, math.log(least))
        (weights,) = double(self._validated(value).clamp_min(least))
        return weights.log()

    def _log_volume(self, log_rest: Tensor) -> Tensor:
        """Of the first weights by the sticks, ``(*X, K - 1) -> (*X)``."""
        later = torch.arange(log_rest.shape[-1] - 1, -1, -1, device=log_rest.device)
        return (later * log_rest).sum(-1)

    @property
    def _each(self) -> Sticks:
        """What is known of each stick.

        Raises:
            NotImplementedError: for sticks that depend on each other.
        """
        if self.sticks.event_shape:
            raise NotImplementedError(
                f"Expected sticks that are independent of each other, but got"
                f" {type(self.sticks).__name__}, whose events are {self.sticks.event_shape[0]}"
            )
        return sticks_of(self.sticks)


@register_kl(StickBreaking, StickBreaking)
def _(first: StickBreaking, second: StickBreaking) -> Tensor:
    """Of the sticks: weights tell what they are."""
    if first.event_shape != second.event_shape:
        raise ValueError(
            "Expected as many weights in both distributions, but got"
            f" {first.event_shape[0]} and {second.event_shape[0]}"
        )
    p, q = first.sticks, second.sticks
    if isinstance(p, (Beta, Kumaraswamy)) and isinstance(q, Beta):
        return divergence_from_beta(p, q).sum(-1)
    if p.event_shape or q.event_shape:
        p, q = (x if x.event_shape else Independent(x, 1) for x in (p, q))
        return kl_divergence(p, q)
    return kl_divergence(p, q).sum(-1)


@register_kl(StickBreaking, Dirichlet)
def _(first: StickBreaking, second: Dirichlet) -> Tensor:
    return kl_divergence(first, StickBreaking.dirichlet(second.concentration))


def _check_sticks(sticks: Any) -> None:
    if not isinstance(sticks, Distribution):
        raise ValueError(f"Expected sticks to be a distribution, but got {sticks!r}")
    shape = sticks.batch_shape + sticks.event_shape
    if len(sticks.event_shape) > 1 or not shape or shape[-1] < 1:
        raise ValueError(
            "Expected sticks of batch shape (*B, K - 1) without events, or with events (K - 1,),"
            f" for K >= 2 weights, but got batch shape {tuple(sticks.batch_shape)} and event shape"
            f" {tuple(sticks.event_shape)}"
        )
    low, high = (torch.as_tensor(end) for end in bounds(sticks.support))
    if not ((low == 0).all() and (high == 1).all()):
        raise ValueError(f"Expected sticks on the unit interval, but got {sticks.support}")
    if not sticks.has_rsample:
        raise ValueError(f"Expected sticks with rsample, but {type(sticks).__name__} has none")


def _check_positive(concentration: Tensor, validate_args: bool | None) -> None:
    if validate_args is not False and not bool((concentration > 0).all()):
        raise ValueError(f"Expected concentration to be positive, but got {concentration}")


def _beta(a: Tensor, b: Tensor) -> Beta:
    return Beta(a, b, validate_args=False)


def _products(own: Tensor, rest: Tensor) -> Tensor:
    """Expected weights of those of sticks and of what they leave, ``(*B, K - 1) -> (*B, K)``."""
    return pad(own, (0, 1), value=1.0) * pad(rest.cumprod(-1), (1, 0), value=1.0)
