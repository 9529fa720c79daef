"""Images of Normals and of mixtures of them under permutations of labels."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from pyro_mixtures.distributions import MixtureOfNormals
from pyro_mixtures.infer.search.symmetries import LabelSymmetry

IMAGE_DRAWS = 256
"""Of each Normal, whose images give the moments of its image."""


def image_normals(
    locs: Tensor, scale_tril: Tensor, symmetry: LabelSymmetry, permutation: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Images of Normals under a permutation of labels, as the Normals nearest to them.

    Where the permutation rearranges coordinates the image is a Normal, with an exact covariance.
    Elsewhere it has the moments of mapped draws, which are exact for what is linear.

    Args:
        locs: ``(N, D)``.
        scale_tril: ``(N, D, D)``.
        symmetry: of labels.
        permutation: as :meth:`LabelSymmetry.image` takes it.

    Returns:
        ``locs`` and ``scale_tril`` of the images. The latter are NaN where draws have no finite
        image, as those of a Normal far wider than the simplex.
    """
    count, dimension = locs.shape
    noise = standard_noise(IMAGE_DRAWS, dimension).to(locs)
    draws = locs.unsqueeze(-2) + noise @ scale_tril.mT  # (N, M, D)
    images = symmetry.image(draws.flatten(0, 1), permutation).reshape(draws.shape)
    new_locs = images.mean(-2)  # (N, D)
    around = (images - new_locs.unsqueeze(-2)) / math.sqrt(len(noise))
    factor, failed = torch.linalg.cholesky_ex(around.mT @ around)
    proper = (failed == 0) & new_locs.isfinite().all(-1)
    return new_locs, torch.where(proper[:, None, None], factor, math.nan)


def standard_noise(count: int, dimension: int) -> Tensor:
    """Points ``(count, D)`` or more with mean zero and the identity for a covariance, exactly."""
    generator = torch.Generator().manual_seed(0)
    size = max(count // 2, 2 * dimension)
    half = torch.randn(size, dimension, generator=generator, dtype=torch.float64)
    orthogonal = torch.linalg.qr(half).Q * math.sqrt(size)
    return torch.cat([orthogonal, -orthogonal])


def inverse(permutation: tuple[int, ...]) -> tuple[int, ...]:
    """The permutation that takes it back."""
    return tuple(sorted(range(len(permutation)), key=permutation.__getitem__))


def symmetrized_log_prob(mixture: MixtureOfNormals, symmetry: LabelSymmetry, z: Tensor) -> Tensor:
    r"""The log density of a mixture's draws after a random permutation of the labels.

    .. math:: \log \frac1{K!} \sum_\sigma q(g_\sigma(z))\, |\det \partial g_\sigma / \partial z|

    That is exact, where :func:`~pyro_mixtures.infer.search.label_expansion.expanded`
    takes the nearest Normals, at K! densities a point.

    Args:
        mixture: over the unconstrained space.
        symmetry: of labels.
        z: points ``(S, D)``.

    Returns:
        ``(S,)``.
    """
    components = copies_log_prob(mixture, symmetry, z, symmetry.permutations())
    return (components + mixture.log_weights).logsumexp(-1)


def copies_log_prob(
    mixture: MixtureOfNormals,
    symmetry: LabelSymmetry,
    z: Tensor,
    permutations: Iterable[tuple[int, ...]],
) -> Tensor:
    """Of each component, averaged over its copies, at points ``(S, D)``, ``(S, N)``."""
    total = z.new_full((len(z), len(mixture.locs)), -math.inf)
    jacobian = symmetry.log_jacobian(z)
    for permutation in permutations:
        image = symmetry.image(z, permutation)
        change = jacobian - symmetry.log_jacobian(image)
        here = mixture.component_log_prob(image) + change.unsqueeze(-1)
        total = torch.logaddexp(total, here.nan_to_num(-math.inf, neginf=-math.inf))
    return total - math.log(symmetry.num_permutations)
