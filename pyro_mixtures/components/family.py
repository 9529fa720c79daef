"""Components that are distributions with rules, one for each or one for all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.ops.provenance import detach_provenance, get_provenance, track_provenance
from torch import Tensor
from torch.distributions import Distribution, Transform

from pyro_mixtures.components.asking import base_of, expanded, location_and_spread, rsample
from pyro_mixtures.components.base import Components, Weighting
from pyro_mixtures.components.drawing import draw, pick
from pyro_mixtures.components.live_tensors import LiveTensors
from pyro_mixtures.families import UNIVARIATE, exactly
from pyro_mixtures.families.location_scale import SMOOTH
from pyro_mixtures.families.registry import (
    Affine,
    Tails,
    common_coordinates,
    factor,
    factors,
    log_density,
    moving_tails,
    tails,
    velocity,
)
from pyro_mixtures.families.support import (
    check_exchange,
    check_supports,
    ends,
    has_tails,
    inside_support,
)
from pyro_mixtures.numerics.chunks import chunks
from pyro_mixtures.numerics.linkage import bhattacharyya_diag_normal
from pyro_mixtures.numerics.precision import at_least_single, double, records_graph
from pyro_mixtures.velocity.location_scale_displacement import location_scale_displacement
from pyro_mixtures.velocity.telescoping import Factors, exchange

MADE_OF_PARAMETERS = exactly(*UNIVARIATE)
"""Classes whose parameters, by the names of their constraints, are all that they are made of."""


class Family(Components):
    """Components of one family, along the last dimension of a distribution's batch.

    The velocities of their points are rules of the family
    (:func:`~pyro_mixtures.families.register_velocity`). They are asked in the backward pass, of a
    distribution whose tensors are leaves of a graph of its own.

    Args:
        distributions: one, of batch shape ``(*B, K)``.
        tensors: what it is made of, in place of the tensors of ``live``.
        live: of the distribution that it was rebuilt of, or None before.
    """

    any_batch = False

    def __init__(
        self,
        *distributions: Distribution,
        tensors: Sequence[Tensor] = (),
        live: LiveTensors | None = None,
    ) -> None:
        self.distributions, self.tensors = distributions, tensors
        self.live: Any = live
        self._set_shapes()

    def _set_shapes(self) -> None:
        *batch, self.num_components = self.distributions[0].batch_shape
        super().__init__(torch.Size(batch), self.distributions[0].event_shape)

    # as tensors see them: (S, *B, *E) for a component, (S, *B, K, *E) for all

    def _each(self, function: Callable[..., Any], *values: Tensor) -> Any:
        """Results ``(S, *B, K, ...)`` of a function of a component and points ``(S, *B, *E)``."""
        return function(self.distributions[0], *map(self._padded, values))

    def _padded(self, value: Tensor) -> Tensor:
        """Points as ``_each`` hands them to a component."""
        return value.unsqueeze(-1 - len(self.event_shape))

    def _sample_each(self, count: int) -> Tensor:
        return self.distributions[0].sample((count,))

    def _rsample_each(self, count: int) -> Tensor:
        return rsample(self.distributions[0], count)

    def _events(self, z: Tensor) -> Tensor:
        """``(*B, S, M, D) -> (S, *B, M, *E)``, where M may be missing."""
        first = len(self.batch_shape)
        shape = z.shape[first : first + 1] + self.batch_shape + z.shape[first + 1 : -1]
        return z.movedim(first, 0).reshape(shape + self.event_shape)

    def _flat(self, value: Tensor) -> Tensor:
        """``(S, *B, M, *E) -> (*B, S, M, D)``, where M may be missing."""
        last = value.dim() - len(self.event_shape)
        return value.unsqueeze(-1).flatten(last).movedim(0, len(self.batch_shape))

    # what a mixture asks

    @property
    def name(self):
        return ", ".join(
            dict.fromkeys(type(base_of(each)).__name__ for each in self.distributions)
        )

    @property
    def transports(self):
        smooth = type(self._base) in exactly(*SMOOTH)
        names = ("telescoping", "displacement") if smooth else ("telescoping",)
        return {name: name for name in names}

    def moving(self):
        return type(self)(*self.distributions, live=LiveTensors(self.distributions))

    @property
    def parameters(self):
        live = LiveTensors(self.distributions) if self.live is None else self.live
        # the backward pass would not see that the others were changed in place, but autograd does
        every = (*live.tensors, *live.fixed)
        if records_graph():  # torch.jit would take numbers for constants that are no tensors
            return tuple(x if x.dim() else x.reshape(1) for x in every)
        return every

    def rebuilt(self, *parameters):
        pairs = zip(parameters, self.live.tensors, strict=False)
        moving = [given if own.dim() else given.reshape(()) for given, own in pairs]
        if torch.compiler.is_compiling():
            return self._made_of(moving)
        return self._made_of([parameter.detach().requires_grad_() for parameter in moving])

    def _made_of(self, tensors: Sequence[Tensor]):
        return type(self)(*self.live.rebuilt(tensors), tensors=tensors, live=self.live)

    def expand(self, batch_shape):
        shape = torch.Size((*batch_shape, self.num_components))
        return type(self)(expanded(self.distributions[0], shape))

    def check(self, exchange):
        if self.num_components > 1:
            if exchange:
                check_exchange(*self.distributions)
            check_supports(*self.distributions)

    def draw(self, index):
        count = index.shape[-1]
        rows = index.reshape(self.batch_shape.numel(), count).T  # (S, B)
        value = self._pick(rows).reshape(count, *self.batch_shape, *self.event_shape)
        return self._flat(inside_support(value, *self.distributions))

    def _pick(self, index: Tensor) -> Tensor:
        """Samples of the components ``(S, B)``."""
        base = self._base
        if type(base) not in MADE_OF_PARAMETERS:
            return self._pick_of_all(index)
        first, (count, batch) = len(self.batch_shape) + 1, index.shape
        chosen = {}
        for name in base.arg_constraints:  # those of the chosen components, (B, S, D)
            value = getattr(base, name).unsqueeze(-1).flatten(first)  # (*B, K, D)
            value = value.reshape(batch, self.num_components, value.shape[-1])
            rows = index.T.unsqueeze(-1).expand(batch, count, value.shape[-1])
            chosen[name] = value.gather(1, rows)
        # some of torch's classes cannot be drawn from parameters that tell their origin
        plain = {name: detach_provenance(value) for name, value in chosen.items()}
        return track_provenance(draw(type(base), plain).movedim(1, 0), get_provenance(chosen))

    def _pick_of_all(self, index: Tensor) -> Tensor:
        return pick(index, self.num_components, self._sample_each, self.event_shape)

    def inside(self, z):
        return self._flat(inside_support(self._events(z), *self.distributions))

    def log_prob(self, z, log_weights):
        (z,) = at_least_single(z)
        return self._each(log_density, self._events(z)).movedim(0, -2)

    def distances(self):
        """Of Normals with the same moments; without moments all are near."""
        try:
            return bhattacharyya_diag_normal(*double(*self.spread()))
        except (NotImplementedError, RuntimeError) as error:
            if not isinstance(error, NotImplementedError) and "vmap" not in str(error):
                raise
            like = next(iter(self.parameters), torch.zeros(()))
            return like.new_zeros(self.batch_shape + (self.num_components,) * 2)

    def spread(self):
        place, size = self._each(location_and_spread)
        return self._all(place), self._all(size)

    def _all(self, value: Tensor) -> Tensor:
        """``(*B, K, *E) -> (*B, K, D)``."""
        return value.unsqueeze(-1).flatten(len(self.batch_shape) + 1)

    @property
    def mean(self):
        return self._moment("mean")

    @property
    def variance(self):
        return self._moment("variance")

    def _moment(self, name: str) -> Tensor:
        try:
            return self._all(self._each(lambda component: getattr(component, name)))
        except NotImplementedError:  # torch's, without a word
            raise self._lacks("components of known moments", name) from None

    def sample(self, count):
        return self._flat(self._sample_each(count))

    def rsample(self, count):
        return self._flat(self._rsample_each(count))

    def log_prob_of_own(self, z):
        (z,) = at_least_single(z)
        density = log_density(self.distributions[0], self._events(z))
        return density.movedim(0, -2)

    def tails(self, z):
        if not all(map(has_tails, self.distributions)):
            return super().tails(z)
        (z,) = at_least_single(z)
        both = self._each(lambda component, value: tails(component, value)[:2], self._events(z))
        return tuple(map(self._flat, both))

    def ends(self, dtype):
        low, high = self._each(lambda component: ends(component, dtype))
        return self._all(low), self._all(high)

    # gradients

    def pullback(self, here, grad, weighting):
        (z,) = at_least_single(here.z)
        rows = (z, grad.to(z), here.responsibilities.to(z))
        size = self.num_components * self.event_shape.numel() * self.batch_shape.numel()
        gradients: list[Any] = [torch.zeros_like(x) for x in self.tensors]
        parts: list[Any] = []
        for z, slope, share in chunks(rows, size):
            slope, share = slope.movedim(-2, 0), share.movedim(-2, 0)  # (S, *B, D or K)
            there = (self._events(z), slope, share, here.log_weights.to(z), weighting)
            if torch.compiler.is_compiling():
                found, part = self._compiled(*there)
            else:
                with torch.enable_grad():
                    outputs, cotangents, part = self.moves(*there)
                found = self.live.pull(outputs, self.tensors, cotangents)
            gradients = [a + b for a, b in zip(gradients, found, strict=True)]
            parts.append(part)
        if not torch.compiler.is_compiling():
            self.live.forget(self.distributions)
        return tuple(gradients), None if weighting is None else torch.cat(parts, -2)

    def _compiled(self, *there: Any) -> tuple[Sequence[Tensor], Tensor | None]:
        """Gradients and contributions, in the form that ``torch.compile`` follows."""

        def moving(*tensors: Tensor) -> tuple[tuple[Tensor, ...], Any]:
            outputs, *rest = self._made_of(tensors).moves(*there)
            return tuple(outputs), tuple(rest)

        _, pull, (cotangents, part) = torch.func.vjp(  # type: ignore[misc]
            moving, *self.tensors, has_aux=True
        )
        return pull(tuple(cotangents)), part

    def moves(
        self,
        points: Tensor,
        slope: Tensor,
        share: Tensor,
        log_weights: Tensor,
        weighting: Weighting | None,
    ) -> tuple[Sequence[Tensor], Sequence[Tensor], Tensor | None]:
        """What moves with the tensors, the gradients there, and the weights' contributions.

        Args:
            points: ``(S, *B, *E)``.
            slope: gradients there, ``(S, *B, D)``.
            share: responsibilities, ``(S, *B, K)``.
            log_weights: ``(*B, K)``.
            weighting: None if the weights get no gradient.
        """
        if weighting is None:
            return *self._pulled(self._motion(points), points, slope, share), None
        within = weighting.within.to(points)
        if weighting.transport == "displacement":
            motion, shared = self._motion(points), None
            with torch.no_grad():
                currents = self._displacement(points, log_weights, within)
        else:
            with torch.no_grad():
                shared = common_coordinates(*self.distributions)
            if (both := self._moving_tails) is None:
                motion, (own, marginals) = self._motion(points), self._factors(points, shared)
            else:
                motion, ends = both(self._base, self._padded(points))
                own = marginals = self._factors_of(points, ends)
            with torch.no_grad():
                currents = _exchange(own, marginals, log_weights, within)
        there = self._slope(shared, points, slope).unsqueeze(-1)
        contributions = (currents.detach() @ there).squeeze(-1).movedim(0, -2)  # (*B, S, K)
        return *self._pulled(motion, points, slope, share), contributions

    def _motion(self, points: Tensor) -> Tensor | Affine:
        return velocity(self._base, self._padded(points))

    @property
    def _moving_tails(self) -> Callable[..., Any] | None:
        """The rule that yields motion and tails at once, if it is that of both."""
        kind = type(self._base)
        own = moving_tails.owner(kind)
        own_all = own is velocity.owner(kind) is tails.owner(kind) is not object
        return moving_tails.of(kind) if own_all else None

    def _factors_of(self, points: Tensor, both: Tails) -> Factors:
        with torch.no_grad():
            own = factor(self._base, self._padded(points), both)
        return Factors(*(x.detach().unsqueeze(-1).flatten(len(self.batch_shape) + 2) for x in own))

    def _factors(self, points: Tensor, shared: Transform | None) -> tuple[Factors, Factors]:
        with torch.no_grad():
            return self._each(lambda component, value: factors(component, value, shared), points)

    def _displacement(self, points: Tensor, log_weights: Tensor, within: Tensor) -> Tensor:
        """Currents ``(S, *B, K, D)`` of :func:`location_scale_displacement`."""
        base = self._base
        locs, scales = (self._all(x.to(points.dtype)) for x in (base.loc, base.scale))
        unit = type(base)(locs.new_zeros(()), locs.new_ones(()), validate_args=False)
        log_prob = _log_mixture(self._each(log_density, points), log_weights)
        z = points.unsqueeze(-1).flatten(len(self.batch_shape) + 1)
        return location_scale_displacement(z, log_prob, within, locs, scales, unit.log_prob)

    def _slope(self, shared: Transform | None, points: Tensor, slope: Tensor) -> Tensor:
        """Gradients at the points as those at their coordinates, ``(S, *B, D)``."""
        if shared is None:
            return slope
        place = shared.inv(self._padded(points))
        if torch.compiler.is_compiling():
            image, pull, *_ = torch.func.vjp(shared, place)
            (there,) = pull(slope.reshape(image.shape).to(image))
        else:
            place = place.detach().requires_grad_()
            image = shared(place)
            (there,) = torch.autograd.grad(image, place, slope.reshape(image.shape).to(image))
        return there.reshape(*slope.shape[:-1], math.prod(there.shape[slope.dim() - 1 :]))

    def _pulled(
        self, motion: Tensor | Affine, points: Tensor, slope: Tensor, share: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What moves as the components bid it, in shares, and the gradients there."""
        if not isinstance(motion, Affine):
            shape = share.shape + self.event_shape  # (S, *B, K, *E)
            along = (share.unsqueeze(-1) * slope.unsqueeze(-2)).reshape(shape)
            return [motion.expand(shape)], [along.to(motion)]
        # of all samples together; in float64, for components may be far apart
        origin, gain, center = (self._all(x) for x in motion)  # (*B, K, D)
        z, along, weights, place = double(
            points.reshape(slope.shape), slope, share, center.detach()
        )
        z, along, weights = (x.movedim(0, -2) for x in (z, along, weights))  # (*B, S, ...)
        middle = place.mean(-2, keepdim=True)
        by_origin = weights.mT @ along  # (*B, K, D)
        by_gain = weights.mT @ (along * (z - middle)) - (place - middle) * by_origin
        return [origin, gain], [by_origin.to(origin), by_gain.to(gain)]

    @property
    def _base(self) -> Any:
        return base_of(self.distributions[0])


def _log_mixture(log_components: Tensor, log_weights: Tensor) -> Tensor:
    """Log density of the mixture, infinite for components without weight: no current overflows.

    ``(S, *B, K), (*B, K) -> (S, *B, K)``.
    """
    log_prob = (log_components + log_weights).logsumexp(-1, keepdim=True)
    return log_prob.masked_fill(log_weights == -math.inf, math.inf)


def _exchange(own: Factors, marginals: Factors, log_weights: Tensor, within: Tensor) -> Tensor:
    """Currents ``(S, *B, K, D)`` of :func:`exchange`, in the shared coordinates."""
    own, marginals = own.to(within.dtype), marginals.to(within.dtype)
    log_prob = _log_mixture(own.log_pdf.sum(-1), log_weights)
    return exchange(log_prob, own, marginals.mix(within))
