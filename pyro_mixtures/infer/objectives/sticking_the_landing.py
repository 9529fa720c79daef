"""Distributions whose density carries the gradient of its argument alone."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import pyro.distributions
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import _InverseTransform

from pyro_mixtures.components import Components, Diagonal, Shared, Sized
from pyro_mixtures.samples.groups import Grouping

_VALUES = (Components, Diagonal, Shared, Sized, Grouping)  # what mixtures are made of

DistributionT = TypeVar("DistributionT", bound=Distribution)

# attributes that hold no tensors, or (the bounds of a constraint) none that enter a density
_PLAIN = (
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    slice,
    torch.dtype,
    torch.device,
    type,
    Constraint,
)

_CARRIERS = (pyro.distributions.Delta, pyro.distributions.Unit)  # of densities of other samples

_OF_MODULES = frozenset(vars(nn.Module()))

_KEPT_BY_TRANSFORMS = ("_inv", "_cached_x_y")  # the inverse and the last point


def detached(fn: DistributionT) -> DistributionT:
    r"""A copy of a distribution whose parameters carry no gradient.

    In an ELBO the guide's log density has two gradients: through the sample z and of the
    parameters at a fixed z, :math:`\nabla_\theta \log q_\theta(z)`. The second has mean zero, for
    it is the score function. Without it ("sticking the landing") the variance of the gradient
    vanishes where the guide meets the posterior. ``detached(q).log_prob(z)`` has the first only.

    Where the parameters depend on the sample of another site, the gradient by that at a fixed z is
    left out with them. It has mean zero, too, but the variance no longer vanishes.

    ``Delta`` and ``Unit`` (of ``pyro.factor``) are returned as they are, also within another
    distribution: the log density that they carry was computed elsewhere.

    Args:
        fn: a distribution of this package, of torch or of Pyro, however wrapped: ``to_event``,
            ``mask``, ``expand``, transforms. Its tensors, those kept from earlier calls included,
            are detached; no numbers are copied.

    Returns:
        A distribution of the same class with equal values. ``fn`` stays as it was.

    Raises:
        NotImplementedError: for attributes (functions, objects of other kinds) that may hide
            parameters, those of modules among the transforms, too.

    Reference:
        Roeder, Wu and Duvenaud, *Sticking the Landing: Simple, Lower-Variance Gradient Estimators
        for Variational Inference* (2017), https://arxiv.org/abs/1703.09194.

    Example:
        >>> loc = torch.tensor(1.0, requires_grad=True)
        >>> q = pyro.distributions.Normal(loc, 1.0)
        >>> z = q.rsample()
        >>> (q.log_prob(z) + 0 * loc).backward()  # through z and at z: they cancel
        >>> loc.grad
        tensor(0.)
        >>> detached(q).log_prob(z).backward()
        >>> bool(loc.grad == loc - z)
        True
    """
    if isinstance(fn, _CARRIERS):
        return fn
    return _detached_copy(fn, type(fn).__name__)


def _detached_copy(owner: Any, name: str, left_out: tuple[str, ...] = ()) -> Any:
    new = copy.copy(owner)
    for key, value in new.__dict__.items():  # a class may leave out of copies its last sample
        if key not in left_out:
            new.__dict__[key] = _detached_value(value, f"{name}.{key}")
    return new


def _detached_transform(transform: Transform, name: str) -> Transform:
    if isinstance(transform, nn.Module):
        return _detached_module(transform, name)
    if isinstance(transform, _InverseTransform):
        return _detached_transform(transform.inv, name).inv
    new = _detached_copy(transform, name, left_out=_KEPT_BY_TRANSFORMS)
    new._inv = None  # it would lead back to the original
    if transform._cache_size:  # the kept point does not move with the transform's parameters
        new._cached_x_y = None, None
    return new


def _detached_module(module: Any, name: str) -> Any:
    """A copy with the same numbers, without their gradient; what was found before is left out."""
    known: dict[int, Any] = {}  # what copies find in place of an object
    for part in module.modules():
        for key, value in vars(part).items():
            if isinstance(value, Tensor):
                known[id(value)] = value.detach()
            elif key == "_cached_x_y":
                known[id(value)] = None, None
            elif not (key in _OF_MODULES or key in _KEPT_BY_TRANSFORMS or _is_open(value, part)):
                raise NotImplementedError(
                    f"Expected {name} to be a module without functions that may hide parameters,"
                    f" but got the module {type(module).__name__}, with {key} of"
                    f" {type(part).__name__}: do without sticking the landing"
                )
        for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
            known[id(tensor)] = tensor.detach()
    return copy.deepcopy(module, known)


def _is_open(value: Any, part: nn.Module) -> bool:
    """Whether all tensors with a gradient in an attribute of a module belong to modules in it."""
    if isinstance(value, (list, tuple)):
        return all(_is_open(each, part) for each in value)
    own = getattr(value, "__self__", None) is part  # a method
    return isinstance(value, nn.Module) or own or _is_constant(value)


def _detached_value(value: Any, name: str) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, _CARRIERS):
        return value
    if isinstance(value, (Distribution, *_VALUES)):
        return _detached_copy(value, name)
    if isinstance(value, Transform):
        return _detached_transform(value, name)
    if isinstance(value, dict):
        return {key: _detached_value(each, f"{name}[{key!r}]") for key, each in value.items()}
    if isinstance(value, torch.Size):
        return value
    if isinstance(value, (tuple, list)):
        values = [_detached_value(each, f"{name}[{i}]") for i, each in enumerate(value)]
        return type(value)(*values) if hasattr(value, "_fields") else type(value)(values)
    if _is_constant(value):
        return value
    raise NotImplementedError(
        f"Expected {name} to be a tensor, a distribution or a transform, but got"
        f" {type(value).__name__}, which may hide parameters: do without sticking the landing"
    )


def _is_constant(value: Any) -> bool:
    """Whether a value surely holds no tensor that has a gradient, as functions may."""
    if isinstance(value, Tensor):
        return not value.requires_grad
    if value is None or isinstance(value, _PLAIN):
        return True
    if isinstance(value, dict):
        return all(map(_is_constant, value.values()))
    if isinstance(value, (tuple, list, set)):
        return all(map(_is_constant, value))
    if callable(value) and not isinstance(value, nn.Module):
        return False
    own = getattr(value, "__dict__", None)
    return own is not None and all(
        _is_constant(own[key]) for key in own if key not in _KEPT_BY_TRANSFORMS
    )
