"""A flow with a mixture at its base, and its components in data space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions.conditional import ConditionalTransform
from torch import Tensor
from torch.distributions import Transform

from pyro_mixtures.distributions.gumbel_softmax_mixture import GumbelSoftmaxMixtureOfDiagNormals
from pyro_mixtures.distributions.mixture_distribution import MixtureDistribution
from pyro_mixtures.distributions.transformed_distribution import TransformedDistribution
from pyro_mixtures.families.support import is_atom

if TYPE_CHECKING:
    from typing_extensions import Self


class MixtureFlow(TransformedDistribution):
    r"""A normalizing flow whose base is a mixture: components of any shape, apart from each other.

    .. math::
        y = T(z), \quad z \sim \sum_{j=1}^K \pi_j q_j, \qquad
        p(y) = \sum_j \pi_j \, q_j(T^{-1}(y)) \, |\det \partial T^{-1} / \partial y|

    A flow alone cannot tear a mode in two, and leaves bridges between modes; a mixture alone needs
    many components for a bent one. Samples carry unbiased gradients of low variance to the
    weights, the components and the transforms, and objectives find the score term
    (:class:`~pyro_mixtures.distributions.TransformedDistribution`).

    The base may also be a
    :class:`~pyro_mixtures.distributions.GumbelSoftmaxMixtureOfDiagNormals`, to compare with: its
    samples belong to no component, and the density of the flow is as good as that of the base.

    Args:
        base_mixture: any mixture of this package, of batch shape ``B`` and event shape ``E``.
        transforms: a bijective transform of torch, Pyro or zuko, or a list of them, of events of
            shape ``E`` or of their elements. Modules are trained like any other.
        validate_args: check the values of arguments of densities.

    Attributes:
        base_dist: the base.
        transforms: a list.

    Raises:
        ValueError: for another base, transforms of events with more dimensions than those of the
            base or of other sizes, and such as are not bijective. (Some transforms show only with
            points that they do not fit.)
        NotImplementedError: for a base with atoms, and where a transform lacks the inverse that a
            density needs, as for ``TransformedDistribution``.

    Example:
        >>> from pyro.distributions.transforms import spline_coupling
        >>> from pyro_mixtures.distributions import MixtureOfDiagNormals
        >>> _ = torch.manual_seed(0)
        >>> locs = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> base = MixtureOfDiagNormals(locs, torch.full((2, 2), 0.3), logits)
        >>> q = MixtureFlow(base, spline_coupling(2))
        >>> y = q.rsample((5,))
        >>> q.log_prob(y).shape, q.component_log_prob(y).shape
        (torch.Size([5]), torch.Size([5, 2]))
        >>> y.sum().backward()
        >>> logits.grad.shape
        torch.Size([2])
    """

    def __init__(
        self,
        base_mixture: Any,
        transforms: Transform | Sequence[Transform],
        *,
        validate_args: bool | None = None,
    ) -> None:
        kinds = (MixtureDistribution, GumbelSoftmaxMixtureOfDiagNormals, MixtureFlow)
        if not isinstance(base_mixture, kinds):
            raise ValueError(
                "Expected base_mixture to be a mixture of pyro_mixtures.distributions, to which"
                f" to_event and mask are not yet applied, but got {type(base_mixture).__name__}"
            )
        given = list(transforms) if isinstance(transforms, (list, tuple)) else [transforms]
        _check_transforms(given, base_mixture)
        super().__init__(base_mixture, given, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        new = self._get_checked_instance(MixtureFlow, _instance)
        return super().expand(torch.Size(batch_shape), _instance=new)

    @property
    def mean(self) -> Tensor:
        """Raises ``NotImplementedError``, for it has no closed form."""
        raise NotImplementedError(
            "the moments of a flow have no closed form: take those of many samples"
        )

    @property
    def variance(self) -> Tensor:
        """Raises ``NotImplementedError``, for it has no closed form."""
        return self.mean

    @property
    def component_logits(self) -> Tensor:
        """Of the weights, ``(*B, K)``."""
        return self.base_dist.component_logits

    @property
    def log_weights(self) -> Tensor:
        """Normalized logarithms of the weights, ``(*B, K)``."""
        return self.component_logits.log_softmax(-1)

    @property
    def num_components(self) -> int:
        """K."""
        return self.component_logits.shape[-1]

    def component_log_prob(self, value: Tensor) -> Tensor:
        r"""Log densities of all components, moved by the transforms, ``(*X, *E) -> (*X, K)``.

        .. math:: \log q_j(T^{-1}(y)) - \log |\det \partial T / \partial z|

        Raises:
            NotImplementedError: for a base whose samples belong to no component.
        """
        self._check_components()
        points = self._way_to(value)
        log_volume, _ = self._log_volume(points)
        log_volume = log_volume.unsqueeze(-1) if isinstance(log_volume, Tensor) else log_volume
        return self.base_dist.component_log_prob(points[0]) - log_volume

    def responsibilities(self, value: Tensor) -> Tensor:
        """Posterior probabilities of the components, ``(*X, *E) -> (*X, K)``.

        Raises:
            NotImplementedError: for a base whose samples belong to no component.
        """
        self._check_components()
        return self.base_dist.responsibilities(self._way_to(value)[0])

    def moved(self, point: Tensor) -> tuple[Tensor, Tensor | float]:
        """Images of points of the base.

        Args:
            point: ``(*X, *B, *E)``, with the full batch.

        Returns:
            The images, and the logarithms of what the transforms multiply volumes by there,
            ``(*X, *B)``.
        """
        points = self._way(point, point.shape[: point.dim() - len(self.base_dist.shape())])
        return points[-1], self._log_volume(points)[0]

    @torch.no_grad()
    def sample_with_index(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Samples without gradient, and the components that they were drawn from.

        Args:
            sample_shape: X, of the draws.

        Returns:
            Samples ``(*X, *B, *E)`` and numbers of components ``(*X, *B)``.

        Raises:
            NotImplementedError: for a base whose samples belong to no component.
        """
        self._check_components()
        point, index = self.base_dist.sample_with_index(sample_shape)
        return self._way(point, sample_shape)[-1], index

    def _check_components(self) -> None:
        if not hasattr(self.base_dist, "component_log_prob"):
            raise NotImplementedError(
                f"Expected a base whose samples belong to one component each, but got"
                f" {type(self.base_dist).__name__}; those of the mixture that it relaxes are of"
                " MixtureFlow(q.base_dist.mixture, q.transforms)"
            )


