"""A prior of two levels: a latent, and another given that one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from pyro_mixtures.estimators.costs import sampled_expectation
from pyro_mixtures.nn.priors.prior_kl import check_event_shapes, exact_kl, prior_kl


class Hierarchical(TorchDistribution):
    r"""The joint distribution :math:`p(z_1, z_2) = p(z_2) \, p(z_1 \mid z_2)` of a vector.

    First come the coordinates of :math:`z_1`, then those of :math:`z_2`. Samples carry no
    gradient; the density does.

    Args:
        top: :math:`p(z_2)`, of event shape ``(D2,)`` and without batch shape.
        conditional: maps :math:`z_2`, ``(*X, D2)``, to :math:`p(z_1 \mid z_2)` of batch shape X
            and event shape ``(D1,)``.
        event_size: D1 + D2.
        validate_args: check the argument of ``log_prob``.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector
    has_rsample = False

    def __init__(
        self,
        top: Distribution,
        conditional: Callable[[Tensor], Distribution],
        event_size: int,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.top, self.conditional = top, conditional
        super().__init__(torch.Size(), torch.Size([event_size]), validate_args=validate_args)

    def split(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The two levels of vectors ``(*X, D1 + D2)``."""
        size = self.top.event_shape[0]
        return value[..., :-size], value[..., -size:]

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            z2 = self.top.sample(torch.Size(sample_shape))
            return torch.cat([self.conditional(z2).sample(), z2], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        z1, z2 = self.split(value)
        return self.top.log_prob(z2) + self.conditional(z2).log_prob(z1)


class HierarchicalPrior(nn.Module):
    r"""A prior of two levels, :math:`p(z_1, z_2) = p(z_2) \, p(z_1 \mid z_2)`.

    Calling it makes the joint distribution of the vector :math:`(z_1, z_2)`, for one site and one
    posterior of both, a mixture say. The levels can also be sites of their own, with
    ``prior.top()`` and ``prior.conditional(z2)``. Each may be a mixture, and ``top`` may be a
    hierarchy or a :class:`VampPrior` itself.

    Args:
        top: a module whose call returns :math:`p(z_2)`, of event shape ``(D2,)`` and without batch
            shape: a :class:`MixturePrior`, say.
        conditional: a module that maps :math:`z_2` to :math:`p(z_1 \mid z_2)`:
            :class:`~pyro_mixtures.nn.ConditionalMixture`, say.

    Raises:
        ValueError: if ``top`` returns another shape, or ``conditional`` takes another size than
            that of ``top``.

    References:
        Tomczak and Welling, *VAE with a VampPrior* (2018), https://arxiv.org/abs/1705.07120,
        section 4; Stratos, *Useful facts about latent-variable generative models*, section 3.

    Example:
        >>> import pyro
        >>> from pyro_mixtures.nn import ConditionalMixture, MixturePrior
        >>> prior = HierarchicalPrior(MixturePrior(2, 5), ConditionalMixture(2, 3, 4, hidden=(8,)))
        >>> prior().sample((10,)).shape
        torch.Size([10, 5])
        >>> def model(n):
        ...     pyro.module("prior", prior)
        ...     with pyro.plate("data", n):
        ...         z2 = pyro.sample("z2", prior.top())
        ...         return pyro.sample("z1", prior.conditional(z2))
        >>> model(10).shape
        torch.Size([10, 3])
    """

    def __init__(
        self, top: Callable[[], Distribution], conditional: Callable[[Tensor], Distribution]
    ) -> None:
        super().__init__()
        self.top, self.conditional = top, conditional
        with torch.no_grad():
            p = top()
            if p.batch_shape or len(p.event_shape) != 1:
                raise ValueError(
                    "Expected top to return a distribution of event shape (D2,) without batch"
                    f" shape, but got {tuple(p.event_shape)} and {tuple(p.batch_shape)}"
                )
            z2 = p.sample(torch.Size([2]))
            try:
                lower = conditional(z2)
            except (RuntimeError, ValueError) as error:
                raise ValueError(
                    f"Expected conditional to take a z2 of the size of top, {p.event_shape[0]},"
                    f" but it says: {error}"
                ) from error
            if lower.batch_shape != (2,) or len(lower.event_shape) != 1:
                raise ValueError(
                    f"Expected conditional to return for z2 of shape {tuple(z2.shape)} a"
                    " distribution of event shape (D1,) and batch shape (2,), but got"
                    f" {tuple(lower.event_shape)} and {tuple(lower.batch_shape)}"
                )
        self.event_size = p.event_shape[0] + lower.event_shape[0]

    def forward(self) -> Hierarchical:
        """The joint distribution, without batch shape."""
        return Hierarchical(self.top(), self.conditional, self.event_size)

    def kl_divergence(
        self,
        top_posterior: Distribution,
        conditional_posterior: Callable[[Tensor], Distribution],
        *,
        num_samples: int = 1,
    ) -> Tensor:
        r"""The divergence of a posterior that has the two levels as well, level by level.

        .. math::
            KL(q(z_2) \| p(z_2))
            + E_{q(z_2)} \big[ KL(q(z_1 \mid z_2) \| p(z_1 \mid z_2)) \big]

        Each divergence is exact where there is a closed form, as for
        :func:`~pyro_mixtures.nn.prior_kl`, and else by the samples that the expectation is over:
        no more noise than with samples of the joint, and less where one of them is exact.

        Args:
            top_posterior: :math:`q(z_2)`, of batch shape B.
            conditional_posterior: maps :math:`z_2`, ``(num_samples, *B, D2)``, to
                :math:`q(z_1 \mid z_2)`, whose batch shape broadcasts with ``(num_samples, *B)``.
            num_samples: of :math:`z_2`, with at most one :math:`z_1` each.

        Returns:
            ``(*B,)``.

        Raises:
            ValueError: for event shapes that are not those of the levels.

        Example:
            >>> from pyro_mixtures.nn import ConditionalMixture, MixturePrior
            >>> from pyro.distributions import Normal
            >>> prior = HierarchicalPrior(MixturePrior(2, 1), ConditionalMixture(2, 3, 1))
            >>> q2 = Normal(torch.zeros(10, 2), 1.0).to_event(1)
            >>> q1 = Normal(torch.zeros(10, 3), 1.0).to_event(1)
            >>> prior.kl_divergence(q2, lambda z2: q1).shape
            torch.Size([10])
        """
        top = self.top()
        check_event_shapes(top_posterior, top)
        exact = exact_kl(top_posterior, top)

        def cost(z2: Tensor) -> Tensor:
            lower = prior_kl(conditional_posterior(z2), self.conditional(z2))
            if exact is not None:
                return lower
            return lower + top_posterior.log_prob(z2) - top.log_prob(z2)

        sampled = sampled_expectation(top_posterior, cost, num_samples)
        return sampled if exact is None else sampled + exact
