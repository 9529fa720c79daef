"""torch's MixtureSameFamily, with gradients through samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyro.distributions
import torch
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    constraints,
)

from pyro_mixtures.components import Cholesky, Components, Diagonal, Family, Normals
from pyro_mixtures.components.asking import base_of, expanded, unchecked
from pyro_mixtures.distributions.mixture_distribution import MixtureDistribution
from pyro_mixtures.families import exactly
from pyro_mixtures.families.support import check_rules, first_component

if TYPE_CHECKING:
    from typing_extensions import Self

NUMBERS = exactly(Normal)
VECTORS = exactly(MultivariateNormal, LowRankMultivariateNormal)


class MixtureSameFamily(MixtureDistribution, pyro.distributions.MixtureSameFamily):
    r"""Mixture of K components of one family, any that has rules to move its points.

    .. math:: q(z) = \sum_{j=1}^K \pi_j q_j(z)

    The arguments and all methods are those of ``torch.distributions.MixtureSameFamily``, and
    ``rsample`` carries unbiased gradients to the logits or probabilities of the weights and to
    everything that the parameters of the components were computed from. Of Normal components
    there is all that the mixtures of Normals have, but for ``from_samples``.

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
        transport: the velocity field for the weights, ``"auto"`` for the first of them:
            ``"telescoping"`` (one coordinate at a time, to the product of the mixture's
            marginals); for Normal components, also of low rank, ``Logistic``, ``Gumbel`` and
            ``Cauchy`` ones ``"displacement"`` (they flow to a hub of their own family); for Normal
            ones ``"implicit"``, too. The default is displacement for Normal components and
            telescoping for others.
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
        *,
        transport: str = "auto",
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
        torch.distributions.MixtureSameFamily.__init__(
            self, mixture_distribution, component_distribution, validate_args
        )
        # of parameters that tell their origin torch takes plain tuples
        self._batch_shape = torch.Size(self._batch_shape)
        self._event_shape = torch.Size(self._event_shape)
        components = components_of(self.component_distribution)
        self._set_up(components, self.mixture_distribution.logits, transport, weight_gradient)
        self._check_components(weight_gradient)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        batch_shape = torch.Size(batch_shape)
        new = self._get_checked_instance(type(self), _instance)
        torch.distributions.MixtureSameFamily.expand(self, batch_shape, new)
        self._shape_as_expanded(new, batch_shape)  # torch's event shape may be a plain tuple
        new.component_logits = new.mixture_distribution.logits
        self._expand_into(new, batch_shape)
        return new

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """That of one component: torch's, which holds those of all, has no ``biject_to``."""
        return first_component(self.component_distribution.support, len(self.event_shape))

    def _like(self, components, logits):
        return MixtureSameFamily(
            Categorical(logits=logits, validate_args=False),
            distribution_of(components),
            transport=self.transport,
            weight_gradient=self.weight_gradient,
            validate_args=self._validate_args,
        )


def components_of(distribution: Any) -> Components:
    """Those of a distribution of batch shape ``(*B, K)``: Normals where it is Normal."""
    if type(distribution) in VECTORS:
        return Normals(distribution.loc, Cholesky(distribution.scale_tril))
    base = base_of(distribution)
    if type(base) not in NUMBERS:
        return Family(unchecked(distribution))
    first = len(distribution.batch_shape)
    locs, scales = (x.unsqueeze(-1).flatten(first) for x in (base.loc, base.scale))
    return Normals(locs, Diagonal(scales), torch.Size(distribution.event_shape))


def distribution_of(components: Any) -> Distribution:
    """Normal components as a distribution over vectors, of batch shape ``(*B, K)``."""
    factor = components.scale.own.factor
    if components.scale.own.kind == "diagonal":
        return Independent(Normal(components.locs, factor, validate_args=False), 1)
    return MultivariateNormal(components.locs, scale_tril=factor, validate_args=False)


def _broadcast(mixture: Categorical, components: Distribution) -> tuple[Categorical, Distribution]:
    """Both of the full batch shape; torch's class has the error for shapes that do not fit."""
    *batch, count = components.batch_shape
    try:
        shape = torch.broadcast_shapes(mixture.batch_shape, batch)
    except RuntimeError:
        return mixture, components
    return mixture.expand(shape), expanded(components, torch.Size((*shape, count)))
