"""The tensors that distributions are made of, and the same distributions with others in place.

A gradient that is computed in the backward pass needs the rules of a family at tensors of its own:
leaves, which autograd hands what flows to the parameters.
"""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from pyro.ops.provenance import ProvenanceTensor, detach_provenance
from torch import Tensor, nn
from torch.distributions import Distribution, Transform
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import _InverseTransform
from torch.distributions.utils import lazy_property

from pyro_mixtures.numerics.precision import is_transformed, records_graph

OBJECTS = (Distribution, Transform, nn.Module)
"""Those whose attributes may hold tensors."""

FAMILIAR = ("torch.distributions.", "pyro.distributions.")
"""Modules of classes that hold no tensor elsewhere."""

PLAIN = (
    *(bool, int, float, str, slice, type(None), torch.Size, torch.dtype, torch.device),
    *(Constraint, weakref.ref),
)
"""What holds no tensor that moves points."""


class LiveTensors:
    """The floating point tensors of some distributions.

    They are looked for in attributes of distributions, transforms and modules, in containers and
    in the arguments of partial functions. What a transform remembers of its last points is none.

    Args:
        wholes: the distributions.

    Attributes:
        tensors: those that may need a gradient.
        fixed: the others.
    """

    def __init__(self, wholes: Sequence[Distribution]) -> None:
        self.wholes = wholes
        self.familiar, self.transformed = True, False
        found: dict[int, Tensor] = {}
        self._find(wholes, found, set())
        hidden = records_graph() or is_transformed()  # which may need gradients
        every = found.values()
        self.tensors = tuple(x for x in every if hidden or x.requires_grad)
        self.fixed = () if hidden else tuple(x for x in every if not x.requires_grad)

    def _find(self, thing: Any, found: dict[int, Tensor], seen: set[int]) -> None:
        if isinstance(thing, Tensor):
            if thing.is_floating_point():
                found[id(thing)] = thing
            return
        if id(thing) in seen:
            return
        parts = _parts(thing)
        if parts is None:
            self.familiar &= isinstance(thing, PLAIN)
        else:
            known = not isinstance(thing, OBJECTS) or type(thing).__module__.startswith(FAMILIAR)
            self.familiar &= known
            self.transformed |= isinstance(thing, Transform)
            seen.add(id(thing))
            for part in parts:
                self._find(part, found, seen)

    def rebuilt(self, tensors: Iterable[Tensor]) -> list[Any]:
        """The distributions with other tensors in place of ``self.tensors``."""
        pairs = zip(self.tensors, tensors, strict=True)
        return self._copied(list(self.wholes), {id(old): new for old, new in pairs})

    def _copied(self, thing: Any, made: dict[int, Any]) -> Any:
        if id(thing) in made:
            return made[id(thing)]
        new: Any
        if isinstance(thing, OBJECTS):
            new = made[id(thing)] = object.__new__(type(thing))
            new.__dict__.update(self._attributes(thing, made))
        elif isinstance(thing, dict):
            new = copy.copy(thing)
            new.update({name: self._copied(value, made) for name, value in thing.items()})
        elif type(thing) in (list, tuple):
            new = type(thing)(self._copied(part, made) for part in thing)
        elif isinstance(thing, functools.partial):
            args, keywords = self._copied(thing.args, made), self._copied(thing.keywords, made)
            new = functools.partial(self._copied(thing.func, made), *args, **keywords)
            vars(new).update(self._copied(vars(thing), made))
        elif isinstance(thing, types.MethodType):
            new = types.MethodType(thing.__func__, self._copied(thing.__self__, made))
        else:
            return _plain(thing)
        made[id(thing)] = new
        return new

    def _attributes(self, thing: Any, made: dict[int, Any]) -> dict[str, Any]:
        attributes: dict[str, Any] = _as_new(thing) if isinstance(thing, Transform) else {}
        for name, value in vars(thing).items():
            if name in attributes:
                continue
            if _is_own_method(thing, name, value):
                continue  # the class has it, and the copy is no cycle
            if isinstance(value, Tensor) and id(value) not in made:
                # computed since from what is replaced: to be computed anew
                if isinstance(getattr(type(thing), name, None), lazy_property):
                    continue
                value = _plain(value)
            else:
                value = self._copied(value, made)
            attributes[name] = value
        return attributes

    def forget(self, rebuilt: Iterable[Any]) -> None:
        """Free the points that the transforms of rebuilt distributions remember.

        A transform and its inverse hold each other, and so would wait for the collector.
        """
        open_things, seen = list(rebuilt) if self.transformed else [], set()
        while open_things:
            thing = open_things.pop()
            if id(thing) in seen:
                continue
            seen.add(id(thing))
            open_things.extend(_parts(thing) or ())
            if isinstance(thing, Transform):
                vars(thing).update(_as_new(thing))

    def pull(
        self, outputs: Sequence[Tensor], leaves: Sequence[Tensor], cotangents: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """Gradients of leaves that stand for ``self.tensors`` by those of outputs.

        Raises:
            NotImplementedError: if the outputs depend on other tensors, for no gradient would
                reach these.
        """
        pairs = [(x, y) for x, y in zip(outputs, cotangents, strict=True) if x.requires_grad]
        if not pairs or not leaves:
            return [torch.zeros_like(leaf) for leaf in leaves]
        moving, slopes = zip(*pairs, strict=True)
        if not self.familiar:
            self._check_known(moving, leaves)
        return torch.autograd.grad(
            moving, leaves, slopes, allow_unused=True, materialize_grads=True
        )

    def _check_known(self, outputs: Iterable[Tensor], leaves: Iterable[Tensor]) -> None:
        known = {id(leaf) for leaf in leaves}
        open_nodes, seen = [output.grad_fn for output in outputs], set()
        while open_nodes:
            node: Any = open_nodes.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            variable = getattr(node, "variable", None)
            if variable is not None and id(variable) not in known:
                names = ", ".join(sorted({type(whole).__name__ for whole in self.wholes}))
                raise NotImplementedError(
                    f"Expected components ({names}) whose tensors are attributes of theirs, or of"
                    " distributions and transforms in them, but their velocity depends on one of"
                    f" shape {tuple(variable.shape)} that is none: make it an attribute"
                )
            open_nodes.extend(parent for parent, _ in node.next_functions)


def _parts(thing: Any) -> Iterable[Any] | None:
    """What a thing is made of, or None of one that holds no tensors."""
    if isinstance(thing, OBJECTS):
        return [each for name, each in vars(thing).items() if not _is_cache(thing, name)]
    if isinstance(thing, dict):
        return thing.values()
    if type(thing) in (list, tuple):
        return thing
    if isinstance(thing, functools.partial):
        return thing.func, thing.args, thing.keywords, vars(thing)
    if isinstance(thing, types.MethodType):
        return (thing.__self__,)
    return None


def _as_new(transform: Transform) -> dict[str, Any]:
    """Attributes of a transform that has seen no points yet and has not been inverted."""
    attributes: dict[str, Any] = {
        name: None
        for name, value in vars(transform).items()
        if _is_cache(transform, name) and isinstance(value, Tensor)
    }
    attributes["_cached_x_y"] = None, None
    if not isinstance(transform, _InverseTransform):  # which is made of that
        attributes["_inv"] = None
    return attributes


def _is_cache(thing: Any, name: str) -> bool:
    """Whether a transform remembers its last points so, in a graph of their own."""
    return isinstance(thing, Transform) and name.startswith("_cache")


def _is_own_method(thing: Any, name: str, value: Any) -> bool:
    """Whether an attribute holds a method of the thing that it has without."""
    is_bound = isinstance(value, types.MethodType) and value.__self__ is thing
    return is_bound and value.__func__ is getattr(type(thing), name, None)


def _plain(thing: Any) -> Any:
    """Without the origin that a tensor may tell: it is no parameter."""
    return detach_provenance(thing) if isinstance(thing, ProvenanceTensor) else thing
