"""Mixtures of components of different families."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.distributions import Categorical, Distribution, constraints

from pyro_mixtures.components import Apart, Several
from pyro_mixtures.components.asking import expanded, unchecked
from pyro_mixtures.distributions.mixture_distribution import MixtureDistribution
from pyro_mixtures.families.support import UnionConstraint, check_rules, is_atom, share_support
from pyro_mixtures.numerics.precision import records_graph

if TYPE_CHECKING:
    from typing_extensions import Self


class Mixture(MixtureDistribution):
    r"""Mixture of components of different families.

    .. math:: q(z) = \sum_{j=1}^K \pi_j q_j(z)

    ``rsample`` carries unbiased gradients to the logits or probabilities of the weights and to
    everything that the parameters of the components were computed from.

    Components share their support, but for two cases with ``weight_gradient="hybrid"``. Components
    may be atoms, ``pyro.distributions.Delta``: then densities are by Lebesgue measure plus one for
    each atom, and a value on an atom belongs to the atoms there alone. Samples move with atoms
    and densities, and the weights have their score function. And the densities' supports may be
    different intervals: then a path across the end of one would miss the jump of the density
    there, so that samples have no gradient (``has_rsample`` is False), and all parameters have
    their score function; the ends are fixed.

    Args:
        mixture_distribution: a ``Categorical`` with K categories and batch shape ``B``.
        component_distributions: K distributions of batch shapes ``B`` and one event shape, of the
            families of :class:`~pyro_mixtures.distributions.MixtureSameFamily` or ``Delta``.
        transport: the velocity field for the weights: ``"telescoping"``, one coordinate at a time,
            to the product of the mixture's marginals.
        weight_gradient: ``"clustered"``, ``"pathwise"`` or ``"hybrid"``: how the weights get
            their gradient (:class:`~pyro_mixtures.distributions.MixtureDistribution`).
        validate_args: check the values of the arguments and of ``log_prob``'s argument (to be set
            to False under ``torch.func.vmap``, where values cannot be looked at).

    The batch shapes broadcast against each other.

    Raises:
        ValueError: for shapes that do not fit, supports that differ (see above), or an unknown
            ``transport`` or ``weight_gradient``.
        NotImplementedError: for components that are discrete or of a family without rules, and
            for different supports whose ends need a gradient.

    Example:
        >>> from torch.distributions import Categorical, Normal, StudentT
        >>> _ = torch.manual_seed(0)
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> q = Mixture(Categorical(logits=logits), [Normal(0.0, 1.0), StudentT(4.0, 2.0, 1.0)])
        >>> q.rsample((100_000,)).mean().backward()  # the exact gradient is [-1/2, 1/2]
        >>> torch.allclose(logits.grad, torch.tensor([-0.5, 0.5]), atol=0.02)
        True

        Zeros beside a density:

        >>> from pyro.distributions import Delta
        >>> from torch.distributions import Gamma
        >>> parts = [Delta(torch.tensor(0.0)), Gamma(2.0, 1.0)]
        >>> q = Mixture(Categorical(torch.tensor([0.3, 0.7])), parts, weight_gradient="hybrid")
        >>> q.log_prob(torch.tensor(0.0)).exp(), q.cdf(torch.tensor(0.0))
        (tensor(0.3000), tensor(0.3000))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self,
        mixture_distribution: Categorical,
        component_distributions: Sequence[Distribution],
        *,
        transport: str = "telescoping",
        weight_gradient: str = "clustered",
        validate_args: bool | None = None,
    ) -> None:
        components = component_distributions
        if not (
            isinstance(components, Sequence)
            and all(isinstance(component, Distribution) for component in components)
        ):
            raise ValueError(
                f"Expected component_distributions to be distributions, but got {components}"
            )
        if not isinstance(mixture_distribution, Categorical):
            raise ValueError(
                "Expected mixture_distribution to be a Categorical, but got"
                f" {type(mixture_distribution).__name__}"
            )
        if len(components) != mixture_distribution.logits.shape[-1]:
            raise ValueError(
                f"Expected {mixture_distribution.logits.shape[-1]} components (the categories of"
                f" mixture_distribution), but got {len(components)}"
            )
        for component in components:
            if not is_atom(component):
                check_rules(component)
        if any(component.event_shape != components[0].event_shape for component in components):
            raise ValueError(
                "Expected components of one event shape, but got"
                f" {', '.join(str(tuple(each.event_shape)) for each in components)}"
            )
        shapes = [each.batch_shape for each in (mixture_distribution, *components)]
        try:
            batch_shape = torch.broadcast_shapes(*shapes)
        except RuntimeError:
            raise ValueError(
                "Expected batch shapes of mixture_distribution and components that broadcast,"
                f" but got {', '.join(str(tuple(shape)) for shape in shapes)}"
            ) from None
        self.mixture_distribution = mixture_distribution.expand(batch_shape)
        self.component_distributions = tuple(expanded(each, batch_shape) for each in components)
        super().__init__(batch_shape, torch.Size(components[0].event_shape), validate_args)
        has_atoms = any(map(is_atom, components))
        # also without validation, for values beyond an end would have no density
        looks = self._validate_args or (weight_gradient == "hybrid" and not records_graph())
        differ = looks and not share_support(*self.component_distributions)
        kind = Apart if has_atoms or differ else Several
        several = kind(*map(unchecked, self.component_distributions))
        self._set_up(several, self.mixture_distribution.logits, transport, weight_gradient)
        self._check_components(weight_gradient)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        batch_shape = torch.Size(batch_shape)
        new = self._get_checked_instance(type(self), _instance)
        new.mixture_distribution = self.mixture_distribution.expand(batch_shape)
        new.component_distributions = tuple(
            expanded(each, batch_shape) for each in self.component_distributions
        )
        new.component_logits = new.mixture_distribution.logits
        self._shape_as_expanded(new, batch_shape)
        self._expand_into(new, batch_shape)
        return new

    def __repr__(self):
        components = ",\n   ".join(map(repr, self.component_distributions))
        return f"Mixture(\n  {self.mixture_distribution},\n  [{components}])"

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        if isinstance(self.components, Apart):
            return UnionConstraint(*self.component_distributions)
        first: Any = self.component_distributions[0]
        return first.support
