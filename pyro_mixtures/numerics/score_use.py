r"""Whether a score term is part of a loss: the backward pass itself tells the sample.

A sample whose weights' gradient is shared with a score term S must know whether the loss that is
differentiated contains S. It does, for autograd runs a node only after all of its consumers that
take part in the loss: a sample comes with a *receipt*
(:func:`~pyro_mixtures.numerics.pathwise_function.scored_pathwise`), and each use of S hands the
receipt a gradient, which arrives at the sample's node together with that of the sample. A gradient
of zero is no use: that is how torch fills in for none, and a term that is multiplied by zero
completes nothing. Nothing is kept between forward and backward: a graph that is run twice,
transformed, traced or compiled tells the truth each time.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from pyro_mixtures.numerics.eager import applied
from pyro_mixtures.numerics.overrides import overridable
from pyro_mixtures.numerics.precision import is_transformed


class UnusedScoreWarning(UserWarning):
    """The objective leaves the score term between groups of a mixture's components aside."""


def is_used(receipt: Tensor | None) -> bool | Tensor:
    """What the gradient of a receipt says: a tensor where a transform hides values."""
    if torch.compiler.is_compiling() and receipt is not None:
        return receipt > 0
    try:
        return receipt is not None and bool(receipt > 0)
    except RuntimeError:  # each row of a batch of backward passes has its own
        return receipt > 0  # type: ignore[operator]


def warn_unused() -> None:
    """Warn that samples carry what the score term should."""
    warnings.warn(
        "The samples of a mixture whose weights have a score term carry the whole gradient of"
        " these, since the loss does not use the term. It is unbiased, but its variance grows"
        " like exp(d^2 / 8) with the distance d of components. Trace_ELBO, TraceEnum_ELBO,"
        " BaselinedTrace_ELBO and ImportanceWeighted_ELBO use the term; with"
        " weight_gradient='pathwise' there is none.",
        UnusedScoreWarning,
        stacklevel=1,
    )


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
    return applied(_Marked, score, receipt)


@overridable
def completed(score: Tensor, receipt: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
    r"""``marked(score, receipt)``, and what adds to the cost that the score term meets.

    Args:
        score: S, the score term.
        receipt: of the sample.
        cost: c, of the shape of the score, without gradient.

    Returns:
        The score, and zeros with the gradient :math:`c \nabla S`, which passes only if the score
        is used, too: alone it would complete nothing.

    Example:
        >>> receipt = torch.zeros((), requires_grad=True)
        >>> logits = torch.zeros(3, requires_grad=True)
        >>> score, completion = completed(logits, receipt, torch.tensor([1.0, 2.0, 3.0]))
        >>> completion.sum().backward(retain_graph=True)
        >>> logits.grad, receipt.grad
        (None, None)
        >>> (5 * score + completion).sum().backward()
        >>> logits.grad, receipt.grad > 0
        (tensor([6., 7., 8.]), tensor(True))
    """
    return applied(_Completed, score, receipt, cost)


class _Marked(torch.autograd.Function):
    @staticmethod
    def forward(score, receipt):
        return score.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad, _receipt(grad)

    @staticmethod
    def vmap(info, in_dims, score, receipt):
        return _Marked.apply(score, receipt), in_dims[0]


class _Completed(torch.autograd.Function):
    @staticmethod
    def forward(score, receipt, cost):
        return score.clone(), torch.zeros_like(score)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[2])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad, completion):
        (cost,) = ctx.saved_tensors
        if grad is None:
            return None, None, None
        # here a cost of zero is a part of the whole, unless torch has filled it in
        fills_in = torch.compiler.is_compiling() or is_transformed()
        receipt = _receipt(grad) if fills_in else grad.new_ones(())
        if completion is not None:
            grad = grad + completion * cost * receipt
        return grad, receipt, None

    @staticmethod
    def vmap(info, in_dims, score, receipt, cost):
        tensors = (
            x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip((score, cost), (in_dims[0], in_dims[2]), strict=True)
        )
        score, cost = tensors
        return _Completed.apply(score, receipt, cost), (0, 0)


def _receipt(grad: Tensor) -> Tensor:
    """One, or zero for a gradient of zero, which stands for none where torch fills in."""
    return (grad != 0).any().to(grad)
