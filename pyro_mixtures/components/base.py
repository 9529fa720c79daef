"""What a mixture asks its components."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Size, Tensor

from pyro_mixtures.components.compiled_normals import CompiledNormals


class Evaluated(Protocol):
    """Samples of a mixture, with what it says of them.

    They are z, ``(*B, S, D)``, log q, ``(*B, S, 1)``, the responsibilities, ``(*B, S, K)``, and
    the log weights, ``(*B, K)``.
    """

    z: Tensor

    @property
    def log_prob(self) -> Tensor: ...

    @property
    def responsibilities(self) -> Tensor: ...

    @property
    def log_weights(self) -> Tensor: ...


class Weighting(NamedTuple):
    """How weight is moved from component to component.

    Args:
        transport: one of the components' ``transports``.
        within: the share of k in the group of j, ``(*B, K or 1, K)``.
        precision: the dtype to whose rounding the field is exact.
        learns: whether the field has parameters that are to be learned.
    """

    transport: Any
    within: Tensor
    precision: torch.dtype
    learns: bool


class Components:
    r"""K distributions over vectors, as a value: those that a mixture gives weights to.

    Points are ``(*B, S, D)``, whatever the shape of an event: it has D numbers. A kind of
    components supplies what stands here, and what it lacks is refused by name.

    Args:
        batch_shape: B, of many mixtures at once.
        event_shape: of an event, with D numbers.
    """

    any_batch = True
    """Whether the same functions serve components with more dimensions on the left."""

    num_components: int
    """K."""

    def __init__(self, batch_shape: Size, event_shape: Size) -> None:
        self.batch_shape, self.event_shape = torch.Size(batch_shape), torch.Size(event_shape)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name})"

    @property
    def name(self) -> str:
        """What they are, in words for an error."""
        return type(self).__name__

    @property
    def has_rsample(self) -> bool:
        """Whether a mixture's samples move with them."""
        return True

    @property
    def transports(self) -> Mapping[str, Any]:
        """The fields that move weight, by name; the first is the default."""
        raise NotImplementedError

    @property
    def best_transport(self) -> str:
        """Name of the default, of least variance and, of those that have it, the cheapest."""
        return next(iter(self.transports))

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The tensors that samples move with."""
        raise NotImplementedError

    @property
    def numbers(self) -> tuple[Tensor, ...]:
        """Those whose dtype the arithmetic is to have, at least."""
        return ()

    @property
    def field_parameters(self) -> tuple[Tensor, ...]:
        """The last of ``parameters``, if they belong to the field and not to the distribution."""
        return ()

    def moving(self) -> Components:
        """The components that samples drawn now move with."""
        return self

    def rebuilt(self, *parameters: Tensor) -> Components:
        """Components of other parameters."""
        raise NotImplementedError

    def expand(self, batch_shape: Size) -> Components:
        """Components of another batch shape."""
        raise NotImplementedError

    def to(self, dtype: torch.dtype) -> Components:
        """Components that do their arithmetic in at least this precision."""
        return self

    def check(self, exchange: bool) -> None:
        """Raise an error for components that cannot be mixed or, if asked, exchange weight."""

    def draw(self, index: Tensor) -> Tensor:
        """Samples of the components ``index (*B, S)``, without gradient, ``(*B, S, D)``."""
        raise NotImplementedError

    def inside(self, z: Tensor) -> Tensor:
        """Points moved off the ends of the support, where rounding put them."""
        return z

    def log_prob(self, z: Tensor, log_weights: Tensor) -> Tensor:
        """Log densities, ``(*B, S, K)``.

        Args:
            z: ``(*B, S, D)``.
            log_weights: ``(*B, K)``; where they are ``-inf`` digits may be lost.
        """
        raise NotImplementedError

    def pullback(
        self, here: Evaluated, grad: Tensor, weighting: Weighting | None
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        r"""Gradients of the parameters (Eq. 12) and the contributions of the weights.

        Args:
            here: the samples z, with their densities.
            grad: the gradient g at the samples, ``(*B, S, D)``.
            weighting: None if the weights get no gradient from the samples.

        Returns:
            Gradients, and :math:`A_j(z) = g \cdot w^j(z) / q(z)` for each sample,
            ``(*B, S, K)``, or None.
        """
        raise NotImplementedError

    def compiled(self, *samples: Tensor) -> CompiledNormals | None:
        """Compiled loops for these components, where they serve.

        Args:
            samples: and gradients at them that the loops are to work on, each ``(*B, S, D)``.
        """
        return None

    def distances(self) -> Tensor:
        """Bhattacharyya distances of all pairs, for the grouping, ``(*B, K, K)``."""
        raise NotImplementedError

    def spread(self) -> tuple[Tensor, Tensor]:
        """Places and sizes of the coordinates, each ``(*B, K, D)``: moments where they exist."""
        raise NotImplementedError

    @property
    def mean(self) -> Tensor:
        """``(*B, K, D)``."""
        raise NotImplementedError

    @property
    def variance(self) -> Tensor:
        """``(*B, K, D)``."""
        raise NotImplementedError

    def sample(self, count: int) -> Tensor:
        """Samples of all, without gradient, ``(*B, S, K, D)``."""
        raise NotImplementedError

    def rsample(self, count: int) -> Tensor:
        """Samples of all that move with the parameters, ``(*B, S, K, D)``."""
        raise NotImplementedError

    def log_prob_of_own(self, z: Tensor) -> Tensor:
        """Each component's log density at points of its own, ``(*B, S, K, D) -> (*B, S, K)``."""
        raise NotImplementedError

    # what some offer

    def normals(self, purpose: str) -> tuple[Tensor, Tensor]:
        """Means and scales of Normals: standard deviations or Cholesky factors.

        ``(*B, K, D)`` and ``(*B, K or 1, D)`` or ``(*B, K or 1, D, D)``.
        """
        raise self._lacks("Normal components", purpose)

    @property
    def covariance(self) -> Tensor:
        """``(*B, K or 1, D, D)``."""
        raise self._lacks("Normal components", "covariance_matrix")

    def tails(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Distribution functions of the coordinates and one minus them.

        ``(*B, S, D) -> (*B, S, K, D)``.
        """
        raise self._lacks("distribution functions of the coordinates", "cdf and icdf")

    def ends(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Of the interval that each coordinate lies in, ``(*B, K, D)``."""
        raise self._lacks("distribution functions of the coordinates", "icdf")

    def marginal(self, dims: list[int]) -> Components:
        """Of some coordinates."""
        raise self._lacks("Normal components", "marginal")

    def condition(self, value: Tensor) -> Components:
        """Of the others, given the first coordinates, ``(*X, N)``."""
        raise self._lacks("Normal components", "condition")

    def affine(self, matrix: Tensor, offset: Tensor | None) -> Components:
        """Of ``matrix @ z + offset``, where a vector for a matrix is its diagonal."""
        raise self._lacks("Normal components", "affine")

    def _lacks(self, what: str, purpose: str) -> NotImplementedError:
        return NotImplementedError(f"Expected {what} for {purpose}, but got {self.name}")
