"""The one way a gradient enters a sample: an identity whose backward pass is a velocity field."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_mixtures.numerics.eager import applied
from pyro_mixtures.numerics.overrides import overridable
from pyro_mixtures.numerics.precision import is_transformed
from pyro_mixtures.numerics.score_use import is_used

VectorJacobianProduct = Callable[..., tuple[Tensor, ...]]


@overridable
def pathwise(z: Tensor, vjp: VectorJacobianProduct, *parameters: Tensor) -> Tensor:
    r"""Return ``z`` unchanged, with gradients that flow to ``parameters`` by ``vjp``.

    When ``z`` moves with the velocity :math:`v^\theta`, the incoming gradient :math:`g_s` reaches
    the parameter as :math:`\sum_s g_s \cdot v^\theta(z_s)`; ``vjp`` computes that sum.

    Args:
        z: samples drawn without gradient, shape ``(*B, S, D)``: the sample dimension stands
            next to the event so that sums over samples are matrix products.
        vjp: ``vjp(z, grad, *parameters)`` returns the gradients of the parameters, each of the
            parameter's shape; the last parameters may go without. It must be a pure function of
            its arguments.
        parameters: tensors of shape ``(*B, ...)``, each with the full batch shape ``B``.

    Returns:
        A tensor equal to ``z``; ``z`` itself where no parameter needs a gradient.

    Raises:
        NotImplementedError: when the gradient itself is differentiated.

    Reference:
        Jankowiak and Karaletsos, *Pathwise Derivatives for Multivariate Distributions*, Eq. 2-3.

    Example:
        >>> loc = torch.zeros(1, requires_grad=True)
        >>> z = pathwise(torch.randn(5, 1), lambda z, grad, loc: (grad.sum(-2),), loc)
        >>> z.sum().backward()
        >>> loc.grad
        tensor([5.])
    """
    if not needs_gradient(*parameters):
        return z
    return applied(_Pathwise, z, vjp, *parameters)


@overridable
def scored_pathwise(
    z: Tensor, vjp: VectorJacobianProduct, *parameters: Tensor
) -> tuple[Tensor, Tensor]:
    r"""``pathwise`` of samples that may have a score term beside them.

    Args:
        z: as for :func:`pathwise`.
        vjp: as for :func:`pathwise`, with a keyword ``used``: whether a term
            :func:`~pyro_mixtures.numerics.score_use.marked` with the receipt is part of the loss
            whose gradient ``grad`` is; None for those that are not, where some are.
        parameters: as for :func:`pathwise`.

    Returns:
        A tensor equal to ``z``, and the receipt, a zero of shape ``()``.
    """
    return applied(_ScoredPathwise, z, vjp, *parameters)


def needs_gradient(*tensors: Tensor) -> bool:
    """Whether any tensor may need a gradient; transforms and the compiler do not tell."""
    return torch.is_grad_enabled() and (
        torch.compiler.is_compiling()
        or is_transformed()
        or any(tensor.requires_grad for tensor in tensors)
    )


class _Pathwise(torch.autograd.Function):
    @staticmethod
    def forward(z, vjp, *parameters):
        return z.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        z, ctx.vjp, *parameters = inputs
        ctx.save_for_backward(z, *parameters)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad):
        return _gradients(ctx, grad, ctx.vjp)

    @staticmethod
    def vmap(info, in_dims, z, vjp, *parameters):
        z_dim, _, *parameter_dims = in_dims
        tensors = _batch_first(info.batch_size, (z, *parameters), (z_dim, *parameter_dims))
        return _Pathwise.apply(tensors[0], vjp, *tensors[1:]), 0


class _ScoredPathwise(torch.autograd.Function):
    @staticmethod
    def forward(z, vjp, *parameters):
        return z.clone(), z.new_zeros(())

    @staticmethod
    def setup_context(ctx, inputs, output):
        # the receipt has no gradient where no score term is used
        _Pathwise.setup_context(ctx, inputs, output)

    @staticmethod
    def backward(ctx, grad, receipt):
        if grad is None:  # a score term without its sample
            return _gradients(ctx, None, ctx.vjp)
        used = is_used(receipt)
        if not isinstance(used, Tensor):
            return _gradients(ctx, grad, functools.partial(ctx.vjp, used=used))
        # None: what is not used by some rows is neither refused nor warned of
        parts = (True, torch.where(used, grad, 0)), (None, torch.where(used, 0, grad))
        both = (_gradients(ctx, part, functools.partial(ctx.vjp, used=x)) for x, part in parts)
        return tuple(a if a is None else a + b for a, b in zip(*both, strict=True))

    @staticmethod
    def vmap(info, in_dims, z, vjp, *parameters):
        z_dim, _, *parameter_dims = in_dims
        tensors = _batch_first(info.batch_size, (z, *parameters), (z_dim, *parameter_dims))
        return _ScoredPathwise.apply(tensors[0], vjp, *tensors[1:]), (0, None)


def _gradients(ctx, grad: Tensor | None, vjp: VectorJacobianProduct) -> tuple[Tensor | None, ...]:
    """Of all arguments of a Function's ``forward``."""
    z, *parameters = ctx.saved_tensors
    if grad is None:
        return (None,) * (2 + len(parameters))
    if torch.is_grad_enabled():
        gradients = _PathwiseGradient.apply(z, grad, vjp, *parameters)
    else:
        gradients = vjp(z, grad, *parameters)
    return None, None, *gradients, *(None,) * (len(parameters) - len(gradients))


class _PathwiseGradient(torch.autograd.Function):
    """The backward pass where a transform or ``create_graph`` may look at it.

    As a Function of its own it always hands plain tensors with their batch dimensions to ``vjp``,
    which may look at values, and a second derivative meets a clear error.
    """

    @staticmethod
    def forward(z, grad, vjp, *parameters):
        return vjp(z, grad, *parameters)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *_):
        raise NotImplementedError(
            "second derivatives of a pathwise sample are not implemented: the velocity field is"
            " not unique and its own derivative is not tracked. Differentiate log_prob instead,"
            " or estimate curvature from differences of first derivatives."
        )

    @staticmethod
    def vmap(info, in_dims, z, grad, vjp, *parameters):
        z_dim, grad_dim, _, *parameter_dims = in_dims
        dims = (z_dim, grad_dim, *parameter_dims)
        tensors = _batch_first(info.batch_size, (z, grad, *parameters), dims)
        gradients = _PathwiseGradient.apply(*tensors[:2], vjp, *tensors[2:])
        return gradients, (0,) * len(gradients)


def _batch_first(size: int, tensors, dims) -> list[Tensor]:
    """Move (or add, by expanding) the vmapped dimension to the front of each tensor."""
    return [
        tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for tensor, dim in zip(tensors, dims, strict=True)
    ]
