"""A chain of mixtures as one distribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.score_parts import ScoreParts
from torch import Size, Tensor
from torch.distributions import constraints

from experiments.dmm.model import before
from experiments.dmm.recurrence import Steps
from experiments.dmm.steps import score
from pyro_mixtures.numerics.score_use import marked


class Network(Protocol):
    """What makes the mixture of a step of the state before and the step's context."""

    initial: Tensor

    def outputs(self, previous: Tensor, contexts: Tensor) -> Tensor:
        """``(*X, D)`` and ``(*X, R)`` to ``(*X, P)``."""

    def mixture(self, outputs: Tensor) -> Any:
        """Of ``(*X, P)``: a distribution of batch shape X and event shape ``(D,)``."""

    def steps(self) -> Steps:
        """From which states are drawn."""

    def run(self, contexts: Tensor, steps: Steps) -> tuple[Tensor, Tensor, Tensor]:
        """Of ``(T, N, R)``: parameters and states of all steps, and a receipt."""


class Drawn(NamedTuple):
    """A sample, and how it was drawn.

    Attributes:
        value: ``(*X, T, D)``.
        outputs: of the network, ``(*X, T, P)``.
        steps: that drew it.
        receipt: for a score term.
    """

    value: Tensor
    outputs: Tensor
    steps: Any
    receipt: Tensor | None


class MixtureChain(TorchDistribution):
    r"""States whose steps are mixtures given the step before.

    .. math:: q(z) = \prod_{t=1}^T q(z_t \mid z_{t-1}, c_t)

    The event shape is ``(T, D)``. Samples are drawn step by step and carry the gradients that
    those of the steps do; densities, groups and score terms of all steps are one product, those of
    its own last sample included. Its score term is the sum of those of the steps: all share the
    cost of their sequence. Steps that a mask leaves out have neither.

    Args:
        network: makes the mixtures.
        contexts: :math:`c_t`, ``(T, N, R)``.
        mask: ``(N, T)``.
        has_rsample: whether samples carry gradients; if not, the score function is the density.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.independent(constraints.real, 2)

    def __init__(
        self, network: Network, contexts: Tensor, mask: Tensor, has_rsample: bool = True
    ) -> None:
        self.network, self.contexts, self.mask_of_steps = network, contexts, mask
        self.has_rsample = has_rsample
        self._drawn: Drawn | None = None
        shape = mask.shape[:-1], Size([mask.shape[-1], network.initial.shape[-1]])
        super().__init__(*shape, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> MixtureChain:
        mask = self.mask_of_steps.expand(*batch_shape, -1)
        return MixtureChain(self.network, self.contexts, mask, self.has_rsample)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return self._draw(torch.Size(sample_shape)).value

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        if not self.has_rsample:
            raise NotImplementedError("Expected samples without gradients: use sample")
        self._drawn = self._draw(torch.Size(sample_shape))
        return self._drawn.value

    def __call__(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return self.rsample(sample_shape) if self.has_rsample else self.sample(sample_shape)

    def _draw(self, sample_shape: Size) -> Drawn:
        shape, steps = sample_shape + self.batch_shape, self.network.steps()
        contexts = self.contexts.movedim(0, -2)  # (N, T, R)
        contexts = contexts.expand(*shape, -1, -1).flatten(0, -3).movedim(1, 0)
        outputs, states, receipt = self.network.run(contexts, steps)
        value, outputs = (x.unflatten(1, shape).movedim(0, -2) for x in (states, outputs))
        return Drawn(value, outputs, steps, receipt)

    def log_prob(self, value: Tensor) -> Tensor:
        drawn = self._own(value)
        mixtures = (
            self.conditionals(value) if drawn is None else self.network.mixture(drawn.outputs)
        )
        return self._summed(mixtures.log_prob(value))

    def conditionals(self, value: Tensor) -> Any:
        """The distributions of all steps given the states before, of batch shape ``(*X, T)``."""
        contexts = self.contexts.transpose(0, 1)  # (N, T, R)
        previous = before(value, self.network.initial)
        return self.network.mixture(self.network.outputs(previous, contexts))

    def score_parts(self, x: Tensor, *args: Any, **kwargs: Any) -> ScoreParts:
        drawn, log_prob = self._own(x), self.log_prob(x)
        if not self.has_rsample:
            return ScoreParts(log_prob, log_prob, 0)  # type: ignore[arg-type]
        if drawn is None or drawn.receipt is None or drawn.steps.draws is None:
            return ScoreParts(log_prob, 0, log_prob)  # type: ignore[arg-type]
        mixtures = self.network.mixture(drawn.outputs)
        each = score(mixtures, mixtures.responsibilities(x).detach(), drawn.steps.draws)
        return ScoreParts(log_prob, marked(self._summed(each), drawn.receipt), log_prob)

    def _own(self, value: Tensor) -> Drawn | None:
        """How a value was drawn, if it is the last sample."""
        drawn = self._drawn
        return drawn if drawn is not None and drawn.value is value else None

    def _summed(self, each: Tensor) -> Tensor:
        """Over the steps that are there, ``(*X, T) -> (*X,)``."""
        return (each * self.mask_of_steps).sum(-1)


class RelaxedChain(MixtureChain):
    """The same with steps that are drawn from relaxations of the mixtures.

    Args:
        network: makes the mixtures.
        contexts: ``(T, N, R)``.
        mask: ``(N, T)``.
        relaxed: from a mixture to its relaxation.
    """

    def __init__(
        self,
        network: Network,
        contexts: Tensor,
        mask: Tensor,
        relaxed: Callable[[Any], Any],
    ) -> None:
        super().__init__(network, contexts, mask)
        self.relaxed = relaxed

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> MixtureChain:
        mask = self.mask_of_steps.expand(*batch_shape, -1)
        return RelaxedChain(self.network, self.contexts, mask, self.relaxed)

    def _draw(self, sample_shape: Size) -> Drawn:
        state = self.network.initial.expand(*sample_shape, *self.batch_shape, -1)
        states, outputs, steps = [], [], []
        for context in self.contexts.unbind(0):
            output = self.network.outputs(state, context)
            step = self.relaxed(self.network.mixture(output))
            state = step.rsample()
            states.append(state)
            outputs.append(output)
            steps.append((step, state))
        return Drawn(torch.stack(states, -2), torch.stack(outputs, -2), steps, None)

    def log_prob(self, value: Tensor) -> Tensor:
        drawn = self._own(value)
        if drawn is None or drawn.steps[0][0].density == "mixture":
            return super().log_prob(value)
        return self._summed(torch.stack([step.log_prob(z) for step, z in drawn.steps], -1))
