"""Transforms of flows: run in both directions, with errors that name them."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import OutOfMemoryError, Tensor, nn
from torch.distributions import Transform
from torch.distributions.transforms import (
    ComposeTransform,
    IndependentTransform,
    _InverseTransform,
)

from pyro_mixtures.samples.remembering import version


def parts_of(transforms: Iterable[Transform]) -> Iterator[Transform]:
    """Transforms, and in place of those composed of others these: no point is computed twice."""
    for transform in transforms:
        if isinstance(transform, ComposeTransform) and _as_torch_does(transform):
            yield from parts_of(transform.parts)
        else:
            yield transform


def _as_torch_does(transform: ComposeTransform) -> bool:
    kind, own = type(transform), ("__call__", "log_abs_det_jacobian")
    return all(getattr(kind, name) is getattr(ComposeTransform, name) for name in own)


def moved(transform: Transform, point: Tensor) -> Tensor:
    """What a transform makes of a point.

    Raises:
        NotImplementedError: for inverses of transforms without an inverse.
        ValueError: for points that it does not take.
    """
    try:
        return transform(point)
    except (KeyError, NotImplementedError) as error:
        raise NotImplementedError(
            "Expected transforms that can be run forward for samples, but got"
            f" {_name(transform)}, of which there is no closed form: it has densities alone. Draw"
            " from a flow with the transform itself, or take one with both, such as"
            " spline_coupling or affine_autoregressive"
        ) from error
    except OutOfMemoryError:
        raise
    except (IndexError, RuntimeError, ValueError) as error:
        raise _unfit(transform, point, error) from error


def moved_back(transform: Transform, point: Tensor) -> Tensor:
    """The point that a transform makes a given one of.

    Raises:
        NotImplementedError: for transforms without an inverse.
        ValueError: for points that it does not take.
    """
    try:
        return transform.inv(point)
    except (KeyError, NotImplementedError) as error:
        raise NotImplementedError(
            "Expected transforms with an inverse for the density of a point that is no sample of"
            f" this flow, but got {_name(transform)}, which has none in closed form. Ask for the"
            " density of the very tensor that rsample returned, and no objective to stick the"
            " landing, which evaluates a copy of the flow, or to draw each component; for those of"
            f" data take {_name(transform)}.inv, without samples then, or a transform with both,"
            " such as spline_coupling or affine_autoregressive"
        ) from error
    except OutOfMemoryError:
        raise
    except (IndexError, RuntimeError, ValueError) as error:
        raise _unfit(transform, point, error) from error


def _unfit(transform: Transform, point: Tensor, error: Exception) -> ValueError:
    return ValueError(
        f"Expected transforms that take points of shape {tuple(point.shape)} and of"
        f" {point.dtype}, but {_name(transform)} failed there: {error}"
    )


def _name(transform: Transform) -> str:
    if isinstance(transform, _InverseTransform):
        return f"{_name(transform.inv)}.inv"
    return type(transform).__name__


def versions(transforms: Iterable[Transform]) -> tuple[tuple[int, int | None], ...]:
    """Each tensor in transforms, and how often it was changed in place: equal if none was."""
    if torch.compiler.is_compiling():  # where nothing changes between a draw and its density
        return ()
    seen: set[int] = set()
    found = [tensor for each in transforms for tensor in _tensors(each, seen)]
    return tuple((id(tensor), version(tensor)) for tensor in found)


def _tensors(owner: Any, seen: set[int]) -> Iterator[Tensor]:
    """Those of a transform, or of a function that it has: arguments, methods and closures."""
    if id(owner) in seen:
        return
    seen.add(id(owner))
    if isinstance(owner, Tensor):
        yield owner
    if isinstance(owner, nn.Module):
        yield from owner.parameters()
        yield from owner.buffers()
    for each in _inside(owner):
        yield from _tensors(each, seen)


def _inside(owner: Any) -> Iterator[Any]:
    """What tensors of an object may be in."""
    if isinstance(owner, _InverseTransform):
        yield owner.inv
    elif isinstance(owner, Transform):
        # but for the last point, and itself
        yield from (
            x for name, x in vars(owner).items() if not name.startswith(("_cache", "_inv"))
        )
    elif isinstance(owner, (tuple, list)):
        yield from owner
    elif isinstance(owner, functools.partial):
        yield from (owner.func, *owner.args, *owner.keywords.values())
    elif isinstance(owner, types.MethodType):
        yield owner.__self__
    elif isinstance(owner, types.FunctionType):
        cells = owner.__closure__ or ()
        yield from (cell.cell_contents for cell in cells if cell != types.CellType())


def modules_of(transforms: Iterable[Any]) -> list[nn.Module]:
    """The modules among transforms, in those composed of others, and behind inverses."""
    found: list[nn.Module] = []
    for each in transforms:
        if isinstance(each, _InverseTransform):
            found += modules_of([each.inv])
        elif isinstance(each, ComposeTransform):
            found += modules_of(each.parts)
        elif isinstance(each, IndependentTransform):
            found += modules_of([each.base_transform])
        elif isinstance(each, nn.Module):
            found.append(each)
    return found


def without_memory(transforms: Iterable[Any]) -> None:
    """Have transforms forget their last points, which have graphs that cannot be copied."""
    for transform in parts_of(transforms):
        inner = transform.inv if isinstance(transform, _InverseTransform) else transform
        for each in inner.modules() if isinstance(inner, nn.Module) else [inner]:
            for name in list(vars(each)):
                if name == "_cached_x_y":
                    setattr(each, name, (None, None))
                elif name.startswith("_cached_") or name == "_cache_log_detJ":
                    setattr(each, name, None)
