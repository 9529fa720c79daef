"""The stratified importance weighted bound of a mixture guide."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_mixtures.infer.objectives.component_draws import ComponentDraws
from pyro_mixtures.infer.objectives.importance_bound import ImportanceBound
from pyro_mixtures.infer.objectives.terms import Term


class SIWAE_ELBO(ComponentDraws, ImportanceBound):
    r"""The importance weighted bound with T draws of each component of a mixture guide.

    .. math::
        L = E \log \frac{1}{T} \sum_{t=1}^T \sum_k \pi_k \frac{p(x, z_{kt})}{q(z_{kt})},
        \qquad z_{kt} \sim q_k, \quad q = \sum_j \pi_j q_j

    Lies between :class:`~pyro_mixtures.infer.MarginalizedMixture_ELBO` and :math:`\log p(x)`,
    which it reaches as T grows. Unlike the ELBO it does not punish components for each posterior
    mode that they leave to others. Normal components share their random numbers, on which the
    bound's value depends, too (:func:`~pyro_mixtures.estimators.strata.component_samples`).

    If the mixture's site is in plates, the logarithm is taken for each of their elements, with
    the sum over all that lies in the plates inside of it. The sites there share one scale
    (``poutine.scale``, subsampling), which is outside of it; masks are inside.
    The guides, models and mixtures are those of ``MarginalizedMixture_ELBO``; latent sites
    outside of the mixtures' plates need T = 1.

    Args:
        num_particles: T, the number of draws of each component.
        sticking_the_landing: leave out the gradient of :math:`\log q_\theta(z)` at a fixed z.
            This is *biased* here, unlike in the ELBO: within the logarithm that gradient does not
            have mean zero. For many draws what is added is the gradient of
            :math:`-KL(p(z \mid x) \,\|\, q)`, which is no smaller than the bound's own but
            vanishes, too, where the guide meets the posterior.
        vectorize_particles: evaluate all draws at once.
        kwargs: as for ``MarginalizedMixture_ELBO``.

    Raises:
        ValueError: for sites of different scales within a logarithm (with other data in each step,
            or a weight of the divergence alone, it is no bound), and as for
            ``MarginalizedMixture_ELBO``.
        NotImplementedError: for latent sites outside of the mixtures' plates if T > 1 or if they
            have a score function, and as for ``MarginalizedMixture_ELBO``.

    References:
        Morningstar, Vikram, Ham, Gallagher and Dillon, *Automatic Differentiation Variational
        Inference with Mixtures* (2020), https://arxiv.org/abs/2003.01687. On the bias: Tucker,
        Lawson, Gu and Maddison, *Doubly Reparameterized Gradient Estimators for Monte Carlo
        Objectives* (2018), https://arxiv.org/abs/1810.04152.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_mixtures.infer import AutoDiagonalNormalMixture
        >>> pyro.clear_param_store(); pyro.set_rng_seed(1)
        >>> def model():
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(1.0))
        >>> guide = AutoDiagonalNormalMixture(model, num_components=2, init_scale=0.5)
        >>> loss = SIWAE_ELBO(num_particles=10_000).loss(model, guide)
        >>> evidence = dist.Normal(0.0, 2**0.5).log_prob(torch.tensor(1.0))
        >>> bool((loss + evidence).abs() < 0.05)
        True
    """

    def __init__(
        self,
        num_particles: int = 1,
        *,
        sticking_the_landing: bool = False,
        vectorize_particles: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_particles,
            sticking_the_landing=sticking_the_landing,
            vectorize_particles=vectorize_particles,
            **kwargs,
        )

    def _units(self, terms: Any) -> dict[str, int | None]:
        return terms.site.plates

    def _belongs(self, terms: Any, term: Term) -> bool:
        # what does not differ between draws may have a scale of its own
        differs = self.num_particles > 1 or terms.site.has_components(term.log_prob)
        return differs or bool(terms.scores)

    def _draws(self, terms: Any, kept: set[int | None]) -> set[int | None]:
        return kept | {terms.site.dim}

    def _over_draws(self, terms: Any, log_weights: Tensor) -> Tensor:
        weighted = terms.site.log_weights + log_weights  # (K, [T], *units)
        # a particle without any weight would make the gradient of all others NaN
        none = (weighted == -torch.inf).all(terms.site.dim, keepdim=True)
        each = weighted.masked_fill(none, 0).logsumexp(terms.site.dim, keepdim=True)
        return each.masked_fill(none, -torch.inf)
