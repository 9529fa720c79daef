"""Components on different supports: atoms beside densities, intervals beside the real line."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_mixtures.components.asking import base_of
from pyro_mixtures.components.several import Several
from pyro_mixtures.families.interior import within
from pyro_mixtures.families.registry import log_density, moved, tails
from pyro_mixtures.families.support import (
    as_precise_as,
    check_intervals,
    check_supports,
    ends,
    has_tails,
    holds,
    is_atom,
    share_support,
)
from pyro_mixtures.numerics.precision import at_least_single, largest


class Apart(Several):
    r"""Components that are zero where others are not.

    Densities are those by Lebesgue measure plus one for each atom (``Delta``): a point on an atom
    belongs to the atoms there, any other to the densities.

    Where weight cannot be moved, it has a score function. Samples move with their components if
    the densities share their support. If they do not, the mixture's density jumps where a support
    ends, and a sample's path across the jump knows nothing of it: then samples have no gradient
    at all, and the score function is that of all parameters.
    """

    @functools.cached_property
    def has_rsample(self):
        return len(self._densities) < 2 or share_support(*self._densities)

    @property
    def _densities(self) -> list[Distribution]:
        return [each for each in self.distributions if not is_atom(each)]

    def check(self, exchange):
        names = self.name
        if exchange:
            check_supports(*self._densities)
            raise ValueError(
                f"Expected weight_gradient='hybrid' for a Delta among the components {names}: no"
                " path for weight leads to an atom"
            )
        check_intervals(*self._densities)
        for each in self.distributions:
            size = largest(base_of(each).log_density.abs()) if is_atom(each) else None
            if size is not None and size > 0:
                raise ValueError(f"Expected Delta without log_density, but got {size:.6g}")
        if not self.has_rsample and any(x.requires_grad for x in self._fixed):
            raise NotImplementedError(
                "Expected fixed ends of supports that differ, and fixed places of atoms beside"
                f" these, but some of {names} need a gradient, which the score function lacks"
            )

    @property
    def _fixed(self) -> Iterator[Tensor]:
        """What must not move where samples have no gradient."""
        for each in self.distributions:
            if is_atom(each):
                yield base_of(each).v
            else:
                yield from ends(each, torch.float64)

    # (S, *B, *E) for points

    def _each_there(
        self,
        points: Tensor,
        of_atom: Callable[[Any, Tensor], Any],
        of_density: Callable[[Any, Tensor, Tensor], Any],
    ) -> list[Any]:
        """Results of the components where they are not zero.

        Args:
            points: ``(S, *B, *E)``.
            of_atom: of its distribution and where points are on it, ``(S, *B)``.
            of_density: of a distribution, points of its support, which are those given where they
                can be, and where these belong to it, ``(S, *B)``.
        """
        atoms = [each for each in self.distributions if is_atom(each)]
        on_atom = torch.zeros((), dtype=torch.bool, device=points.device)
        for each in atoms:
            on_atom = on_atom | holds(each, points)
        results = []
        for each in self.distributions:
            mine = holds(each, points)
            if is_atom(each):
                results.append(of_atom(each, mine))
            else:
                results.append(of_density(each, _within(each, points), mine & ~on_atom))
        return results

    def log_prob(self, z, log_weights):
        def of_density(each: Any, inside: Tensor, mine: Tensor) -> Tensor:
            return log_density(each, inside).masked_fill(~mine, -torch.inf)

        points = self._events(*at_least_single(z))
        zero = points.new_zeros(points.shape[: points.dim() - len(self.event_shape)])
        results = self._each_there(
            points, lambda _, mine: zero.masked_fill(~mine, -torch.inf), of_density
        )
        return torch.stack(results, -1).movedim(0, -2)

    def _motion(self, points):
        def of_atom(each: Any, _: Tensor) -> Tensor:
            place = base_of(each).v
            return points + (place - place.detach())

        results = self._each_there(points, of_atom, lambda each, inside, _: moved(each, inside))
        return torch.stack(results, len(self.batch_shape) + 1)

    def moves(self, points, slope, share, log_weights, weighting):
        *moving, _ = super().moves(points, slope, share, log_weights, None)
        # of samples whose score term does it
        nothing = None if weighting is None else torch.zeros_like(share).movedim(0, -2)
        return *moving, nothing

    def inside(self, z):
        points = self._events(z)
        results = self._each_there(
            points, lambda _, mine: (points, mine), lambda _, inside, mine: (inside, mine)
        )
        for inside, mine in results:
            mine = mine.reshape(mine.shape + (1,) * len(self.event_shape))
            points = torch.where(mine, inside, points)
        return self._flat(points)

    def draw(self, index):
        count = index.shape[-1]
        rows = index.reshape(self.batch_shape.numel(), count).T  # (S, B)
        value = self._pick(rows).reshape(count, *self.batch_shape, *self.event_shape)
        return self._flat(value)

    def _sample_each(self, count):
        samples = [_within(each, each.sample((count,))) for each in self.distributions]
        return torch.stack(samples, 1 + len(self.batch_shape))

    def _rsample_each(self, count):
        if not self.has_rsample:
            raise self._lacks("densities of one support", "samples with gradients")
        return super()._rsample_each(count)

    def distances(self):
        """Each is a group."""
        each = self.distributions[0].sample().new_full((self.num_components,) * 2, torch.inf)
        return each.fill_diagonal_(0).expand(self.batch_shape + each.shape)

    def tails(self, z):
        def of_number(each: Any, points: Tensor) -> tuple[Tensor, Tensor]:
            low, high = ends(each, points.dtype)
            if is_atom(each):
                below = as_precise_as(each, points) < low
                return (~below).to(points), below.to(points)
            cdf, sf, _ = tails(each, _within(each, points))
            above, below = points >= high, points <= low
            cdf = cdf.masked_fill(above, 1).masked_fill(below, 0)
            return cdf, sf.masked_fill(above, 0).masked_fill(below, 1)

        if not all(map(has_tails, self._densities)):
            raise self._lacks("distribution functions of the coordinates", "cdf and icdf")
        points = self._events(*at_least_single(z))
        both = [of_number(each, points) for each in self.distributions]
        return tuple(
            self._flat(torch.stack(x, len(self.batch_shape) + 1)) for x in zip(*both, strict=True)
        )


def _within(distribution: Any, points: Tensor) -> Tensor:
    """Points of its support, next to an end of it for those beyond."""
    return points if is_atom(distribution) else within(points, *ends(distribution, points.dtype))
