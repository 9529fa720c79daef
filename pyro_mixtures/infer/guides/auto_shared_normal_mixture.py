"""Guides with mixtures of Normals that share one covariance."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyro_mixtures.distributions import (
    MixtureOfDiagNormalsSharedCovariance,
    MixtureOfNormalsSharedCovariance,
)
from pyro_mixtures.infer.guides.auto_diagonal_normal_mixture import AutoDiagonalNormalMixture
from pyro_mixtures.infer.guides.auto_multivariate_normal_mixture import (
    AutoMultivariateNormalMixture,
)


class AutoSharedDiagonalNormalMixture(AutoDiagonalNormalMixture):
    """A mixture of K diagonal Normals that differ in their means alone, over all latent sites.

    For many components, which are then less noisy to fit than with scales of their own, and for
    modes that are copies of each other. For D latent coordinates it has (K + 1) D + K parameters.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> pyro.clear_param_store(); pyro.set_rng_seed(1)
        >>> def model():
        ...     x = pyro.sample("x", dist.Normal(0.0, 3.0))
        ...     pyro.sample("y", dist.Normal(x.abs(), 0.5), obs=torch.tensor(3.0))
        >>> guide = AutoSharedDiagonalNormalMixture(model, num_components=2)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
        >>> loss = [svi.step() for _ in range(600)]
        >>> guide.coord_scale.shape, bool((guide.locs.abs() > 2).all())  # one in each mode
        (torch.Size([1]), True)

    Arguments, errors, objectives and what latent sites in plates get:
    :class:`~pyro_mixtures.infer.AutoMixture`. The parameters are
    ``locs (K, D)``, ``coord_scale (D,)`` and ``component_logits (K,)``.
    """

    distribution = MixtureOfDiagNormalsSharedCovariance

    def init_components(self, locs: Tensor) -> dict[str, Any]:
        return {**super().init_components(locs[0]), "locs": locs}


class AutoSharedMultivariateNormalMixture(AutoMultivariateNormalMixture):
    """A mixture of K Normals with one full covariance over all latent sites, unconstrained.

    As :class:`AutoSharedDiagonalNormalMixture`, with correlated coordinates. For D latent
    coordinates it has (K + 1) D + D (D + 1) / 2 + K parameters.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> pyro.clear_param_store(); pyro.set_rng_seed(1)
        >>> def model():
        ...     x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     pyro.sample("y", dist.Normal(x.sum().abs(), 0.2), obs=torch.tensor(2.0))
        >>> guide = AutoSharedMultivariateNormalMixture(model, num_components=2)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
        >>> loss = [svi.step() for _ in range(600)]
        >>> bool(guide.get_posterior().scale_tril[1, 0] < 0)  # x_0 + x_1 is known
        True

    Arguments, errors, objectives and what latent sites in plates get:
    :class:`~pyro_mixtures.infer.AutoMixture`. The parameters are
    ``locs (K, D)``, ``coord_scale (D,)``, ``scale_tril (D, D)`` with a unit diagonal, whose rows
    ``coord_scale`` multiplies, and ``component_logits (K,)``.
    """

    distribution = MixtureOfNormalsSharedCovariance

    def init_components(self, locs: Tensor) -> dict[str, Any]:
        return {**super().init_components(locs[0]), "locs": locs}
