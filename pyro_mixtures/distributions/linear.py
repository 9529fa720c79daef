"""Parameters of marginals, conditionals and linear images of mixtures of Normals.

A family's ``component_parameters`` tell what becomes of each of its parameters: one whose letters
end in D belongs to coordinates, one that ends in DD is the Cholesky factor of a covariance. (What
stands above its diagonal is no parameter: ``tril`` keeps gradients from there.)
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping

import torch
from torch import Size, Tensor

from pyro_mixtures.distributions.validation import broadcast_shapes
from pyro_mixtures.velocity import full_covariance
from pyro_mixtures.velocity.precision import at_least_single

Parameters = dict[str, Tensor]


def checked_dims(dims: int | Iterable[int], size: int) -> list[int]:
    """Coordinates as numbers between 0 and ``size``, in the order given.

    Raises:
        ValueError: for none, for one twice, and for what is no coordinate.
    """
    try:
        indices = [operator.index(dim) for dim in (dims if isinstance(dims, Iterable) else [dims])]
    except TypeError:
        raise ValueError(f"Expected dims to be integers, but got {dims!r}") from None
    if not indices or not all(-size <= index < size for index in indices):
        raise ValueError(f"Expected dims to be some of the {size} coordinates, but got {dims!r}")
    indices = [index % size for index in indices]
    if len(set(indices)) < len(indices):
        raise ValueError(f"Expected dims to name each coordinate once, but got {dims!r}")
    return indices


def check_vectors(name: str, value: Tensor, size: int, batch_shape: Size) -> None:
    """Raise a ``ValueError`` for what is no tensor of shape ``(*X, size)``, X as the batch."""
    expected = (
        f"Expected {name} of shape (*X, {size}) where X broadcasts with {tuple(batch_shape)}"
    )
    if not isinstance(value, Tensor):
        raise ValueError(f"{expected}, but got {type(value).__name__}")
    try:
        fits = value.shape[-1:] == (size,) and broadcast_shapes(value.shape[:-1], batch_shape)
    except RuntimeError:
        fits = False
    if fits is False:
        raise ValueError(f"{expected}, but got shape {tuple(value.shape)}")


def check_matrix(matrix: Tensor, size: int) -> None:
    """Raise a ``ValueError`` for a shape other than ``(size,)`` and ``(<= size, size)``."""
    if not isinstance(matrix, Tensor):
        raise ValueError(f"Expected matrix to be a tensor, but got {type(matrix).__name__}")
    wide = matrix.dim() == 1 or (matrix.dim() == 2 and 1 <= matrix.shape[0] <= size)
    if not wide or matrix.shape[-1] != size:
        raise ValueError(
            f"Expected matrix of shape ({size},), or (D', {size}) with 1 <= D' <= {size}, but got"
            f" {tuple(matrix.shape)}"
        )


def check_rank(matrix: Tensor) -> None:
    """Raise a ``ValueError`` for scales of zero and matrices that lack full rank."""
    if matrix.dim() == 1:
        if not bool((matrix != 0).all()):
            raise ValueError(f"Expected a matrix of shape (D,) without zeros, but got {matrix}")
    elif int(torch.linalg.matrix_rank(*at_least_single(matrix.detach()))) < matrix.shape[0]:
        raise ValueError(f"Expected a matrix of full rank, but got {matrix}")


def lower_factor(matrix: Tensor) -> Tensor:
    """:func:`~pyro_mixtures.velocity.full_covariance.lower_factor`, also in half precision."""
    return full_covariance.lower_factor(*at_least_single(matrix)).to(matrix.dtype)


def select(parameters: Parameters, letters: Mapping[str, str], dims: list[int]) -> Parameters:
    """Of the marginal of some coordinates."""

    def part(value: Tensor, letters: str) -> Tensor:
        if letters.endswith("DD"):
            return lower_factor(value.tril()[..., dims, :])
        return value[..., dims] if letters.endswith("D") else value

    return {name: part(value, letters[name]) for name, value in parameters.items()}


def condition(
    parameters: Parameters,
    letters: Mapping[str, str],
    normals: tuple[Tensor, Tensor],
    value: Tensor,
) -> Parameters:
    r"""Of the last coordinates when the first ones have a value.

    .. math::
        L = \begin{pmatrix} L_{11} & 0 \\ L_{21} & L_{22} \end{pmatrix}: \qquad
        \mu_{2 \mid 1} = \mu_2 + L_{21} L_{11}^{-1} (z_1 - \mu_1), \qquad
        L_{2 \mid 1} = L_{22}

    Args:
        parameters: of the mixture.
        letters: of their shapes.
        normals: means ``(*B, K, D)`` and scales of the components.
        value: ``(*X, N)`` of the first N coordinates.
    """
    count = value.shape[-1]

    def rest(value: Tensor, letters: str) -> Tensor:
        if letters.endswith("DD"):
            return value[..., count:, count:]
        return value[..., count:] if letters.endswith("D") else value

    conditional = {name: rest(value, letters[name]) for name, value in parameters.items()}
    dtype = value.dtype
    locs, scales, value = at_least_single(*normals, value)
    if scales.dim() > locs.dim():
        first, second = scales[..., :count, :count], scales[..., count:, :count]
        gain = torch.linalg.solve_triangular(first, second, upper=False, left=False)
        residual = value.unsqueeze(-2) - locs[..., :count]  # (*X, K, N)
        shift = torch.einsum("...kij,...kj->...ki", gain, residual)
        conditional["locs"] = (locs[..., count:] + shift).to(dtype)
    return conditional


def rescale(parameters: Parameters, letters: Mapping[str, str], scale: Tensor) -> Parameters:
    """Of each coordinate times a number, ``(D,)``."""

    def scaled(name: str, value: Tensor) -> Tensor:
        if name == "locs":
            return value * scale
        if name == "control_var":  # a distance in standard deviations, a logarithm of scales
            return value * torch.stack([scale.sign(), torch.ones_like(scale)]).unsqueeze(-2)
        if letters[name].endswith("DD"):
            return value * scale.unsqueeze(-1) * scale.sign()
        return value * scale.abs() if letters[name].endswith("D") else value

    return {name: scaled(name, value) for name, value in parameters.items()}


def transform(normals: tuple[Tensor, Tensor], matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Means and Cholesky factors of a matrix times the Normals, ``(*B, K, D), (*B, K, D, D)``."""
    locs, scales = normals
    full = scales.dim() > locs.dim()
    return locs @ matrix.mT, lower_factor(
        matrix @ scales.tril() if full else matrix * scales.unsqueeze(-2)
    )