def _check_transforms(transforms: list[Any], base: Any) -> None:
    """Raise an error for what is no bijection of a base's events."""
    event_dim = base.event_dim
    for transform in transforms:
        if not isinstance(transform, Transform):
            hint = (
                ": call its condition(context) first, or make an nn.ConditionalMixtureFlow"
                if isinstance(transform, ConditionalTransform)
                else ""
            )
            raise ValueError(
                "Expected transforms of torch.distributions, Pyro or zuko, but got"
                f" {type(transform).__name__}{hint}"
            )
        if not transform.bijective:
            raise ValueError(
                "Expected bijective transforms, whose images have a density, but got"
                f" {type(transform).__name__} (bijective=False)"
            )
        if transform.domain.event_dim > event_dim:
            raise ValueError(
                f"Expected transforms of events with at most {event_dim} dimensions, those of the"
                f" base's (event shape {tuple(base.event_shape)}), but got"
                f" {type(transform).__name__}, of events with {transform.domain.event_dim}"
            )
        event_dim += transform.codomain.event_dim - transform.domain.event_dim
    _check_shape(transforms, base)
    components = getattr(getattr(base, "components", None), "distributions", ())
    if any(is_atom(each) for each in components):
        raise NotImplementedError(
            "Expected a base with a density, but got one with atoms (Delta), which transforms move"
            " without a change of their probability"
        )


def _check_shape(transforms: list[Transform], base: Any) -> None:
    shape = base.batch_shape + base.event_shape
    try:
        for transform in transforms:
            shape = transform.forward_shape(shape)
        for transform in reversed(transforms):
            shape = transform.inverse_shape(shape)
        fits = shape[len(shape) - base.event_dim :] == base.event_shape
    except (RuntimeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(
            f"Expected transforms of events of shape {tuple(base.event_shape)}, those of the base,"
            f" but got {transforms} of others"
        )
