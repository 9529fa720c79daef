"""The guide with a mixture of diagonal Normals whose hub learns."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyro_mixtures.distributions import AVFMixtureOfDiagNormals
from pyro_mixtures.infer.guides.auto_diagonal_normal_mixture import AutoDiagonalNormalMixture


class AutoAVFDiagonalNormalMixture(AutoDiagonalNormalMixture):
    """:class:`AutoDiagonalNormalMixture` whose weights' gradient learns to have less variance.

    The same guide with one more parameter, ``control_var (2, K, D)``, which follows the gradient
    of that variance: :class:`~pyro_mixtures.distributions.AVFMixtureOfDiagNormals` tells when it
    helps. It starts with zeros, the plain gradient, and wants a learning rate of its own
    (:func:`avf_optim_args`): 0.01, or 0.003 with one particle.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro_mixtures.infer import avf_optim_args
        >>> pyro.clear_param_store(); pyro.set_rng_seed(0)
        >>> def model():
        ...     x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        ...     pyro.sample("y", dist.Normal(x.prod(-1), 0.5), obs=torch.tensor(0.5))
        >>> guide = AutoAVFDiagonalNormalMixture(model, num_components=3)
        >>> optimizer = pyro.optim.Adam(avf_optim_args({"lr": 0.02}, {"lr": 0.003}))
        >>> svi = SVI(model, guide, optimizer, Trace_ELBO())
        >>> loss = [svi.step() for _ in range(100)]
        >>> guide.control_var.shape
        torch.Size([2, 3, 3])

    Arguments, errors, objectives and what latent sites in plates get:
    :class:`~pyro_mixtures.infer.AutoMixture`. The parameters are
    those of :class:`AutoDiagonalNormalMixture` and ``control_var``.
    """

    distribution = AVFMixtureOfDiagNormals

    def init_components(self, locs: Tensor) -> dict[str, Any]:
        return {**super().init_components(locs), "control_var": locs.new_zeros(2, *locs.shape)}
