r"""Whether a score term is part of a loss: the backward pass itself tells the sample.

A sample whose weights' gradient is shared with a score term S must know whether the loss that is
differentiated contains S. It does, for autograd runs a node only after all of its consumers that
take part in the loss: a sample comes with a *receipt*
(:func:`~pyro_mixtures.velocity.pathwise.scored_pathwise`), and each use of S hands the receipt a
gradient, which arrives at the sample's node together with that of the sample. Nothing is kept
between forward and backward: a graph that is run twice, transformed, traced or compiled tells the
truth each time.
"""

from __future__ import annotations

import inspect
import warnings

import torch
from torch import Tensor

from pyro_mixtures.velocity.overrides import overridable


class UnusedScoreWarning(UserWarning):
    """The objective leaves the score term between groups of a mixture's components aside."""


def is_used(receipt: Tensor | None) -> bool | Tensor:
    """What the gradient of a receipt says; ``torch.compile`` puts zeros in place of None."""
    if torch.compiler.is_compiling() and receipt is not None:
        return receipt > 0
    if receipt is None:
        warnings.warn(
            "The samples of a mixture whose components form several groups carry the whole"
            " gradient of its weights, since the loss does not use the mixture's score term. It is"
            " unbiased, but its variance grows like exp(d^2 / 8) with the distance d between the"
            " groups. Trace_ELBO, TraceEnum_ELBO and BaselinedTrace_ELBO use the term; with"
            " weight_gradient='pathwise' there is none.",
            UnusedScoreWarning,
            stacklevel=2,
        )
    return receipt is not None


@overridable
def chosen(with_score: Tensor, alone: Tensor) -> tuple[Tensor, Tensor]:
    """One of two equal samples, by whether the score term is used, and the receipt that tells.

    Args:
        with_score: moves as it should beside a score term.
        alone: moves as it should without one.

    Example:
        >>> beside = torch.zeros(2, requires_grad=True)
        >>> alone = torch.zeros(2, requires_grad=True)
        >>> z, receipt = chosen(beside, alone)
        >>> score = torch.zeros(2, requires_grad=True)
        >>> (z + marked(score, receipt)).sum().backward()
        >>> beside.grad, alone.grad
        (tensor([1., 1.]), None)
    """
    return _Chosen.apply(with_score, alone)


@overridable
def marked(score: Tensor, receipt: Tensor) -> Tensor:
    """``score``, which in the backward pass tells the owner of the receipt that it was used.

    Example:
        >>> receipt = torch.zeros((), requires_grad=True)
        >>> score = torch.zeros(3, requires_grad=True)
        >>> (5 * marked(score, receipt)).sum().backward()
        >>> score.grad, receipt.grad > 0
        (tensor([5., 5., 5.]), tensor(True))
    """
    return _Marked.apply(score, receipt)


@overridable
def gated(score: Tensor, receipt: Tensor) -> tuple[Tensor, Tensor]:
    """``score`` whose gradient passes only if the receipt that is returned was used.

    For what completes a score term and is nothing without it.

    Example:
        >>> receipt = torch.zeros((), requires_grad=True)
        >>> score = torch.zeros(3, requires_grad=True)
        >>> value, passed_on = gated(score, receipt)
        >>> (7 * value).sum().backward(retain_graph=True)
        >>> score.grad, receipt.grad
        (None, None)
        >>> (7 * value + 5 * marked(value, passed_on)).sum().backward()
        >>> score.grad.tolist(), receipt.grad > 0
        ([12.0, 12.0, 12.0], tensor(True))
    """
    return _Gated.apply(score, receipt)


class _Chosen(torch.autograd.Function):
    @staticmethod
    def forward(with_score, alone):
        return with_score.clone(), with_score.new_zeros(())

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad, receipt):
        if grad is None:  # a score term without its sample
            return None, None
        used = is_used(receipt)
        if isinstance(used, Tensor):
            return torch.where(used, grad, 0), torch.where(used, 0, grad)
        return (grad, None) if used else (None, grad)

    @staticmethod
    def vmap(info, in_dims, with_score, alone):
        pair = zip((with_score, alone), in_dims, strict=True)
        tensors = (
            x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in pair
        )
        return _Chosen.apply(*tensors), (0, None)


class _Marked(torch.autograd.Function):
    @staticmethod
    def forward(score, receipt):
        return score.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad, grad.new_ones(())

    @staticmethod
    def vmap(info, in_dims, score, receipt):
        return _Marked.apply(score, receipt), in_dims[0]


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(score, receipt):
        return score.clone(), receipt.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad, receipt):
        if grad is None or receipt is None:
            return None, receipt
        return torch.where(receipt > 0, grad, 0), receipt  # zeros where torch.compile fills in

    @staticmethod
    def vmap(info, in_dims, score, receipt):
        return _Gated.apply(score, receipt), in_dims


# what torch would otherwise find out at each call, for more than the cost of the call itself
for _function in (_Chosen, _Marked, _Gated):
    _function.forward.__signature__ = inspect.signature(_function.forward)  # type: ignore[attr-defined]
