"""The base class of the mixtures whose components are distributions of their own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, Transform

from pyro_mixtures.distributions.mixture_distribution import MixtureDistribution
from pyro_mixtures.distributions.sample_record import recall, remember
from pyro_mixtures.distributions.weights import draw_index, surely_all, within_group
from pyro_mixtures.families.registry import (
    common_coordinates,
    factors,
    log_density,
    moved,
    tails,
)
from pyro_mixtures.families.support import check_exchange, check_supports, inside_support
from pyro_mixtures.velocity.chunks import map_chunks
from pyro_mixtures.velocity.clustering import bhattacharyya_diag_normal
from pyro_mixtures.velocity.pathwise import needs_gradient, pathwise
from pyro_mixtures.velocity.precision import at_least_single, double, largest
from pyro_mixtures.velocity.score_use import chosen
from pyro_mixtures.velocity.telescoping import Factors, exchange


class ComponentMixture(MixtureDistribution):
    r"""A mixture of distributions that know how to move a given point.

    A sample z becomes a differentiable function of all parameters with the value z and the
    derivatives

    .. math:: \frac{dz}{d\theta_j} = \frac{\pi_j q_j(z)}{q(z)} v^{\theta_j}(z), \qquad
              \frac{dz}{d\,\text{logit}_j} = \pi_j \Big(\frac{w^j(z)}{q(z)}
              - \sum_k \frac{\pi_k}{\pi_C} \frac{w^k(z)}{q(z)}\Big)

    (C the group of j), where the velocities :math:`v` are rules of the components' family
    (:func:`~pyro_mixtures.families.register_velocity`) and the currents :math:`w` exchange one
    coordinate at a time (:func:`~pyro_mixtures.velocity.telescoping.exchange`).

    A subclass has ``mixture_distribution`` and supplies ``_components``, ``_draw``, ``_each`` and
    ``_padded``, and ``_displacement`` if it has that transport. The event shape is ``E``.
    """

    mixture_distribution: Categorical
    transport = "telescoping"

    @property
    def _components(self) -> tuple[Distribution, ...]:
        """Several of batch shape ``B``, or one of batch shape ``(*B, K)``."""
        raise NotImplementedError

    def _draw(self, count: int) -> Tensor:
        """Samples of all components, ``(count, *B, K, *E)``."""
        raise NotImplementedError

    def _each(self, function: Callable[..., Any], *values: Tensor) -> Any:
        """Results ``(*X, K, ...)`` of a function of a component and points ``(*X, *E)``."""
        raise NotImplementedError

    def _padded(self, value: Tensor) -> Tensor:
        """Points as ``_each`` hands them to a component."""
        raise NotImplementedError

    def _check(self) -> None:
        """Raise errors for what would otherwise show in the first sample or be wrong."""
        if self.num_components > 1:
            if self.weight_gradient != "hybrid":
                check_exchange(*self._components)
            check_supports(*self._components)

    def _validated(self, value: Tensor) -> Tensor:
        if self._validate_args and value.numel():  # torch's constraints fail for empty tensors
            self._validate_sample(value)
        return value

    def sample(self, sample_shape=torch.Size()):
        with torch.no_grad():
            weights = self.log_weights.exp().reshape(self.batch_shape.numel(), self.num_components)
            index = draw_index(weights, torch.Size(sample_shape).numel())  # (B, S)
            value = self._pick(index.T).reshape(self._extended_shape(sample_shape))
            return inside_support(value, *self._components)

    def _pick(self, index: Tensor) -> Tensor:
        """Samples of the components ``(S, B)``, as many of each as the most frequent asks."""
        count, batch = index.shape
        every = torch.arange(self.num_components, device=index.device)
        chosen = index.unsqueeze(-1) == every  # (S, B, K)
        turn = (chosen.cumsum(0) * chosen).sum(-1) - 1  # among those of its component, (S, B)
        most = largest(turn)
        if most is None:
            turn = torch.arange(count, device=index.device).unsqueeze(-1)
        else:
            count = int(most) + 1
        place = turn * batch + torch.arange(batch, device=index.device)
        place = place * self.num_components + index
        rows = self._draw(count).reshape(-1, *self.event_shape)  # (count B K, *E)
        return rows[place.flatten()]

    def rsample(self, sample_shape=torch.Size()):
        return self.reparameterize(self.sample(sample_shape))

    def reparameterize(self, value: Tensor) -> Tensor:
        """Give samples drawn elsewhere the gradients that ``rsample`` would give them.

        Args:
            value: samples of this mixture, ``(*X, *B, *E)``; their own gradient history is cut.

        Returns:
            A tensor equal to ``value``.
        """
        value = value.detach()
        if not torch.is_grad_enabled():
            return value
        batch = self.batch_shape + self.event_shape
        count = torch.Size(value.shape[: value.dim() - len(batch)]).numel()
        inside = inside_support(value, *self._components)
        rows = inside.reshape(count, batch.numel())
        has_score = self._has_score

        def points(rows: Tensor) -> tuple[Tensor, ...]:
            z = rows.reshape(len(rows), *batch)
            return tuple(each.reshape(rows.shape) for each in self._moved(z, has_score))

        size = self.num_components * batch.numel()
        moved, *alone = map_chunks(points, (rows,), size)
        receipt = None
        if has_score:
            moved, receipt = chosen(moved, *alone)
        sample = pathwise(value, _pass_on, moved.reshape(value.shape))
        remember(self, sample, receipt)
        return sample

    def _receipt(self, value: Tensor) -> Tensor | None:
        return recall(self, value)

    def component_log_prob(self, value: Tensor) -> Tensor:
        r"""Log densities :math:`\log q_j(z)` of all components, ``(*X, *B, K)``."""
        return self._each(log_density, self._validated(value))

    def cdf(self, value):
        r"""Of univariate components: :math:`\sum_j \pi_j F_j(z)`, ``(*X,)``."""
        if self.event_shape:
            raise NotImplementedError(
                f"Expected an event shape of () for cdf, but got {tuple(self.event_shape)}"
            )
        return (self._each(_cdf, self._validated(value)) * self.log_weights.exp()).sum(-1)

    def log_prob(self, value):
        return (self.component_log_prob(value) + self.log_weights).logsumexp(-1)

    def _log_prob_and_responsibilities(self, value: Tensor) -> tuple[Tensor, Tensor]:
        joint = self.component_log_prob(value) + self.log_weights
        return joint.logsumexp(-1), joint.softmax(-1)

    def _moved(self, z: Tensor, has_score: bool) -> tuple[Tensor, ...]:
        """Samples ``(S, *B, *E)`` as functions of all parameters, of about the same values.

        One that carries the whole gradient, or, if there is a score term, one to go with that and
        one to go without.
        """
        (z,) = at_least_single(z)
        log_weights = self.log_weights.to(z.dtype)
        has_transport = self.num_components > 1 and needs_gradient(log_weights)
        error = self._missing_exchange() if has_transport else None
        has_transport = has_transport and error is None
        exchanges = has_transport and self.transport == "telescoping"
        with torch.no_grad():
            shared = common_coordinates(*self._components) if exchanges else None
            points, own, marginals = None, None, None
            if exchanges:
                points, own, marginals = self._points_and_factors(z, shared)
                own, marginals = own.to(z.dtype), marginals.to(z.dtype)
            log_components = own.log_pdf.sum(-1) if own else self._each(log_density, z)
            joint = log_components + log_weights
            log_prob = joint.logsumexp(-1, keepdim=True)  # (S, *B, 1)
            # torch.jit.trace does not record that there is no gradient here: detach() it does
            responsibilities = (joint - log_prob).exp().detach()  # (S, *B, K)
        point = self._average(z, points, responsibilities)
        # no current of a component without weight overflows
        log_prob = log_prob.detach().masked_fill(log_weights == -math.inf, math.inf)  # (S, *B, K)

        def shifted(*groups: Tensor) -> Tensor:
            with torch.no_grad():
                within = within_group(log_weights.detach(), *groups)  # (*B, K or 1, K)
                if own and marginals:
                    currents = exchange(log_prob, own, marginals.mix(within))  # (S, *B, K, D)
                else:
                    currents = self._displacement(z, log_prob, within)
            changes = _weight_changes(log_weights, within)
            shift = changes @ currents.detach()  # (S, *B, 1, D)
            return point + self._mapped(shared, z, shift)

        if error is not None:
            return point, _refused(point, log_weights, error)
        if not has_transport:
            return (point,)
        if not has_score:
            return (shifted(),)
        beside = point if self.weight_gradient == "hybrid" else shifted(self._groups)
        return beside, shifted()

    def _missing_exchange(self) -> NotImplementedError | None:
        """Why the components have no transport, of which only ``"hybrid"`` allows."""
        if self.weight_gradient == "hybrid":
            try:
                check_exchange(*self._components)
            except NotImplementedError as error:
                return error
        return None

    def _displacement(self, z: Tensor, log_prob: Tensor, within: Tensor) -> Tensor:
        """Currents ``(S, *B, K, D)`` of :func:`location_scale_displacement`."""
        raise NotImplementedError

    def _points_and_factors(
        self, z: Tensor, shared: Transform | None
    ) -> tuple[Tensor | None, Factors, Factors]:
        """Factors ``(S, *B, K, D)`` and, if they yield them, the components' moving points."""
        return None, *self._each(lambda component, value: factors(component, value, shared), z)

    def _average(self, z: Tensor, points: Tensor | None, responsibilities: Tensor) -> Tensor:
        """Samples that move as the components bid them, by responsibilities ``(S, *B, K)``."""
        if points is None:
            points = self._each(moved, z)
        points = points.expand(responsibilities.shape + self.event_shape)  # (S, *B, K, *E)
        points = points.unsqueeze(-1).flatten(responsibilities.dim())
        return (responsibilities.unsqueeze(-2) @ points).reshape(z.shape)

    def _mapped(self, shared: Transform | None, z: Tensor, shift: Tensor) -> Tensor:
        """A shift of value zero of the shared coordinates as one of the samples."""
        if shared is None:
            return shift.reshape(z.shape)
        with torch.no_grad():
            place = shared.inv(self._padded(z)).detach()
        # the parameters of the map get their gradients from the components' velocities
        change = shared(place + shift.reshape(place.shape)) - shared(place)
        return change.reshape(z.shape)

    def _component_distances(self) -> Tensor:
        """Of Normals with the same means and standard deviations; without these, all are near."""
        try:
            mean, stddev = self._each(_location_and_spread)
        except (NotImplementedError, RuntimeError) as error:
            if not isinstance(error, NotImplementedError) and "vmap" not in str(error):
                raise
            shape = self.batch_shape + (self.num_components,) * 2
            return self.component_logits.new_zeros(shape)
        first = len(mean.shape) - len(self.event_shape)
        mean, stddev = (x.unsqueeze(-1).flatten(first) for x in double(mean, stddev))
        return bhattacharyya_diag_normal(mean, stddev)


