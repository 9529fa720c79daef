"""Score function for the weights, pathwise for the components."""

from __future__ import annotations

from pyro_mixtures.estimators.estimated_mixture import MixtureT, checked


def hybrid(mixture: MixtureT) -> MixtureT:
    r"""Samples that move with the components; a score term for the weights.

    .. math::
        \partial_{\mathrm{logit}_j} E_q[f] = E_q[(r_j(z) - \pi_j) f(z)], \qquad
        \partial_{\theta_j} E_q[f] = E_q[r_j(z) \nabla f(z) \cdot v_j^{\theta_j}(z)]

    with the responsibilities :math:`r_j = \pi_j q_j / q` (Eq. 12).

    Unbiased, with one evaluation of the cost for each sample, and no transport. The variance of
    the weights' part does not depend on how far components are from each other; it grows with
    the spread of the cost, from which a baseline takes its mean. What
    :func:`~pyro_mixtures.estimators.clustered` amounts to when no components overlap.

    Args:
        mixture: of any class.

    Returns:
        The mixture with ``weight_gradient="hybrid"``.

    Raises:
        ValueError: for what is no mixture of this package.

    Reference:
        Jankowiak and Karaletsos, *Pathwise Derivatives for Multivariate Distributions* (2019),
        https://arxiv.org/abs/1806.01856, Section 6.2.2.

    Example:
        >>> import torch
        >>> from pyro_mixtures.distributions import MixtureOfDiagNormals
        >>> q = MixtureOfDiagNormals(torch.zeros(2, 1), torch.ones(2, 1), torch.zeros(2))
        >>> hybrid(q).weight_gradient
        'hybrid'
    """
    return checked(mixture).with_weight_gradient("hybrid")
