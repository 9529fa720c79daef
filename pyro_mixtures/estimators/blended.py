"""Transport and score function within groups, in shares that were learned."""

from __future__ import annotations

from pyro_mixtures.estimators.estimated_mixture import MixtureT, checked
from pyro_mixtures.samples.blending import Blending


def blended(mixture: MixtureT, blending: Blending) -> MixtureT:
    r"""Samples that move within groups as far as that pays; a score term for the rest.

    In a group C with the transport's share :math:`a_C`, the gradient of :math:`j \in C` is

    .. math::
        a_C \pi_j \Big( A_j - \sum_{k \in C} \frac{\pi_k}{\pi_C} A_k \Big)
        + (1 - a_C) \Big( r_j - \frac{\pi_j}{\pi_C} r_C \Big) f(z)
        + \pi_j \Big( \frac{r_C}{\pi_C} - 1 \Big) f(z)

    and :math:`a_C` is that of least variance by the moments of earlier draws. As the score
    function takes over where the transport has heavy tails, groups are wider than those of
    :func:`~pyro_mixtures.estimators.clustered`: chains of overlapping components.

    Unbiased, with one evaluation of the cost for each sample; of these the one to choose where
    nothing is known of the cost. What ``BaselinedTrace_ELBO`` makes of ``"clustered"`` mixtures;
    it has no name among the estimators, for it needs what was learned.

    Args:
        mixture: of any class.
        blending: what was learned of the shares. A new one begins with the transport alone.

    Returns:
        The mixture with ``weight_gradient="clustered"``. Backward passes through its samples and
        their ``score_parts`` tell ``blending`` of both gradients; ``blending.learn()`` takes them
        into account.

    Raises:
        ValueError: for what is no mixture of this package.
        NotImplementedError: for components without a transport.

    Reference:
        :class:`~pyro_mixtures.samples.blending.Blending`.

    Example:
        >>> import torch
        >>> from pyro_mixtures.distributions import MixtureOfDiagNormals
        >>> from functools import partial
        >>> from pyro_mixtures.estimators import expectation
        >>> _ = torch.manual_seed(0)
        >>> blending, logits = Blending(), torch.zeros(2, requires_grad=True)
        >>> q = MixtureOfDiagNormals(torch.tensor([[-0.8], [0.8]]), torch.ones(2, 1), logits)
        >>> learned = partial(blended, blending=blending)
        >>> for step in range(2):  # the second by what the first has found
        ...     blending.learn()
        ...     cost = lambda z: (2 * z[..., 0]).sin()
        ...     expectation(q, cost, estimator=learned, num_samples=500).backward()
        >>> share = blending.shares(torch.tensor([0, 0]))
        >>> bool((share > 0).all() and (share < 1).all())
        True
    """
    return checked(mixture).with_weight_gradient("clustered").blended(blending)
