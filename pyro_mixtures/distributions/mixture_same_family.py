"""torch's MixtureSameFamily, with gradients through samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions
import torch
from pyro.ops.provenance import detach_provenance, get_provenance, track_provenance
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, Transform, constraints

from pyro_mixtures.distributions.component_mixture import ComponentMixture
from pyro_mixtures.distributions.drawing import draw
from pyro_mixtures.distributions.mixture_distribution import WEIGHT_GRADIENTS
from pyro_mixtures.distributions.normal_components import normal_mixture
from pyro_mixtures.distributions.sample_record import recall, remember
from pyro_mixtures.distributions.validation import check_choice, expanded
from pyro_mixtures.families import UNIVARIATE, exactly
from pyro_mixtures.families.location_scale import SMOOTH
from pyro_mixtures.families.registry import Affine, factor, moving_tails, tails, velocity
from pyro_mixtures.families.support import check_rules, first_component
from pyro_mixtures.velocity.location_scale_displacement import location_scale_displacement
from pyro_mixtures.velocity.precision import double
from pyro_mixtures.velocity.telescoping import Factors

MADE_OF_PARAMETERS = exactly(*UNIVARIATE)
"""Classes whose parameters, by the names of their constraints, are all that they are made of."""


class MixtureSameFamily(ComponentMixture, pyro.distributions.MixtureSameFamily):
    r"""Mixture of K components of one family, any that has rules to move its points.

    .. math:: q(z) = \sum_{j=1}^K \pi_j q_j(z)

    The signature and all methods are those of ``torch.distributions.MixtureSameFamily``, and
    ``rsample`` carries unbiased gradients to the logits or probabilities of the weights and to
    everything that the parameters of the components were computed from.

    Families: ``Normal``, ``Laplace``, ``Logistic``, ``Gumbel``, ``Cauchy``, ``StudentT``,
    ``LogNormal``, ``HalfNormal``, ``HalfCauchy``, ``Exponential``, ``Weibull``, ``Gamma``,
    ``InverseGamma``, ``Chi2``, ``Pareto`` (of one scale), ``Beta``, ``Kumaraswamy``, ``Uniform``
    (on one interval), ``VonMises``, ``Independent`` of them, ``MultivariateNormal``,
    ``LowRankMultivariateNormal``, ``MultivariateStudentT``, ``Dirichlet``, and
    ``TransformedDistribution`` of any of them with invertible transforms: elementwise ones with
    parameters for each component, others common to all. More by
    :func:`~pyro_mixtures.families.register_velocity`.

    ``VonMises`` lives on the interval from -pi to pi, and its gradients hold for any cost,
    periodic or not: nothing flows through the ends. So a mean near an end moves its mass around
    the whole circle, at a high variance; turn the circle so that the ends lie between the means.

    Samples that rounding would put on the ends of the support are the numbers next to these, and
    have the densities there. With shape parameters far below one, of ``Beta`` or ``Kumaraswamy``,
    these are many, for numbers next to 1 are coarse: then densities, and with them the score
    function's gradient, are off, and ``float64`` or a flipped coordinate helps.

    Args:
        mixture_distribution: a ``Categorical`` with K categories and batch shape ``B``.
        component_distribution: a distribution of batch shape ``(*B, K)`` and event shape ``E``.
        transport: the velocity field for the weights: ``"telescoping"`` (one coordinate at a time,
            to the product of the mixture's marginals) or, for ``Normal``,
            ``MultivariateNormal``, ``Logistic``, ``Gumbel`` and ``Cauchy`` components,
            ``"displacement"`` (they flow to a hub of their own family). The default is
            displacement for Normal components, also of low rank, and telescoping for others.
        weight_gradient: ``"clustered"``, ``"pathwise"`` or ``"hybrid"``: how the weights get
            their gradient (:class:`~pyro_mixtures.distributions.MixtureDistribution`).
        validate_args: check the values of the arguments and of ``log_prob``'s argument (to be set
            to False under ``torch.func.vmap``, where values cannot be looked at).

    ``B`` of both distributions broadcast against each other.

    Raises:
        ValueError: for shapes that do not fit, supports that differ, or an unknown ``transport``
            or ``weight_gradient``.
        NotImplementedError: for components that are discrete or of a family without rules.

    Reference:
        Jankowiak and Karaletsos, *Pathwise Derivatives for Multivariate Distributions* (2019),
        https://arxiv.org/abs/1806.01856, Eq. 12 and 50.

    Example:
        >>> from torch.distributions import Categorical, Gamma
        >>> _ = torch.manual_seed(0)
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> components = Gamma(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 1.0]))
        >>> q = MixtureSameFamily(Categorical(logits=logits), components)
        >>> q.rsample((100_000,)).mean().backward()  # the exact gradient is [-1/4, 1/4]
        >>> torch.allclose(logits.grad, torch.tensor([-0.25, 0.25]), atol=0.01)
        True
    """

    def __init__(
        self,
        mixture_distribution: Categorical,
        component_distribution: Distribution,
        transport: str | None = None,
        weight_gradient: str = "clustered",
        validate_args: bool | None = None,
    ) -> None:
        if isinstance(component_distribution, Distribution):
            check_rules(component_distribution)
            if not component_distribution.batch_shape:
                raise ValueError(
                    "Expected component_distribution of batch shape (*B, K), but got"
                    f" {component_distribution} of batch shape ()"
                )
            if isinstance(mixture_distribution, Categorical):
                mixture_distribution, component_distribution = _broadcast(
                    mixture_distribution, component_distribution
                )
        check_choice("weight_gradient", weight_gradient, WEIGHT_GRADIENTS)
        torch.distributions.MixtureSameFamily.__init__(
            self, mixture_distribution, component_distribution, validate_args
        )
        # of parameters that tell their origin torch takes plain tuples
        self._batch_shape = torch.Size(self._batch_shape)
        self._event_shape = torch.Size(self._event_shape)
        self.component_logits = self.mixture_distribution.logits
        self.weight_gradient = weight_gradient
        self._normals = normal_mixture(
            self.component_distribution,
            self.component_logits,
            transport=transport or "displacement",
            weight_gradient=weight_gradient,
            validate_args=False,
        )
        if self._normals is None:
            smooth = type(self._base) in exactly(*SMOOTH)
            choices = ("telescoping", "displacement") if smooth else ("telescoping",)
            self.transport = transport or "telescoping"
            check_choice("transport", self.transport, choices)
        else:
            self.transport = self._normals.transport
        if self._validate_args:
            self._check()

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(type(self), _instance)
        torch.distributions.MixtureSameFamily.expand(self, torch.Size(batch_shape), new)
        new._event_shape = self.event_shape
        new.component_logits = new.mixture_distribution.logits
        new.__dict__.update({k: v for k, v in self.__dict__.items() if k == "has_rsample"})
        new.weight_gradient, new.transport = self.weight_gradient, self.transport
        new._normals = self._normals and self._normals.expand(batch_shape)
        return new

    @constraints.dependent_property
    def support(self):
        """That of one component: torch's, which holds those of all, has no ``biject_to``."""
        return first_component(self.component_distribution.support, len(self.event_shape))

    @property
    def _components(self) -> tuple[Distribution, ...]:
        return (self.component_distribution,)

    def _draw(self, count: int) -> Tensor:
        return self.component_distribution.sample((count,))

    def _pick(self, index: Tensor) -> Tensor:
        base = self._base
        if type(base) not in MADE_OF_PARAMETERS:
            return super()._pick(index)
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

    def _padded(self, value: Tensor) -> Tensor:
        return self._pad(value)

    def _each(self, function: Callable[..., Any], *values: Tensor) -> Any:
        return function(self.component_distribution, *map(self._pad, values))

    @property
    def _base(self) -> Any:
        """The components without what makes vectors of independent coordinates."""
        base = self.component_distribution
        while isinstance(base, Independent):
            base = base.base_dist
        return base

    def _displacement(self, z: Tensor, log_prob: Tensor, within: Tensor) -> Tensor:
        base, first = self._base, len(self.batch_shape) + 1
        given = (base.loc.to(z.dtype), base.scale.to(z.dtype))
        locs, scales = (x.unsqueeze(-1).flatten(first) for x in given)
        unit = type(base)(locs.new_zeros(()), locs.new_ones(()), validate_args=False)
        flat = z.unsqueeze(-1).flatten(first)  # (S, *B, D)
        return location_scale_displacement(flat, log_prob, within, locs, scales, unit.log_prob)

    def _points_and_factors(self, z: Tensor, shared: Transform | None):
        kind, value = type(self._base), self._pad(z)
        if not moving_tails.owner(kind) is velocity.owner(kind) is tails.owner(kind) is not object:
            return super()._points_and_factors(z, shared)
        with torch.enable_grad():
            points, values = moving_tails(self._base, value)
        own = factor(self._base, value, values)
        first = len(self.batch_shape) + 2
        own = Factors(*(x.detach().unsqueeze(-1).flatten(first) for x in own))  # (S, *B, K, D)
        return points, own, own

    def _average(self, z: Tensor, points: Tensor | None, responsibilities: Tensor) -> Tensor:
        motion = velocity(self._base, self._pad(z)) if points is None else points
        if not isinstance(motion, Affine):
            return super()._average(z, motion, responsibilities)
        first = len(self.batch_shape) + 1
        origin, slope, center = (x.unsqueeze(-1).flatten(first) for x in motion)  # (*B, K, D)
        # in float64, for components may be far from each other
        weights, offset, slope = double(responsibilities, origin - slope * center, slope)
        offset, slope = (
            torch.einsum("...k,...kd->...d", weights, x) for x in (offset, slope)
        )  # (S, *B, D)
        flat = z.unsqueeze(-1).flatten(first).to(slope)
        return torch.addcmul(offset, slope, flat).reshape(z.shape).to(z.dtype)

    # Normal components are those of the classes made for them

    def _check(self) -> None:
        if self._normals is None:
            super()._check()

    def sample(self, sample_shape=torch.Size()):
        if self._normals is None:
            return super().sample(sample_shape)
        return self._unflat(self._normals.sample(sample_shape))

    def rsample(self, sample_shape=torch.Size()):
        if self._normals is None:
            return super().rsample(sample_shape)
        return self._drawn(self._normals.rsample(sample_shape))

    def reparameterize(self, value: Tensor) -> Tensor:
        if self._normals is None:
            return super().reparameterize(value)
        return self._drawn(self._normals.reparameterize(self._flat(value)))

    def component_log_prob(self, value: Tensor) -> Tensor:
        if self._normals is None:
            return super().component_log_prob(value)
        return self._normals.component_log_prob(self._flat(self._validated(value)))

    def log_prob(self, value):
        if self._normals is None:
            return super().log_prob(value)
        return self._normals.log_prob(self._flat(self._validated(value)))

    def _component_distances(self) -> Tensor:
        if self._normals is None:
            return super()._component_distances()
        return self._normals._component_distances()

    def _receipt(self, value: Tensor) -> Tensor | None:
        if self._normals is None:
            return super()._receipt(value)
        flat = value if len(self.event_shape) == 1 else recall(self, value)
        return None if flat is None else self._normals._receipt(flat)

    def _drawn(self, flat: Tensor) -> Tensor:
        """A sample of the Normals as one of this mixture."""
        value = self._unflat(flat)
        if value is not flat:
            remember(self, value, flat)
        return value

    def _flat(self, value: Tensor) -> Tensor:
        """``(*X, *E) -> (*X, D)``."""
        if len(self.event_shape) == 1:
            return value
        return value.unsqueeze(-1).flatten(value.dim() - len(self.event_shape))

    def _unflat(self, value: Tensor) -> Tensor:
        """``(*X, D) -> (*X, *E)``."""
        if len(self.event_shape) == 1:
            return value
        return value.reshape(value.shape[:-1] + self.event_shape)


def _broadcast(mixture: Categorical, components: Distribution) -> tuple[Categorical, Distribution]:
    """Both of the full batch shape; torch's class has the error for shapes that do not fit."""
    *batch, count = components.batch_shape
    try:
        shape = torch.broadcast_shapes(mixture.batch_shape, batch)
    except RuntimeError:
        return mixture, components
    return mixture.expand(shape), expanded(components, torch.Size((*shape, count)))
