"""The guide with one location and several sizes."""

from __future__ import annotations

from typing import Any

import torch
from pyro.nn import PyroParam
from torch import Tensor

from pyro_mixtures.distributions import GaussianScaleMixture, MixtureDistribution
from pyro_mixtures.infer.guides.auto_mixture import AutoMixture


class AutoGaussianScaleMixture(AutoMixture):
    """K diagonal Normals of one location and one shape in K sizes, over all latent sites.

    For a posterior with one mode and heavy tails, which weights and sizes learn: an elliptical
    distribution with 2 D + 2 K parameters. It starts at the first of the starting points, with
    sizes apart between ``init_scale`` / e and e ``init_scale``.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> pyro.clear_param_store(); pyro.set_rng_seed(0)
        >>> def model():
        ...     pyro.sample("x", dist.StudentT(2.0, 3.0, 1.0))
        >>> guide = AutoGaussianScaleMixture(model, num_components=3)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO(num_particles=4))
        >>> loss = [svi.step() for _ in range(400)]
        >>> sizes = guide.component_scale
        >>> bool(sizes.max() > 2 * sizes.min())
        True

    Arguments, errors, objectives and what latent sites in plates get:
    :class:`~pyro_mixtures.infer.AutoMixture`. The parameters are
    ``locs (1, D)``, ``coord_scale (D,)``, ``component_scale (K,)`` and ``component_logits (K,)``.
    """

    component_scale: Any  # a PyroParam is set, a tensor is got
    coord_scale: Any
    distribution = GaussianScaleMixture

    def init_components(self, locs: Tensor) -> dict[str, Any]:
        count = self.num_components
        places = (2 * torch.arange(count).to(locs) + 1) / count - 1  # in (-1, 1), zero for one
        return {
            "locs": locs[:1].clone(),
            "coord_scale": PyroParam(
                torch.full_like(locs[0], self.init_scale), self.scale_constraint
            ),
            "component_scale": PyroParam(places.exp(), self.scale_constraint),
        }

    def make_mixture(self, **options: Any) -> MixtureDistribution:
        locs = self.locs.expand(self.num_components, -1)
        scales = (self.coord_scale, self.component_logits, self.component_scale)
        return self.distribution(*scales, locs, **options)

    def read_components(self, mixture: MixtureDistribution) -> dict[str, Tensor]:
        values = dict(super().read_components(mixture))
        locs = mixture.components.mean  # of zeros where none are given
        if not bool((locs == locs[:1]).all()):
            raise ValueError(
                f"Expected mixture to have one location for all components, but got locs {locs}"
            )
        return {**values, "locs": locs[:1]}
