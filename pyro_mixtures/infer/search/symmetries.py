"""Labels of a model that can be exchanged without a change of its posterior."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_mixtures.infer.search.evaluations import Evaluations
from pyro_mixtures.infer.search.model_log_density import ModelLogDensity
from pyro_mixtures.infer.search.model_runs import random_numbers_kept

DRAWS = 32
"""Of the prior, of which the best are points at which symmetries are tested."""

POINTS = 3
"""At which a symmetry has to hold."""

MAX_SETS = 127
"""Sets of sites that are tried for each number of labels: all sets of up to seven sites."""

ROUNDING = 1e3
"""Units of rounding, of the log density, by which that of an image may differ."""


Places = dict[str, slice]
Shapes = dict[str, torch.Size]


class TransformedDimension(NamedTuple):
    """A dimension of a site whose permutation is no rearrangement of coordinates.

    Args:
        place: of the site's coordinates.
        shape: of the site's values.
        support: of the site.
        dim: along which the labels stand, from the right.
    """

    place: slice
    shape: torch.Size
    support: Any
    dim: int

    def free(self, z: Tensor) -> Tensor:
        """The site's coordinates at points ``(S, D)``, in the shape that its transform takes."""
        shape = biject_to(self.support).inverse_shape(torch.Size((len(z), *self.shape)))
        return z[:, self.place].reshape(shape)


@dataclass(frozen=True, eq=False)
class LabelledSite:
    """How a site changes with the labels.

    Args:
        name: of the site, or of what sites of one name and several numbers have in common.
        labels: coordinates that belong to each label, ``(K, N)``.
        reflected: coordinates that change their signs when two labels are exchanged, ``(N,)``.
        transformed: what is permuted instead in the site's own terms, as in a simplex.
    """

    name: str
    labels: Tensor
    reflected: Tensor
    transformed: TransformedDimension | None = None