def _weight_changes(log_weights: Tensor, within: Tensor) -> Tensor:
    r"""Zeros ``(*B, 1, K)`` with derivatives :math:`\pi_j (\delta_{jl} - \pi_l / \pi_C)`."""
    change = log_weights.masked_fill(log_weights == -math.inf, 0).unsqueeze(-1)
    change = change - change.detach()  # (*B, K, 1)
    return (change - within @ change).mT * log_weights.exp().detach().unsqueeze(-2)


def _refused(point: Tensor, log_weights: Tensor, error: NotImplementedError) -> Tensor:
    """A point that cannot move with the weights, for a loss that does not use the score term."""

    def refuse(*_: Tensor) -> tuple[Tensor]:
        raise NotImplementedError(
            "The loss does not use the score term of a mixture with weight_gradient='hybrid', and"
            f" its components have no transport. {error}"
        ) from error

    zero = pathwise(point.new_zeros(()), refuse, log_weights)
    return point + zero


def _pass_on(z: Tensor, grad: Tensor, moved: Tensor) -> tuple[Tensor]:
    return (grad,)


def _cdf(component: Distribution, value: Tensor) -> Tensor:
    return tails(component, value).cdf


def _location_and_spread(component: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, or what the family has where these do not exist."""
    if isinstance(component, Independent):
        return _location_and_spread(component.base_dist)
    try:
        mean, stddev = component.mean, component.stddev
        if surely_all((mean + stddev).isfinite()):
            return mean, stddev
        if hasattr(component, "scale_tril"):
            return component.loc, torch.linalg.vector_norm(component.scale_tril, dim=-1)
        return component.loc, component.scale
    except AttributeError:
        raise NotImplementedError from None
