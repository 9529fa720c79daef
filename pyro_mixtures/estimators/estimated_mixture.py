"""The base of the estimators that are distributions around a mixture, and what they ask of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.components import Components
from pyro_mixtures.distributions.mixture_distribution import MixtureDistribution

if TYPE_CHECKING:
    from typing_extensions import Self

MixtureT = TypeVar("MixtureT", bound=MixtureDistribution)


class EstimatedMixture(TorchDistribution):
    """A mixture whose samples carry another estimator's gradient.

    The distribution is that of the mixture: its samples, density, moments and shapes. A subclass
    supplies ``rsample``, and either has no more to add (its gradient is pathwise) or says in
    ``has_rsample`` or ``score_parts`` what is missing.

    Args:
        mixture: of this package, before ``to_event`` and ``mask``.

    Raises:
        ValueError: for what is no mixture of this package.
    """

    arg_constraints = {}
    has_rsample = True

    def __init__(self, mixture: Any) -> None:
        checked(mixture)
        self.mixture = mixture
        super().__init__(mixture.batch_shape, mixture.event_shape, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        return type(self)(self.mixture.expand(batch_shape))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.mixture})"

    @property
    def support(self) -> constraints.Constraint:
        return self.mixture.support

    @property
    def components(self) -> Components:
        """Those of the mixture."""
        return self.mixture.components

    @property
    def log_weights(self) -> Tensor:
        """Those of the mixture."""
        return self.mixture.log_weights

    @property
    def device(self) -> torch.device:
        """Of the parameters."""
        return self.mixture.device

    @property
    def mean(self) -> Tensor:
        return self.mixture.mean

    @property
    def variance(self) -> Tensor:
        return self.mixture.variance

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return self.mixture.sample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.mixture.log_prob(value)


def checked(mixture: MixtureT) -> MixtureT:
    """The mixture, or a ``ValueError`` for what is no mixture of this package."""
    if not isinstance(mixture, MixtureDistribution):
        raise ValueError(
            "Expected a mixture of pyro_mixtures.distributions, to which to_event, mask and other"
            f" estimators are not yet applied, but got {type(mixture).__name__}"
        )
    return mixture


def check_normals(mixture: Any, estimator: str, *, diagonal: bool = False) -> None:
    """Raise an error for families that an estimator does not serve.

    Raises:
        ValueError: for what is no mixture of this package.
        NotImplementedError: for mixtures whose components are not Normal, or not ``diagonal``.
    """
    checked(mixture)
    try:
        mixture.components.normals(f"the estimator {estimator!r}")
    except NotImplementedError as error:
        raise NotImplementedError(
            f"{error}; use 'pathwise', 'clustered', 'hybrid', 'score' or 'stratified'"
        ) from None
    if diagonal and mixture.components.scale.own.kind != "diagonal":
        raise NotImplementedError(
            f"Expected components with diagonal covariances for the estimator {estimator!r}, but"
            f" got {type(mixture).__name__}; use 'implicit', 'pathwise' or 'clustered'"
        )
