"""Mixtures of Normals with the copies of their modes that a symmetry of labels makes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_mixtures.distributions import MixtureOfNormals
from pyro_mixtures.infer.search.evaluations import Evaluations
from pyro_mixtures.infer.search.label_images import copies_log_prob, image_normals, inverse
from pyro_mixtures.infer.search.symmetries import LabelSymmetry
from pyro_mixtures.normals.bounds import are_degenerate, bhattacharyya_distances

SYMMETRIC = 0.5
"""Nats between a mixture and its image below which there is nothing to add."""

OVERLAP = 0.97
"""Of a component with an image of itself, above which they are one."""

WEIGHT_STEPS, RATE = 200, 0.5
"""Of the log weights, towards those of the largest ELBO."""

DRAWS = 100
"""Evaluations for each component of the mixture."""

CHECK_DRAWS = 1000
"""Evaluations for the ELBO of the result."""

FEW_DRAWS = 5
"""Of those, which tell what permutations bring a component near to another one."""

LEAST = 1e-3
"""Weight among the components of one copy, below which one is left out."""


@dataclass(frozen=True, eq=False)
class LabelExpansion:
    """A mixture with all copies of its modes, and what was found of them.

    Args:
        mixture: with all copies.
        symmetry: of the labels.
        found: copies at which the mixture given has components.
        elbo: of the mixture, from draws of its own.
        elbo_error: its standard error.
        evaluations: of the density that this has taken.
    """

    mixture: MixtureOfNormals
    symmetry: LabelSymmetry
    found: int
    elbo: float
    elbo_error: float
    evaluations: int

    def __str__(self) -> str:
        size = self.mixture.locs.shape[0]
        return (
            f"{self.symmetry}; {self.found} of {self.symmetry.num_permutations} were found, all"
            f" are in {size} components with an ELBO of {self.elbo:.2f} +- {self.elbo_error:.2f}"
        )


def label_report(
    mixture: MixtureOfNormals, symmetry: LabelSymmetry, *, max_components: int = 5000
) -> str:
    """A line about the copies of modes that a mixture has, and about those that could be added.

    Args:
        mixture: over the unconstrained space.
        symmetry: of labels.
        max_components: that :func:`expanded` may give.
    """
    copies = symmetry.num_permutations
    if is_symmetric(mixture, symmetry):
        return f"{symmetry}; the mixture has them all"
    if copies > max_components:
        return f"{symmetry}; too many to add the missing ones"
    return f"{symmetry}; {num_found(mixture, symmetry)} found; expand_labels() adds the rest"


def num_found(mixture: MixtureOfNormals, symmetry: LabelSymmetry) -> int:
    """Copies of its heaviest component near to which a mixture has others; looks at all K!."""
    _check(mixture)
    nearest = _nearest_permutations(
        mixture.locs, mixture.scale_tril, mixture.log_weights, symmetry
    )
    return len(set(nearest))


def copy_groups(mixture: MixtureOfNormals, symmetry: LabelSymmetry) -> list[Tensor]:
    """Indices of the components at each copy of the heaviest one, the heaviest copy first."""
    nearest = _nearest_permutations(
        mixture.locs, mixture.scale_tril, mixture.log_weights, symmetry
    )
    places: dict[tuple[int, ...], list[int]] = {}
    for index, permutation in enumerate(nearest):
        places.setdefault(permutation, []).append(index)
    groups = [torch.tensor(indices) for indices in places.values()]
    weights = mixture.log_weights.exp()
    return sorted(groups, key=lambda group: -float(weights[group].sum()))


def is_symmetric(mixture: MixtureOfNormals, symmetry: LabelSymmetry, *, seed: int = 0) -> bool:
    r"""Whether a mixture is all but the same after its labels are exchanged.

    That is so if all copies of the modes are found, and for labels that are exchangeable within
    one mode, as those of groups without data. It takes no evaluations of the density.

    Args:
        mixture: over the unconstrained space.
        symmetry: of labels.
        seed: of the draws that estimate the divergences.

    Returns:
        Whether :math:`KL(q \| g_\sigma q)` is below 0.5 for an exchange and a cycle of labels.
    """
    _check(mixture)
    z = _draws(mixture, 1000, seed)
    log_prob = mixture.log_prob(z)
    labels = range(symmetry.num_labels)
    for permutation in ((1, 0, *labels[2:]), (*labels[1:], 0)):
        image = symmetry.image(z, permutation)
        change = symmetry.log_jacobian(z) - symmetry.log_jacobian(image)
        divergence = log_prob - mixture.log_prob(image) - change
        if not float(divergence.mean()) < SYMMETRIC:
            return False
    return True


def folded(mixture: MixtureOfNormals, symmetry: LabelSymmetry) -> MixtureOfNormals:
    """All components of a mixture at one copy of the modes, with the weights that they had.

    From there a search may go on, of which all copies profit: for a posterior of symmetric
    labels the mixture with random labels is as good as the one given or better.

    Args:
        mixture: over the unconstrained space, without a batch shape.
        symmetry: of labels.
    """
    _check(mixture)
    locs, scale_tril, _ = _folded(mixture, symmetry)
    proper = ~are_degenerate(locs, scale_tril)
    return MixtureOfNormals(locs[proper], scale_tril[proper], mixture.log_weights[proper])


def expanded(
    mixture: MixtureOfNormals,
    symmetry: LabelSymmetry,
    evaluations: Evaluations,
    *,
    max_components: int = 5000,
    seed: int = 0,
) -> LabelExpansion:
    r"""A mixture with all copies of its modes, each as good as all that were found together.

    .. math:: q(z) = \frac1{K!} \sum_\sigma \sum_j \pi_j\, g_\sigma N(z \mid \mu_j, \Sigma_j)

    All components are moved to one copy of the modes, by the permutation that brings each next to
    the heaviest; there they get the weights of the largest ELBO, and the light ones are left
    out. Then all permutations map what is left. Images of Normals that are no Normals have their
    moments.

    Args:
        mixture: over the unconstrained space, ``(D,)`` without batch.
        symmetry: of labels.
        evaluations: of the log density, which count 100 for each component and 1,000 more.
        max_components: of the result; the heaviest are kept.
        seed: of draws.

    Raises:
        ValueError: if one component has more than ``max_components`` copies, and for a mixture
            that is no ``MixtureOfNormals`` or has a batch shape.

    Example:
        >>> import pyro, torch, pyro.distributions as dist, pyro_mixtures as pm
        >>> from pyro_mixtures.infer.search.evaluations import Evaluations
        >>> from pyro_mixtures.infer.search.symmetries import label_symmetries
        >>> def model():
        ...     locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 5.0).to_event(1))
        ...     for k, y in enumerate((-3.0, 3.0)):
        ...         own = dist.Categorical(torch.ones_like(locs))
        ...         either = dist.MixtureSameFamily(own, dist.Normal(locs, 1.0))
        ...         pyro.sample(f"y{k}", either, obs=torch.tensor(y))
        >>> density = pm.ModelLogDensity(model)
        >>> (symmetry,) = label_symmetries(density)
        >>> found = pm.MixtureOfNormals(
        ...     torch.tensor([[-3.0, 3.0]]).double(), torch.eye(2)[None].double(), torch.zeros(1)
        ... )
        >>> expansion = expanded(found, symmetry, Evaluations(density))
        >>> expansion.mixture.locs.round()
        tensor([[-3.,  3.],
                [ 3., -3.]], dtype=torch.float64)
    """
    _check(mixture)
    copies = symmetry.num_permutations
    if copies > max_components:
        raise ValueError(
            f"Expected labels with at most {max_components} permutations, the largest number of"
            f" components, but got {copies} of {symmetry.num_labels} labels: draw from the mixture"
            " as it is, and permute the labels of each draw at random"
        )
    before = evaluations.count
    locs, scale_tril, found = _folded(mixture, symmetry)
    proper = ~are_degenerate(locs, scale_tril)
    locs, scale_tril = locs[proper], scale_tril[proper]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(locs), DRAWS, locs.shape[-1], generator=generator, dtype=locs.dtype)
    z = locs.unsqueeze(-2) + noise @ scale_tril.mT  # (N, M, D)
    values = evaluations.values(z.flatten(0, 1)).reshape(len(locs), DRAWS)
    log_weights = _best_weights(locs, scale_tril, z, values, symmetry)
    kept = log_weights.argsort(descending=True, stable=True)[: max_components // copies]
    kept = kept[log_weights[kept].exp() > LEAST]
    log_weights = _best_weights(locs[kept], scale_tril[kept], z[kept], values[kept], symmetry)
    # images of the components as they were: one of each is exact
    originals = mixture.locs[proper][kept], mixture.scale_tril[proper][kept]
    result = _all_copies(*originals, log_weights, symmetry)
    z = _draws(result, CHECK_DRAWS, seed)
    values = evaluations.values(z)
    gains = (values - result.log_prob(z))[values.isfinite()]
    error = float(gains.std()) / math.sqrt(len(gains))
    used = evaluations.count - before
    return LabelExpansion(result, symmetry, found, float(gains.mean()), error, used)


def _check(mixture: MixtureOfNormals) -> None:
    if not isinstance(mixture, MixtureOfNormals) or mixture.batch_shape:
        raise ValueError(
            "Expected a MixtureOfNormals without a batch shape, but got a"
            f" {type(mixture).__name__} with the batch shape {tuple(mixture.batch_shape)}"
        )


def _draws(mixture: MixtureOfNormals, count: int, seed: int) -> Tensor:
    """Independent draws ``(count, D)`` that leave the global random numbers alone."""
    generator = torch.Generator().manual_seed(seed)
    own = mixture.log_weights.exp().multinomial(count, True, generator=generator)
    noise = torch.randn(
        count, mixture.locs.shape[-1], generator=generator, dtype=mixture.locs.dtype
    )
    return mixture.locs[own] + (mixture.scale_tril[own] @ noise.unsqueeze(-1)).squeeze(-1)


def _nearest_permutations(
    locs: Tensor, scale_tril: Tensor, log_weights: Tensor, symmetry: LabelSymmetry
) -> list[tuple[int, ...]]:
    """Under which the image of the heaviest component is nearest to each component."""
    first = log_weights.argmax()
    every = list(symmetry.permutations())
    images = [
        image_normals(locs[first, None], scale_tril[first, None], symmetry, each) for each in every
    ]
    image_locs, image_factors = (torch.cat(each) for each in zip(*images, strict=True))
    nearest = []
    for loc, factor in zip(locs.split(1), scale_tril.split(1), strict=True):
        distances = bhattacharyya_distances(loc, factor, image_locs, image_factors)
        nearest.append(every[int(distances.argmin())])
    return nearest


def _folded(mixture: MixtureOfNormals, symmetry: LabelSymmetry) -> tuple[Tensor, Tensor, int]:
    """All components at one copy of the modes, and at how many copies they were."""
    locs, scale_tril = mixture.locs, mixture.scale_tril
    nearest = _nearest_permutations(locs, scale_tril, mixture.log_weights, symmetry)
    moved = [
        image_normals(loc, factor, symmetry, inverse(permutation))
        for loc, factor, permutation in zip(
            locs.split(1), scale_tril.split(1), nearest, strict=True
        )
    ]
    folded_locs, folded_factors = (torch.cat(each) for each in zip(*moved, strict=True))
    return folded_locs, folded_factors, len(set(nearest))


def _best_weights(
    locs: Tensor, scale_tril: Tensor, z: Tensor, values: Tensor, symmetry: LabelSymmetry
) -> Tensor:
    """Log weights of Normals with all their copies, with the largest ELBO, ``(N,)``.

    Args:
        locs: ``(N, D)``.
        scale_tril: ``(N, D, D)``.
        z: draws of each Normal, ``(N, M, D)``.
        values: of the log density there, ``(N, M)``.
        symmetry: of labels.
    """
    with_mass = values.isfinite()
    equal = MixtureOfNormals(locs, scale_tril, locs.new_zeros(len(locs)), validate_args=False)
    few = z[:, :FEW_DRAWS].flatten(0, 1)
    near = _near_permutations(equal, symmetry, few)
    log_prob = copies_log_prob(equal, symmetry, z.flatten(0, 1), near)  # (N M, N)
    log_weights = equal.log_weights
    for _ in range(WEIGHT_STEPS):
        gains = values - (log_prob + log_weights).logsumexp(-1).reshape(values.shape)
        means = torch.where(with_mass, gains, 0.0).sum(-1) / with_mass.sum(-1)
        means = torch.where(with_mass.any(-1), means, -math.inf)
        log_weights = (log_weights + RATE * means).log_softmax(-1)
    return log_weights


def _near_permutations(
    mixture: MixtureOfNormals, symmetry: LabelSymmetry, z: Tensor
) -> list[tuple[int, ...]]:
    """Those that bring draws of a mixture to where it has mass, the others add next to none."""
    every = list(symmetry.permutations())
    terms = [copies_log_prob(mixture, symmetry, z, [each]).logsumexp(-1) for each in every]
    shares = torch.stack(terms).softmax(0).mean(-1)  # (K!,)
    return [each for each, share in zip(every, shares, strict=True) if share > LEAST]


def _all_copies(
    locs: Tensor, scale_tril: Tensor, log_weights: Tensor, symmetry: LabelSymmetry
) -> MixtureOfNormals:
    """A mixture of all images of Normals, each once, that share the Normals' weights."""
    images = [image_normals(locs, scale_tril, symmetry, each) for each in symmetry.permutations()]
    image_locs, image_factors = (torch.stack(each, 1) for each in zip(*images, strict=True))
    logits = []
    for log_weight, each_locs, factors in zip(log_weights, image_locs, image_factors, strict=True):
        distinct = _distinct(each_locs, factors)
        logits.append(torch.where(distinct, log_weight - distinct.sum().log(), -math.inf))
    flat = torch.cat(logits)
    kept = flat > -math.inf
    return MixtureOfNormals(
        image_locs.flatten(0, 1)[kept], image_factors.flatten(0, 1)[kept], flat[kept]
    )


def _distinct(locs: Tensor, factors: Tensor) -> Tensor:
    """Which images of one Normal are proper and fall on none before them, ``(K!,)``."""
    nearest = -math.log(OVERLAP)
    kept = ~are_degenerate(locs, factors)
    to_first = bhattacharyya_distances(locs[:1], factors[:1], locs[1:], factors[1:])
    if not bool((to_first < nearest).any()):
        return kept
    for index in range(len(locs)):
        if kept[index]:
            one, rest = slice(index, index + 1), slice(index + 1, None)
            distances = bhattacharyya_distances(locs[one], factors[one], locs[rest], factors[rest])
            kept[rest] &= distances[0] >= nearest
    return kept
