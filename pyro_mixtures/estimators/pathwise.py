"""The pathwise estimator, by the mixture's own transport."""

from __future__ import annotations

from pyro_mixtures.estimators.estimated_mixture import MixtureT, checked


def pathwise(mixture: MixtureT) -> MixtureT:
    r"""Samples that move with every parameter, the weights included.

    .. math::
        \nabla_\theta E_q[f] = E_q[\nabla f(z) \cdot v^\theta(z)], \qquad
        \nabla \cdot (q v^\theta) = -\partial_\theta q

    Unbiased, with one evaluation of the cost for each sample, whose gradient it needs. The
    velocity of the weights is the mixture's ``transport``. The best choice where components
    overlap; where they are d > 4 standard deviations apart its variance grows like
    :math:`\exp(d^2 / 8)`: use :func:`~pyro_mixtures.estimators.clustered`.

    Args:
        mixture: of any class.

    Returns:
        The mixture with ``weight_gradient="pathwise"``.

    Raises:
        ValueError: for what is no mixture of this package.
        NotImplementedError: for components without a transport.

    Reference:
        Jankowiak and Karaletsos, *Pathwise Derivatives for Multivariate Distributions* (2019),
        https://arxiv.org/abs/1806.01856.

    Example:
        >>> import torch
        >>> from pyro_mixtures.distributions import MixtureOfDiagNormals
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> q = MixtureOfDiagNormals(torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1), logits)
        >>> pathwise(q).rsample((1000,)).sum().backward()
        >>> bool(logits.grad[0] < 0 < logits.grad[1])
        True
    """
    return checked(mixture).with_weight_gradient("pathwise")
