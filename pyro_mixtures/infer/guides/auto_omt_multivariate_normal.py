"""The guide with full covariance whose gradients are those of optimal transport."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.infer.autoguide import AutoMultivariateNormal, init_to_median

from pyro_mixtures.distributions import OMTMultivariateNormal
from pyro_mixtures.infer.guides.checked_guide import CheckedGuide


class AutoOMTMultivariateNormal(AutoMultivariateNormal, CheckedGuide):
    """``AutoMultivariateNormal`` with the gradients of optimal transport, at O(D^3) a step.

    Arguments are those of Pyro's guide; the gradients are described at
    :class:`~pyro_mixtures.distributions.OMTMultivariateNormal`.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> pyro.clear_param_store(); pyro.set_rng_seed(0)
        >>> def model():
        ...     pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        >>> guide = AutoOMTMultivariateNormal(model)
        >>> loss = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step()
    """

    scale: Any  # a PyroParam is set, a tensor is got

    def __init__(
        self,
        model: Callable[..., Any],
        init_loc_fn: Callable[..., Any] = init_to_median,
        init_scale: float = 0.1,
    ) -> None:
        super().__init__(model, init_loc_fn=init_loc_fn, init_scale=init_scale)

    def get_posterior(self, *args: Any, **kwargs: Any) -> OMTMultivariateNormal:
        """The Normal over the packed unconstrained latent vector."""
        self._check_called()
        return OMTMultivariateNormal(self.loc, self.scale.unsqueeze(-1) * self.scale_tril)
