"""Recurrent networks as one node of the graph each: a weight's gradient is a single product."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_mixtures.numerics.score_use import is_used
from pyro_mixtures.samples.blending import Draws


class Pullback(Protocol):
    """How the gradients at the states of a chain come back to the parameters of its steps."""

    def __call__(self, place: int, grad: Tensor) -> tuple[Tensor, ...]:
        """From those at the states of a step, ``(N, D)``, to parts of ``(N, P)``."""

    def end(self) -> None:
        """All steps have been called."""


class Steps(Protocol):
    """The distributions of the states of a chain by their parameters.

    Attributes:
        draws: learns of transport and score function, if there is a score term.
    """

    draws: Draws | None

    def draw(self, outputs: Tensor) -> Tensor:
        """``(N, P) -> (N, D)``."""

    def pullback(self, outputs: Tensor, states: Tensor, used: bool) -> Pullback:
        """For parameters ``(T, N, P)`` and what was drawn, ``(T, N, D)``.

        ``used`` tells whether a score term is part of the loss.
        """


class Tanh(torch.autograd.Function):
    r""":math:`h_t = \tanh(x_t + U h_{t-1})`."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, start: Tensor, weight: Tensor) -> Tensor:
        """Of ``(T, N, R)``, ``(R,)`` and ``(R, R)``: ``(T, N, R)``."""
        states, state = torch.empty_like(inputs), start.expand_as(inputs[0])
        for x, here in zip(inputs.unbind(0), states.unbind(0), strict=True):
            state = torch.addmm(x, state, weight.mT, out=here).tanh_()
        ctx.save_for_backward(start, weight, states)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        start, weight, states = ctx.saved_tensors
        found, later = _slopes(states), torch.zeros_like(states[0])
        for place in reversed(range(len(states))):
            here = found[place].mul_(later.add_(grad[place]))
            torch.mm(here, weight, out=later)
        by_weight = _product(found, _before(states, start))
        return found, later.sum(0), by_weight


class Combined(torch.autograd.Function):
    r"""States of a chain whose steps depend on the state before and on a context.

    .. math::
        p_t = A \tfrac12 [\tanh(W z_{t-1} + b) + h_t] + a, \qquad z_t \sim q(\cdot \mid p_t)

    The states carry the gradients that the steps' pullbacks give.
    """

    @staticmethod
    def forward(
        ctx: Any,
        steps: Steps,
        contexts: Tensor,
        initial: Tensor,
        weight: Tensor,
        bias: Tensor,
        head: Tensor,
        head_bias: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of contexts ``(T, N, R)``: parameters, states, and a receipt for a score term."""
        length, count, _ = contexts.shape
        hidden, half = torch.empty_like(contexts), head.mT / 2
        outputs = contexts.new_empty(length, count, len(head))
        states = contexts.new_empty(length, count, len(initial))
        state = initial.expand(count, -1)
        for place in range(length):
            here, output = hidden[place], outputs[place]
            torch.addmm(bias, state, weight.mT, out=here).tanh_()
            torch.addmm(head_bias, here + contexts[place], half, out=output)
            state = states[place].copy_(steps.draw(output))
        ctx.steps = steps
        ctx.save_for_backward(contexts, initial, weight, head, hidden, outputs, states)
        return outputs, states, states.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, by_outputs: Tensor, by_states: Tensor, receipt: Tensor
    ) -> tuple[Tensor | None, ...]:
        contexts, initial, weight, head, hidden, outputs, states = ctx.saved_tensors
        pullback = ctx.steps.pullback(outputs, states, bool(is_used(receipt)))
        slopes, half = _slopes(hidden), head / 2
        found, by_contexts = by_outputs.clone(), torch.empty_like(hidden)
        later = torch.zeros_like(states[0])
        for place in reversed(range(len(states))):
            here = found[place]
            here += torch.cat(pullback(place, later.add_(by_states[place])), -1)
            by_hidden = slopes[place].mul_(torch.mm(here, half, out=by_contexts[place]))
            torch.mm(by_hidden, weight, out=later)
        pullback.end()
        return (
            None,
            by_contexts,
            later.sum(0),
            _product(slopes, _before(states, initial)),
            slopes.sum((0, 1)),
            _product(found, hidden.add(contexts).div_(2)),
            found.sum((0, 1)),
        )


def _slopes(tanh: Tensor) -> Tensor:
    """Of the hyperbolic tangent, by its values."""
    return torch.addcmul(tanh.new_ones(()), tanh, tanh, value=-1)


def _before(states: Tensor, initial: Tensor) -> Tensor:
    """The state before each, ``(T, N, D)``."""
    return torch.cat([initial.expand_as(states[:1]), states[:-1]])


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Of ``(T, N, P)`` and ``(T, N, Q)``, the sum over steps and sequences: ``(P, Q)``."""
    return left.flatten(0, 1).mT @ right.flatten(0, 1)
