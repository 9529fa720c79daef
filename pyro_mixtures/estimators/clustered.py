"""Pathwise within groups of overlapping components, score function between the groups."""

from __future__ import annotations

from pyro_mixtures.estimators.estimated_mixture import MixtureT, checked


def clustered(mixture: MixtureT) -> MixtureT:
    r"""Samples that move within groups of overlapping components; a score term between groups.

    .. math::
        \partial_{\mathrm{logit}_j} E_q[f] = E_q\Big[
        \pi_j \Big( A_j - \sum_{k \in C} \frac{\pi_k}{\pi_C} A_k \Big)
        + \pi_j \Big( \frac{r_C}{\pi_C} - 1 \Big) f(z) \Big], \qquad j \in C

    with the weights' contributions :math:`A_j` of the transport within the group C and the
    groups' responsibilities :math:`r_C`. Component parameters are pathwise (Eq. 12).

    Unbiased, with one evaluation of the cost for each sample. Samples carry the first part, the
    second is the score function in ``score_parts``. The choice for components that may be near or
    far, and change that while they are trained.

    Args:
        mixture: of any class.

    Returns:
        The mixture with ``weight_gradient="clustered"``.

    Raises:
        ValueError: for what is no mixture of this package.
        NotImplementedError: for components without a transport, or without location and scale.

    Reference:
        :class:`~pyro_mixtures.distributions.MixtureDistribution`. Without the groups: Jankowiak
        and Karaletsos, *Pathwise Derivatives for Multivariate Distributions* (2019),
        https://arxiv.org/abs/1806.01856.

    Example:
        >>> import torch
        >>> from pyro_mixtures.distributions import MixtureOfDiagNormals
        >>> locs = torch.tensor([[0.0], [0.3], [9.0]])  # two groups
        >>> logits = torch.zeros(3, requires_grad=True)
        >>> q = clustered(MixtureOfDiagNormals(locs, torch.ones(3, 1), logits))
        >>> q.score_parts(q.rsample((5,))).score_function.shape
        torch.Size([5])
    """
    return checked(mixture).with_weight_gradient("clustered")
