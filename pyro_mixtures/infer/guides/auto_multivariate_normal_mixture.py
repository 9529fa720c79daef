"""The guide with a mixture of Normals that have full covariances."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import constraints
from pyro.nn import PyroParam
from torch import Tensor

from pyro_mixtures.distributions import MixtureDistribution, MixtureOfNormals
from pyro_mixtures.infer.guides.auto_mixture import AutoMixture


class AutoMultivariateNormalMixture(AutoMixture):
    """A mixture of K Normals with full covariances over all latent sites, unconstrained.

    Replaces ``AutoMultivariateNormal`` in a line: for posteriors with several modes, each of them
    correlated. For D latent coordinates it has K (D + 1) (D + 2) / 2 parameters.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> pyro.clear_param_store(); pyro.set_rng_seed(1)
        >>> def model():
        ...     x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     pyro.sample("y", dist.Normal(x.sum().abs(), 0.2), obs=torch.tensor(2.0))
        >>> guide = AutoMultivariateNormalMixture(model, num_components=2)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
        >>> loss = [svi.step() for _ in range(1000)]
        >>> bool((guide.get_posterior().scale_tril[:, 1, 0] < 0).all())  # x_0 + x_1 is known
        True

    Arguments, errors, objectives and what latent sites in plates get:
    :class:`~pyro_mixtures.infer.AutoMixture`. The parameters are
    ``locs (K, D)``, ``coord_scale (K, D)``, ``scale_tril (K, D, D)`` with a unit diagonal, whose
    rows ``coord_scale`` multiplies, and ``component_logits (K,)``.
    """

    coord_scale: Any  # a PyroParam is set, a tensor is got
    scale_tril: Any
    distribution: ClassVar[Any] = MixtureOfNormals
    scale_tril_constraint = constraints.unit_lower_cholesky

    def init_components(self, locs: Tensor) -> dict[str, Any]:
        scale = torch.full_like(locs, self.init_scale)
        identity = torch.ones_like(locs).diag_embed()
        return {
            "locs": locs,
            "coord_scale": PyroParam(scale, self.scale_constraint),
            "scale_tril": PyroParam(identity, self.scale_tril_constraint),
        }

    def make_mixture(self, **options: Any) -> MixtureDistribution:
        scale_tril = self.coord_scale.unsqueeze(-1) * self.scale_tril
        return self.distribution(self.locs, scale_tril, self.component_logits, **options)

    def read_components(self, mixture: MixtureDistribution) -> dict[str, Tensor]:
        values = dict(super().read_components(mixture))
        scale_tril = values["scale_tril"].tril()
        coord_scale = scale_tril.diagonal(dim1=-2, dim2=-1)
        unit = scale_tril / coord_scale.unsqueeze(-1)
        return {**values, "coord_scale": coord_scale, "scale_tril": unit}
