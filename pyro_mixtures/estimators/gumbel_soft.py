"""A relaxed choice of the component."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyro_mixtures.distributions.gumbel_softmax_mixture import GumbelSoftmaxMixtureOfDiagNormals
from pyro_mixtures.distributions.mixture_distribution import MixtureDistribution
from pyro_mixtures.estimators.estimated_mixture import check_normals


def gumbel_soft(
    mixture: MixtureDistribution,
    *,
    temperature: Tensor | float = 0.5,
    density: str | None = None,
    num_nested: int = 100,
) -> GumbelSoftmaxMixtureOfDiagNormals:
    r"""Samples between the components, by a relaxed choice of one (GS-Soft).

    .. math::
        z = \sum_k y_k (\mu_k + \epsilon \sigma_k), \qquad
        y = \mathrm{softmax}((\mathrm{logits} + g) / \tau), \qquad g_k \sim \mathrm{Gumbel}(0, 1)

    Biased, with one evaluation of the cost for each sample: the distribution is another one. The
    bias falls with the temperature :math:`\tau`, and the variance of the weights' gradient grows.

    Args:
        mixture: of any class whose components are Normals with diagonal covariances.
        temperature: :math:`\tau > 0`, a number or ``(*B)``.
        density: what ``log_prob`` is, as for
            :class:`~pyro_mixtures.distributions.GumbelSoftmaxMixtureOfDiagNormals`.
        num_nested: as there.

    Returns:
        The relaxed mixture.

    Raises:
        ValueError: for what is no mixture of this package, or a ``temperature``, ``density`` or
            ``num_nested`` that the class refuses.
        NotImplementedError: for components with other covariances, or that are not Normal.

    Reference:
        Jankowiak and Karaletsos, *Pathwise Derivatives for Multivariate Distributions* (2019),
        https://arxiv.org/abs/1806.01856, Eq. 66.

    Example:
        >>> import torch
        >>> from pyro_mixtures.distributions import MixtureOfDiagNormals
        >>> q = MixtureOfDiagNormals(torch.zeros(2, 1), torch.ones(2, 1), torch.zeros(2))
        >>> gumbel_soft(q, temperature=0.1).temperature
        tensor(0.1000)
    """
    return relaxed(mixture, "gumbel_soft", temperature, density=density, num_nested=num_nested)


def relaxed(mixture: MixtureDistribution, name: str, temperature: Any, **options: Any):
    """The relaxed mixture of the parameters of one that the estimator of this name serves."""
    check_normals(mixture, name, diagonal=True)
    if len(mixture.event_shape) != 1:
        raise NotImplementedError(
            f"Expected a mixture of vectors for the estimator {name!r}, but got event shape"
            f" {tuple(mixture.event_shape)}; use 'implicit', 'pathwise' or 'clustered'"
        )
    core = mixture.core
    locs, scales = core.components.normals(name)
    relaxed = GumbelSoftmaxMixtureOfDiagNormals(
        locs, scales.expand_as(locs), core.component_logits, temperature, **options
    )
    return relaxed.expand(mixture.batch_shape)
