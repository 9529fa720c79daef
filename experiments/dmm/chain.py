"""A chain of mixtures as one distribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.score_parts import ScoreParts
from torch import Size, Tensor
from torch.distributions import constraints

from experiments.dmm.model import before
from pyro_mixtures.distributions.mixture_distribution import MixtureDistribution
from pyro_mixtures.numerics.score_use import marked


class Network(Protocol):
    """What makes the mixture of a step of the state before and the step's context."""

    initial: Tensor

    def outputs(self, previous: Tensor, contexts: Tensor) -> Tensor:
        """``(*X, D)`` and ``(*X, P)`` to ``(*X, P)``."""

    def mixture(self, outputs: Tensor) -> Any:
        """Of ``(*X, P)``: a distribution of batch shape X and event shape ``(D,)``."""


@dataclass(frozen=True)
class Drawn:
    """A sample, and the steps that it was drawn in.

    Attributes:
        value: ``(*X, T, D)``.
        states: its steps, ``(*X, D)`` each.
        outputs: of the network, ``(*X, P)`` each.
        steps: the distributions of the steps.
    """

    value: Tensor
    states: list[Tensor]
    outputs: list[Tensor]
    steps: list[Any]


class MixtureChain(TorchDistribution):
    r"""States whose steps are mixtures given the step before.

    .. math:: q(z) = \prod_{t=1}^T q(z_t \mid z_{t-1}, c_t)

    The event shape is ``(T, D)``. Samples are drawn step by step and carry the gradients that
    those of the steps do; densities are one product for all steps, those of its own last sample
    included. Its score term is the sum of those of the steps: all share the cost of their
    sequence. Steps that a mask leaves out have neither.

    Args:
        network: makes the mixtures.
        contexts: :math:`c_t`, ``(T, N, P)``.
        mask: ``(N, T)``.
        estimator: from the mixture of a step to what is drawn from, or None for itself.
        has_rsample: whether samples carry gradients; if not, the score function is the density.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.independent(constraints.real, 2)

    def __init__(
        self,
        network: Network,
        contexts: Tensor,
        mask: Tensor,
        estimator: Callable[[Any], Any] | None = None,
        has_rsample: bool = True,
    ) -> None:
        self.network, self.contexts, self.mask_of_steps = network, contexts, mask
        self.estimator, self.has_rsample = estimator, has_rsample
        self._drawn: Drawn | None = None
        shape = mask.shape[:-1], Size([mask.shape[-1], network.initial.shape[-1]])
        super().__init__(*shape, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> MixtureChain:
        mask = self.mask_of_steps.expand(*batch_shape, -1)
        return MixtureChain(self.network, self.contexts, mask, self.estimator, self.has_rsample)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return self._draw(torch.Size(sample_shape), None).value

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        if not self.has_rsample:
            raise NotImplementedError("Expected samples without gradients: use sample")
        self._drawn = self._draw(torch.Size(sample_shape), self.estimator)
        return self._drawn.value

    def __call__(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return self.rsample(sample_shape) if self.has_rsample else self.sample(sample_shape)

    def _draw(self, sample_shape: Size, estimator: Callable[[Any], Any] | None) -> Drawn:
        shape = sample_shape + self.batch_shape
        state = self.network.initial.expand(*shape, -1)
        states, outputs, steps = [], [], []
        for context in self.contexts.unbind(0):
            output = self.network.outputs(state, context)
            step = self.network.mixture(output)
            step = step if estimator is None else estimator(step)
            state = step.rsample()
            states.append(state)
            outputs.append(output)
            steps.append(step)
        return Drawn(torch.stack(states, -2), states, outputs, steps)

    def log_prob(self, value: Tensor) -> Tensor:
        drawn = self._own(value)
        if drawn is not None and not self._has_density_of_mixtures(drawn):
            each = zip(drawn.steps, drawn.states, strict=True)
            return self._summed(torch.stack([step.log_prob(z) for step, z in each], -1))
        if drawn is None:
            return self._summed(self.conditionals(value).log_prob(value))
        outputs = torch.stack(drawn.outputs, -2)
        return self._summed(self.network.mixture(outputs).log_prob(value))

    def conditionals(self, value: Tensor) -> Any:
        """The distributions of all steps given the states before, of batch shape ``(*X, T)``."""
        contexts = self.contexts.transpose(0, 1)  # (N, T, P)
        previous = before(value, self.network.initial)
        return self.network.mixture(self.network.outputs(previous, contexts))

    def score_parts(self, x: Tensor, *args: Any, **kwargs: Any) -> ScoreParts:
        if not self.has_rsample:
            log_prob: Any = self.log_prob(x)
            return ScoreParts(log_prob, log_prob, 0)  # type: ignore[arg-type]
        drawn = self._own(x)
        first = None if drawn is None else drawn.steps[0]
        if not isinstance(first, MixtureDistribution) or first.weight_gradient == "pathwise":
            log_prob = self.log_prob(x)
            return ScoreParts(log_prob, 0, log_prob)  # type: ignore[arg-type]
        assert drawn is not None
        terms = [step.score_term(z) for step, z in zip(drawn.steps, drawn.states, strict=True)]
        log_prob = self._summed(torch.stack([term.log_prob for term in terms], -1))
        scores = [
            torch.zeros_like(term.log_prob)
            if term.score is None or term.receipt is None
            else marked(term.score, term.receipt)
            for term in terms
        ]
        return ScoreParts(log_prob, self._summed(torch.stack(scores, -1)), log_prob)

    def _own(self, value: Tensor) -> Drawn | None:
        """How a value was drawn, if it is the last sample."""
        drawn = self._drawn
        return drawn if drawn is not None and drawn.value is value else None

    def _has_density_of_mixtures(self, drawn: Drawn) -> bool:
        """Whether an estimator has left the density as it is."""
        first = drawn.steps[0]
        is_relaxed = self.estimator is not None and not isinstance(first, MixtureDistribution)
        return not is_relaxed or getattr(first, "density", None) == "mixture"

    def _summed(self, each: Tensor) -> Tensor:
        """Over the steps that are there, ``(*X, T) -> (*X,)``."""
        return (each * self.mask_of_steps).sum(-1)