@dataclass(frozen=True, eq=False)
class LabelSymmetry:
    r"""K labels whose exchange leaves a posterior as it is, as those of a mixture model.

    A permutation :math:`\sigma` of the labels maps points of the unconstrained space to others,
    :math:`g_\sigma(z)`, with :math:`p(g_\sigma(z) \mid y)\, |\det \partial g_\sigma / \partial z|
    = p(z \mid y)`. Each mode has up to K! copies. Found by :func:`label_symmetries`.

    Args:
        num_labels: their number K.
        sites: those that change with the labels, and how.

    Example:
        >>> import pyro, torch, pyro.distributions as dist, pyro_mixtures as pm
        >>> from pyro_mixtures.infer.search.symmetries import label_symmetries
        >>> def model(y):
        ...     weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        ...     with pyro.plate("components", 3):
        ...         locs = pyro.sample("locs", dist.Normal(0.0, 5.0))
        ...     mixture = dist.Normal(locs.unsqueeze(-2), 1.0)
        ...     with pyro.plate("data", len(y)):
        ...         own = dist.Categorical(weights.unsqueeze(-2))
        ...         pyro.sample("y", dist.MixtureSameFamily(own, mixture), obs=y)
        >>> density = pm.ModelLogDensity(model, (torch.tensor([-3.0, -2.5, 0.2, 4.0]),))
        >>> (symmetry,) = label_symmetries(density)
        >>> print(symmetry)
        the labels of weights, locs (3) are exchangeable: up to 6 copies of each mode
        >>> symmetry.image(torch.tensor([[0.0, 0.0, 1.0, 2.0, 3.0]]), (2, 0, 1))[:, 2:]
        tensor([[3., 1., 2.]])
    """

    num_labels: int
    sites: tuple[LabelledSite, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the sites."""
        return tuple(dict.fromkeys(site.name for site in self.sites))

    @property
    def num_permutations(self) -> int:
        """K!."""
        return math.factorial(self.num_labels)

    @property
    def rearranges(self) -> bool:
        """Whether all images rearrange coordinates, up to signs, so that Normals stay Normals."""
        return not self._transformed()

    def permutations(self) -> Iterator[tuple[int, ...]]:
        """All of them, the identity first."""
        return itertools.permutations(range(self.num_labels))

    def image(self, z: Tensor, permutation: tuple[int, ...]) -> Tensor:
        """Points ``(S, D)`` after label k has taken the place of ``permutation[k]``.

        In the image's own terms, ``x_image[k] = x[permutation[k]]`` for each site.
        """
        order = torch.tensor(permutation, device=z.device)
        source = torch.arange(z.shape[-1], device=z.device)
        sign = z.new_ones(z.shape[-1])
        for site in self.sites:
            # after those before: two dimensions of one site may both have labels
            source = source.index_put((site.labels,), source[site.labels[order]])
            if _is_odd(permutation):
                sign[site.reflected] = -1.0
        image = z[:, source] * sign
        for same in self._transformed():
            transform, place = biject_to(same[0].support), same[0].place
            value = transform(same[0].free(image))
            for each in same:
                value = value.index_select(each.dim, order)
            free = transform.inv(value).reshape(len(z), -1)
            image = torch.cat([image[:, : place.start], free, image[:, place.stop :]], -1)
        return image

    def log_jacobian(self, z: Tensor) -> Tensor:
        """That of the sites which are no rearrangement, ``(S,)``.

        What it loses from a point to its image is the log determinant of the image's derivative.
        """
        total = torch.zeros_like(z[:, 0])
        for site, *_ in self._transformed():
            transform, free = biject_to(site.support), site.free(z)
            terms = transform.log_abs_det_jacobian(free, transform(free))
            total = total + terms.reshape(len(z), -1).sum(-1)
        return total

    def _transformed(self) -> list[list[TransformedDimension]]:
        """Of each site that is permuted in its own terms all dimensions with labels."""
        found: dict[str, list[TransformedDimension]] = {}
        for site in self.sites:
            if site.transformed is not None:
                found.setdefault(site.name, []).append(site.transformed)
        return list(found.values())

    def __str__(self) -> str:
        return (
            f"the labels of {', '.join(self.names)} ({self.num_labels}) are exchangeable: up to"
            f" {self.num_permutations} copies of each mode"
        )


def label_symmetries(
    density: ModelLogDensity, evaluations: Evaluations | None = None
) -> tuple[LabelSymmetry, ...]:
    """Labels that can be exchanged in all sites of a set without a change of the posterior.

    Candidates are dimensions of one size in the values of sites (plates and event dimensions, also
    those of simplexes), and sites whose names differ by a number (``mu1``, ``mu2``). For two
    labels a weight between two bounds may be reflected, as ``p`` to ``1 - p``. A set of them is
    a symmetry if exchanges of labels leave the density as it is at some draws of the prior. That
    takes some tens of evaluations; data and priors that tell labels apart are found out by them.

    Not found are symmetries of some of the labels only, and of the factors of covariances.

    Args:
        density: of a model.
        evaluations: of that density, which count those that are needed.

    Returns:
        One for each independent set of labels; none for most models.

    Example:
        >>> import pyro, torch, pyro.distributions as dist, pyro_mixtures as pm
        >>> def model():
        ...     with pyro.plate("groups", 4):
        ...         pyro.sample("x", dist.Normal(torch.arange(4.0), 1.0))
        >>> label_symmetries(pm.ModelLogDensity(model))
        ()
    """
    evaluations = evaluations or Evaluations(density)
    with random_numbers_kept():
        draws = density.prior_draws(DRAWS).to(torch.float64)
    values = evaluations.values(draws)
    best = values.argsort(descending=True, stable=True)[
        : min(POINTS, int(values.isfinite().sum()))
    ]
    if not len(best):
        return ()
    supports, places = density.supports(draws[best[0]]), density.site_slices
    shapes = {name: value.shape[1:] for name, value in density.constrain(draws[:1]).items()}
    test = _Test(evaluations, draws[best], values[best], torch.finfo(density.dtype).eps)
    candidates: dict[int, list[LabelledSite]] = {}
    for num_labels, site in (*_dimensions(places, supports, shapes), *_numbered(places, shapes)):
        candidates.setdefault(num_labels, []).append(site)
    if 2 in candidates:
        candidates[2] += _weights(places, supports)
    found = []
    for num_labels, sites in candidates.items():
        for chosen in test.passed_by(num_labels, sites):
            found.append(LabelSymmetry(num_labels, chosen))
    return tuple(found)


class _Test(NamedTuple):
    """Points with their log densities, at which images are compared with them."""

    evaluations: Evaluations
    points: Tensor
    values: Tensor
    rounding: float

    def passed_by(
        self, num_labels: int, sites: list[LabelledSite]
    ) -> list[tuple[LabelledSite, ...]]:
        """The smallest sets of sites with a symmetry, none of which follows from others."""
        sets = [chosen for chosen in _sets(len(sites)) if _has_labels(chosen, sites)]
        exchange = (1, 0, *range(2, num_labels))
        cycle = (*range(1, num_labels), 0)  # with the exchange it makes all permutations
        tried = [LabelSymmetry(num_labels, tuple(sites[each] for each in one)) for one in sets]
        first = self._kept([(symmetry, exchange) for symmetry in tried], slice(0, 1))
        passed: list[frozenset[int]] = []
        for kept, symmetry, chosen in zip(first, tried, sets, strict=True):
            if kept and frozenset(chosen) not in _sums(passed):
                pairs = [(symmetry, exchange), (symmetry, cycle)]
                if all(self._kept(pairs, slice(0, None))):
                    passed.append(frozenset(chosen))
        return [tuple(sites[each] for each in sorted(one)) for one in passed]

    def _kept(self, pairs: list[tuple[LabelSymmetry, tuple[int, ...]]], rows: slice) -> list[bool]:
        """Which permutations keep the density at some of the points."""
        points, values = self.points[rows], self.values[rows]
        images, changes = [], []
        for symmetry, permutation in pairs:
            image, change = points, points.new_full(values.shape, math.nan)
            try:
                mapped = symmetry.image(points, permutation)
                if bool(mapped.isfinite().all()):
                    change = symmetry.log_jacobian(mapped) - symmetry.log_jacobian(points)
                    image = mapped
            except (RuntimeError, ValueError):
                pass  # no values of this site, once they are permuted
            images.append(image)
            changes.append(change)
        found = self.evaluations.values(torch.cat(images)).reshape(len(pairs), -1)
        differences = found - torch.stack(changes) - values
        limits = ROUNDING * self.rounding * (1 + values.abs())
        return [bool(kept) for kept in (differences.abs() <= limits).all(-1)]


def _sets(count: int) -> list[tuple[int, ...]]:
    """Sets of sites, small and large ones first where there are too many."""
    sizes = sorted(range(1, count + 1), key=lambda size: min(size, count + 1 - size))
    every = (one for size in sizes for one in itertools.combinations(range(count), size))
    return sorted(itertools.islice(every, MAX_SETS), key=len)


def _has_labels(chosen: tuple[int, ...], sites: list[LabelledSite]) -> bool:
    """Whether not all of them are reflected."""
    return any(not len(sites[each].reflected) for each in chosen)


def _sums(sets: list[frozenset[int]]) -> set[frozenset[int]]:
    """All sets whose symmetry follows: an exchange in two sets is none in what they share."""
    sums = {frozenset[int]()}
    for one in sets:
        sums |= {one ^ other for other in sums}
    return sums


def _is_odd(permutation: tuple[int, ...]) -> bool:
    pairs = itertools.combinations(permutation, 2)
    return sum(first > second for first, second in pairs) % 2 == 1


def _dimensions(
    places: Places, supports: dict[str, Any], shapes: Shapes
) -> Iterator[tuple[int, LabelledSite]]:
    """Dimensions of sites, with their sizes."""
    for name, shape in shapes.items():
        place = places[name]
        transform = biject_to(supports[name])
        free = torch.Size(transform.inverse_shape(shape))
        coordinates = torch.arange(place.start, place.stop).reshape(free)
        batch = len(shape) - transform.codomain.event_dim
        for dim, size in enumerate(shape):
            if size < 2:
                continue
            none = torch.zeros(size, 0, dtype=torch.long)
            if free == shape or dim < batch:
                index = coordinates.movedim(dim, 0).reshape(size, -1)
                yield size, LabelledSite(name, index, none[0])
            else:
                right = dim - len(shape)
                own = TransformedDimension(place, shape, supports[name], right)
                yield size, LabelledSite(name, none, none[0], own)


def _numbered(places: Places, shapes: Shapes) -> Iterator[tuple[int, LabelledSite]]:
    """Sites whose names differ by their last number, with how many they are."""
    groups: dict[tuple[str, torch.Size, int], list[tuple[int, slice]]] = {}
    for name, place in places.items():
        match = re.fullmatch(r"(.*?)(\d+)(\D*)", name)
        if match:
            size = place.stop - place.start
            stem = f"{match[1]}*{match[3]}"
            groups.setdefault((stem, shapes[name], size), []).append((int(match[2]), place))
    for (stem, _, _), numbered in groups.items():
        if len(numbered) > 1:
            ordered = [place for _, place in sorted(numbered, key=lambda each: each[0])]
            index = torch.stack([torch.arange(each.start, each.stop) for each in ordered])
            yield len(index), LabelledSite(stem, index, index[0, :0])


def _weights(places: Places, supports: dict[str, Any]) -> list[LabelledSite]:
    """Sites between two bounds, of which the distances exchange when the coordinates negate."""
    none = torch.zeros(2, 0, dtype=torch.long)
    found = []
    for name, support in supports.items():
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        if isinstance(support, constraints.interval):
            place = places[name]
            found.append(LabelledSite(name, none, torch.arange(place.start, place.stop)))
    return found
