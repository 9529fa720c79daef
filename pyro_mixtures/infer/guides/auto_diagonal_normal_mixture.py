"""The guide with a mixture of diagonal Normals."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.nn import PyroParam
from torch import Tensor

from pyro_mixtures.distributions import MixtureOfDiagNormals
from pyro_mixtures.infer.guides.auto_mixture import AutoMixture


class AutoDiagonalNormalMixture(AutoMixture):
    """A mixture of K diagonal Normals over all latent sites, in the unconstrained space.

    Replaces ``AutoDiagonalNormal`` in a line:

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> pyro.clear_param_store(); pyro.set_rng_seed(1)
        >>> def model():
        ...     x = pyro.sample("x", dist.Normal(0.0, 3.0))
        ...     pyro.sample("y", dist.Normal(x.abs(), 0.5), obs=torch.tensor(3.0))
        >>> guide = AutoDiagonalNormalMixture(model, num_components=2)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
        >>> loss = [svi.step() for _ in range(600)]
        >>> low, high = guide.quantiles([0.2, 0.8])["x"]  # one in each mode
        >>> bool(low < -2), bool(high > 2)
        (True, True)

    Arguments, errors, objectives and what latent sites in plates get:
    :class:`~pyro_mixtures.infer.AutoMixture`. The parameters are
    ``locs (K, D)``, ``coord_scale (K, D)`` and ``component_logits (K,)``.
    """

    coord_scale: Any  # a PyroParam is set, a tensor is got
    distribution: ClassVar[Any] = MixtureOfDiagNormals

    def init_components(self, locs: Tensor) -> dict[str, Any]:
        scale = torch.full_like(locs, self.init_scale)
        return {"locs": locs, "coord_scale": PyroParam(scale, self.scale_constraint)}
