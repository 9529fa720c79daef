"""The model's density at points that are not draws of a guide."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import sum_rightmost
from pyro.poutine.util import site_is_subsample
from torch import Size, Tensor
from torch.distributions import biject_to

from pyro_mixtures.infer.guides.starting_points import StartingPoints

ROWS = 4096
"""Points in one run of the model, at most."""

REPETITIONS = 5
"""Runs at one point, of which two differ if the density is random."""

TOLERANCE = 1e-3
"""Relative difference of a density alone and among others that rounding makes."""


class JointDensity:
    r"""The log density of a model at packed unconstrained vectors.

    .. math:: \log p(x(z), y) + \log |dx / dz|

    Points are evaluated in one run of the model with a dimension to the left of all others, if
    that gives what single points give, and else one by one. All see the same subsamples.

    Args:
        model: without arguments, initialized by ``starts``.
        starts: sets the values of its latent sites.
        unpack: from a packed vector, with a batch shape, to the sites and their values.

    Raises:
        ValueError: for a model with a density that is random, or without data.
    """

    def __init__(
        self,
        model: Callable[[], Any],
        starts: StartingPoints,
        unpack: Callable[[Tensor], Iterator[tuple[Any, Tensor]]],
    ) -> None:
        self._starts, self._unpack = starts, unpack
        first = _traced(model)
        for name, site in list(first.nodes.items()):
            if not site_is_subsample(site):
                first.remove_node(name)
        self._model = poutine.replay(model, trace=first)
        self._nesting = 0

    @torch.no_grad()
    def __call__(self, z: Tensor) -> Tensor:
        """Log densities of points, ``(N, D) -> (N,)``; NaN counts as no density."""
        some = z[[0, len(z) // 2, -1]]
        alone = torch.stack([self._alone(point) for point in some])
        again = [self._alone(point) for point in some for _ in range(REPETITIONS)]
        if not _same(alone.repeat_interleave(REPETITIONS), torch.stack(again)):
            raise ValueError(
                "Expected a model with one density at each point, but got two at the same one: it"
                " draws what the guide does not know, as enumerated sites that a block hides"
            )
        if self._takes_several(some, alone):
            found = torch.cat([self._together(rows) for rows in z.split(ROWS)])
        else:
            found = torch.stack([self._alone(point) for point in z])
        return found.masked_fill(found.isnan(), -torch.inf)

    def _takes_several(self, points: Tensor, alone: Tensor) -> bool:
        """Whether points have the densities together that they have alone.

        Two numbers of them, since one may be that of another dimension by chance.
        """
        try:
            return all(
                _same(self._together(points[:count]), alone[:count]) for count in (2, len(points))
            )
        except Exception:  # whatever a model does with a dimension that it does not know
            return False

    def _alone(self, point: Tensor) -> Tensor:
        return self._evaluated(point, Size()).sum()

    def _together(self, z: Tensor) -> Tensor:
        """``(N, D) -> (N,)``."""
        shape = Size([len(z)] + [1] * self._nesting)
        terms = self._evaluated(z.reshape(*shape, -1), shape)
        return terms.expand(torch.broadcast_shapes(terms.shape, shape)).reshape(len(z), -1).sum(-1)

    def _evaluated(self, z: Tensor, shape: Size) -> Tensor:
        """The sum of all terms: a number, or ``(N, 1, ..., 1)``."""
        values: dict[str, Tensor] = {}
        total = z.new_zeros(shape)
        for site, unconstrained in self._unpack(z):
            transform = biject_to(site["fn"].support)
            value = transform(unconstrained)
            volume = transform.log_abs_det_jacobian(unconstrained, value)
            volume = sum_rightmost(volume, volume.dim() - value.dim() + site["fn"].event_dim)
            values[site["name"]] = value
            total = total + _over_plates(volume, shape)
        with self._starts.at(values, shape):
            trace = _traced(self._model)
        trace.compute_log_prob()
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and not site_is_subsample(site):
                if not (site["is_observed"] or name in values):
                    raise ValueError(
                        f"Expected a guide for all latent sites of the model, but got {name!r},"
                        " which it does not know"
                    )
                total = total + _over_plates(site["log_prob"], shape)
                if not shape:
                    self._nesting = max(self._nesting, site["log_prob"].dim())
        if not trace.observation_nodes:
            raise ValueError(
                "Expected a model with data or factors, but got one of which the guide sees none:"
                " a block hides them"
            )
        return total


def _over_plates(log_prob: Tensor, shape: Size) -> Tensor:
    """A term summed over all dimensions but that of the points, if it has it."""
    if log_prob.dim() < len(shape) or not shape:
        return log_prob.sum()
    return log_prob.sum(tuple(range(1, len(shape))), keepdim=True) if len(shape) > 1 else log_prob


def _same(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, TOLERANCE, TOLERANCE, equal_nan=True)


def _traced(model: Callable[[], Any]) -> Any:
    """A trace that handlers around do not see."""
    return poutine.block(poutine.trace(model).get_trace)()
