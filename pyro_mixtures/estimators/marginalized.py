"""Every component's cost, summed by the weights."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pyro_mixtures.distributions.mixture_distribution import MixtureDistribution
from pyro_mixtures.estimators.costs import checked_costs
from pyro_mixtures.estimators.estimated_mixture import checked
from pyro_mixtures.estimators.strata import weighty_samples


class MarginalizedMixture:
    """Draws of all components of a mixture, which share the cost by their weights.

    No distribution, for the cost is evaluated K times:
    :func:`~pyro_mixtures.estimators.expectation` asks it for the expectation itself.
    """

    def __init__(self, mixture: MixtureDistribution) -> None:
        checked(mixture)
        self.mixture = mixture

    def expectation(self, cost: Callable[[Tensor], Tensor], num_samples: int) -> Tensor:
        """The mean over ``num_samples`` draws of each component, ``(*B,)``."""
        batch_shape = self.mixture.batch_shape
        z = weighty_samples(self.mixture, (num_samples,)).flatten(0, 1)  # (S K, *B, *E)
        costs = checked_costs(cost, z, batch_shape).unflatten(0, (num_samples, -1))
        weights = self.mixture.log_weights.exp().movedim(-1, 0)  # (K, *B)
        return (weights.expand(-1, *batch_shape) * costs).sum(1).mean(0)


def marginalized(mixture: MixtureDistribution) -> MarginalizedMixture:
    r"""One sample of each component, and the cost of all of them.

    .. math:: E_q[f] = \sum_k \pi_k E_\epsilon[f(z_k(\epsilon))], \qquad
              z_k = \mu_k + L_k \epsilon

    Unbiased, with K evaluations of the cost for each sample (as one batch). No transport and no
    score function: the weights' gradients are differences of costs. Far from each other or near,
    its variance is low; whether that is worth K evaluations depends on the cost.

    Args:
        mixture: of any class whose components have ``rsample``.

    Returns:
        What :func:`~pyro_mixtures.estimators.expectation` takes; not a distribution. For samples
        in an objective of your own:
        :func:`~pyro_mixtures.estimators.strata.component_samples`.

    Raises:
        ValueError: for what is no mixture of this package.

    Reference:
        Morningstar, Vikram, Ham, Gallagher and Dillon, *Automatic Differentiation Variational
        Inference with Mixtures* (2020), https://arxiv.org/abs/2003.01687.

    Example:
        >>> import torch
        >>> from pyro_mixtures.distributions import MixtureOfDiagNormals
        >>> locs = torch.tensor([[-1.0], [1.0]])
        >>> q = MixtureOfDiagNormals(locs, torch.ones(2, 1), torch.zeros(2))
        >>> marginalized(q).expectation(lambda z: z.squeeze(-1) ** 2, num_samples=10).shape
        torch.Size([])
    """
    return MarginalizedMixture(mixture)
