"""A relaxed choice of the component in the backward pass alone."""

from __future__ import annotations

from torch import Tensor

from pyro_mixtures.distributions.gumbel_softmax_mixture import GumbelSoftmaxMixtureOfDiagNormals
from pyro_mixtures.distributions.mixture_distribution import MixtureDistribution
from pyro_mixtures.estimators.gumbel_soft import relaxed


def gumbel_hard(
    mixture: MixtureDistribution, *, temperature: Tensor | float = 0.5
) -> GumbelSoftmaxMixtureOfDiagNormals:
    r"""Samples of the mixture with the gradient of a relaxed choice (GS-Hard, straight-through).

    .. math::
        z = \mu_k + \epsilon \sigma_k, \quad k = \arg\max_j (\mathrm{logits}_j + g_j), \qquad
        \frac{\partial z}{\partial \mathrm{logits}} = \sum_j (\mu_j + \epsilon \sigma_j)
        \frac{\partial y_j}{\partial \mathrm{logits}}

    with the y of :func:`~pyro_mixtures.estimators.gumbel_soft`. Biased for the weights, with one
    evaluation of the cost for each sample: the cost's slope at one component stands for its
    differences between them, at any temperature. The components' parameters have the unbiased
    gradients of the one that was drawn.

    Args:
        mixture: of any class whose components are Normals with diagonal covariances.
        temperature: :math:`\tau > 0`, a number or ``(*B)``.

    Returns:
        The relaxed mixture, whose density is that of the mixture itself.

    Raises:
        ValueError: for what is no mixture of this package, or a ``temperature`` that is not
            positive.
        NotImplementedError: for components with other covariances, or that are not Normal.

    Reference:
        Jankowiak and Karaletsos, *Pathwise Derivatives for Multivariate Distributions* (2019),
        https://arxiv.org/abs/1806.01856, Section E.5.1.

    Example:
        >>> import torch
        >>> from pyro_mixtures.distributions import MixtureOfDiagNormals
        >>> q = MixtureOfDiagNormals(torch.zeros(2, 1), torch.ones(2, 1), torch.zeros(2))
        >>> gumbel_hard(q).hard
        True
    """
    return relaxed(mixture, "gumbel_hard", temperature, hard=True)
