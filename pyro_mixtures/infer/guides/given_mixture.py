"""What a mixture guide takes from a mixture that it is given."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pyro.nn import PyroParam
from torch import Tensor

from pyro_mixtures.distributions import (
    MixtureDistribution,
    MixtureOfDiagNormals,
    MixtureOfNormals,
)


class GivenMixture(NamedTuple):
    """A mixture, as values of a guide's parameters.

    Args:
        size: D, of the vectors that it is over.
        values: of the components' parameters, by name.
        logits: of the weights, ``(K,)``.
    """

    size: int
    values: dict[str, Tensor]
    logits: Tensor


def check_vectors(mixture: Any) -> None:
    """Raise a ``ValueError`` for what is no mixture of this package, of vectors, alone."""
    if not isinstance(mixture, MixtureDistribution):
        raise ValueError(
            "Expected mixture to be a mixture of pyro_mixtures.distributions, but got"
            f" {type(mixture).__name__}"
        )
    if mixture.batch_shape or len(mixture.event_shape) != 1:
        raise ValueError(
            "Expected mixture to have batch shape () and event shape (D,), but got"
            f" {tuple(mixture.batch_shape)} and {tuple(mixture.event_shape)}"
        )


def component_parameters(mixture: MixtureDistribution, distribution: Any) -> dict[str, Any]:
    """The component parameters of a class with named tensors, read from a mixture.

    Args:
        mixture: of that class, or of Normals that it can hold without a change: diagonal ones
            have a triangular factor, too, and components with equal factors share one.
        distribution: a :class:`~pyro_mixtures.distributions.ParametricMixture`.

    Raises:
        ValueError: for another mixture.
    """
    names: dict[str, str] = distribution.component_parameters
    if isinstance(mixture, distribution):
        return {name: getattr(mixture, name) for name in names}
    known = _of_normals(mixture)
    found = {name: known[name] for name in names if name in known}
    for name, letters in names.items():
        if name in found and "K" not in letters:
            first, *others = found[name].unbind(0)
            found[name] = first
            if any(not torch.equal(first, other) for other in others):
                del found[name]
    if found.keys() != names.keys() - {"control_var"}:  # that is none of the distribution's
        raise ValueError(
            f"Expected mixture to be a {distribution.__name__}, or Normals that are one without"
            f" a change, but got a {type(mixture).__name__} that is not"
        )
    return found


def _of_normals(mixture: MixtureDistribution) -> dict[str, Tensor]:
    """Means and factors of Normal components, each with K rows; else nothing."""
    try:
        locs, factor = mixture.components.normals("a guide")
    except NotImplementedError:
        return {}
    factor = factor.expand(len(locs), *factor.shape[1:])
    if factor.dim() == 2:
        return {"locs": locs, "coord_scale": factor, "scale_tril": factor.diag_embed()}
    diagonal = factor.diagonal(dim1=-2, dim2=-1)
    found = {"locs": locs, "scale_tril": factor}
    if torch.equal(factor.tril(), diagonal.diag_embed()):
        found["coord_scale"] = diagonal
    return found


def suited(mixture: MixtureDistribution, distribution: Any) -> MixtureDistribution | None:
    """The Normals of a class with named tensors that are nearest to those of a mixture.

    Without correlations each coordinate has its variance given all others, which has the least
    divergence from the mixture's; a covariance that components share is of their mean precision.

    Args:
        mixture: of Normals.
        distribution: as for :func:`component_parameters`, or None.

    Returns:
        What the class can hold, or None for a class with other parameters.
    """
    letters = {} if distribution is None else dict(distribution.component_parameters)
    letters.pop("control_var", None)
    if letters.keys() not in ({"locs", "coord_scale"}, {"locs", "scale_tril"}):
        return None
    locs, factor = mixture.components.normals("a guide")
    logits = mixture.log_weights
    if factor.dim() == 2 and letters.get("coord_scale") == "KD":
        return MixtureOfDiagNormals(locs, factor, logits)
    tril = factor.diag_embed() if factor.dim() == 2 else factor
    precisions = torch.cholesky_inverse(tril)  # (K, D, D)
    if "K" not in letters.get("coord_scale", letters.get("scale_tril", "")):
        mean = (logits.exp()[:, None, None] * precisions).sum(0)
        precisions = mean.expand_as(precisions)
    if "coord_scale" in letters:
        return MixtureOfDiagNormals(locs, precisions.diagonal(dim1=-2, dim2=-1).rsqrt(), logits)
    tril = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(precisions)))
    return MixtureOfNormals(locs, tril, logits)


def mean_stddev(mixture: MixtureDistribution) -> Tensor:
    """Of the Normals of a mixture, the geometric mean by weight, ``(D,)``."""
    _, factor = mixture.components.normals("a guide")
    stddevs = factor if factor.dim() == 2 else factor.norm(dim=-1)  # (K, D)
    return (mixture.log_weights.exp() @ stddevs.log()).exp()


def shape_of(first: Any) -> torch.Size:
    """That of a parameter as ``init_components`` gives it, a tensor or a ``PyroParam``."""
    value: Any = first.init_value if isinstance(first, PyroParam) else first
    return value.shape


def with_values(first: Any, name: str, value: Tensor) -> Any:
    """A parameter as a guide makes it, with another value.

    Args:
        first: a tensor, or a ``PyroParam`` with a constraint, as from ``init_components``.
        name: of the parameter, for errors.
        value: the other one; it takes dtype and device of the first.

    Raises:
        ValueError: for another shape, or a value outside of the constraint or not finite.
    """
    like: Any = first.init_value if isinstance(first, PyroParam) else first
    value = value.to(like)
    if value.shape != like.shape:
        raise ValueError(
            f"Expected the mixture's {name} to have the shape {tuple(like.shape)} of the guide's,"
            f" but got {tuple(value.shape)}"
        )
    inside = value.isfinite().all()
    if isinstance(first, PyroParam):
        inside = inside & first.constraint.check(value).all()
    if not bool(inside):
        raise ValueError(
            f"Expected the mixture's {name} to be finite and, in the guide's {like.dtype}, within"
            f" its constraint, but got {value}"
        )
    if isinstance(first, PyroParam):
        return PyroParam(value, first.constraint, first.event_dim)
    return value
