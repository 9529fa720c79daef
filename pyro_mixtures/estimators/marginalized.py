"""Every component's cost, summed by the weights."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pyro_mixtures.distributions.mixture_distribution import MixtureDistribution
from pyro_mixtures.estimators.costs import checked_costs
from pyro_mixtures.estimators.estimated_mixture import checked
from pyro_mixtures.estimators.strata import weighty_samples
from pyro_mixtures.numerics.validation import check_at_least


def marginalized(
    mixture: MixtureDistribution, cost: Callable[[Tensor], Tensor], *, num_samples: int = 1
) -> Tensor:
    r"""One sample of each component, and the cost of all of them.

    .. math:: E_q[f] = \sum_k \pi_k E_\epsilon[f(z_k(\epsilon))], \qquad
              z_k = \mu_k + L_k \epsilon

    Unbiased, with K evaluations of the cost for each sample (as one batch). No transport and no
    score function: the weights' gradients are differences of costs. Far from each other or near,
    its variance is low; whether that is worth K evaluations depends on the cost.

    No distribution has this gradient, for a sample of one is evaluated once: this is a function
    beside :func:`~pyro_mixtures.estimators.expectation`. For samples in an objective of your own:
    :func:`~pyro_mixtures.estimators.strata.component_samples`.

    Args:
        mixture: of any class whose components have ``rsample``.
        cost: f, maps samples ``(N, *B, *E)`` to one cost each, ``(N, *B)``, where N is
            ``num_samples`` times K; the cost of one sample must not depend on the others.
        num_samples: of each component, at least 1.

    Returns:
        The mean, ``(*B,)``.

    Raises:
        ValueError: for ``num_samples < 1``, a cost of another shape, or what is no mixture of this
            package.
        NotImplementedError: for components without ``rsample``.

    Reference:
        Morningstar, Vikram, Ham, Gallagher and Dillon, *Automatic Differentiation Variational
        Inference with Mixtures* (2020), https://arxiv.org/abs/2003.01687.

    Example:
        >>> import torch
        >>> from pyro_mixtures.distributions import MixtureOfDiagNormals
        >>> locs = torch.tensor([[-1.0], [1.0]])
        >>> q = MixtureOfDiagNormals(locs, torch.ones(2, 1), torch.zeros(2))
        >>> marginalized(q, lambda z: z.squeeze(-1) ** 2, num_samples=10).shape
        torch.Size([])
    """
    check_at_least(1, num_samples=num_samples)
    batch_shape = checked(mixture).batch_shape
    z = weighty_samples(mixture, (num_samples,)).flatten(0, 1)  # (S K, *B, *E)
    costs = checked_costs(cost, z, batch_shape).unflatten(0, (num_samples, -1))
    weights = mixture.log_weights.exp().movedim(-1, 0)  # (K, *B)
    return (weights.expand(-1, *batch_shape) * costs).sum(1).mean(0)
