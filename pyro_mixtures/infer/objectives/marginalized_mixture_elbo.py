"""The ELBO of a mixture guide, summed over the mixture's components."""

from __future__ import annotations

from pyro_mixtures.infer.objectives.component_draws import ComponentDraws
from pyro_mixtures.infer.objectives.evidence_bound import EvidenceBound


class MarginalizedMixture_ELBO(ComponentDraws, EvidenceBound):
    r"""``Trace_ELBO`` without the choice of a component: all of them are evaluated and weighted.

    .. math::
        L = \sum_k \pi_k E_{z_k \sim q_k}[\log p(x, z_k) - \log q(z_k)], \qquad
        q = \sum_j \pi_j q_j

    A particle is one draw of each component. The weights' gradient is that of the sum, with no
    score function and no transport, whatever the ``weight_gradient`` of the mixture: nothing of it
    comes from the choice of a component. It costs K evaluations of the model, all at once in a
    dimension to the left of all plates: the model and guide must be written as for
    ``vectorize_particles=True``.

    This is for components that are apart. Where they overlap, each of K particles of
    :class:`~pyro_mixtures.infer.BaselinedTrace_ELBO` teaches all components, whereas here a draw
    teaches its own: the variance can then be several times that of theirs, without
    ``sticking_the_landing`` above all.

    The guide has one site whose distribution is a mixture of this package, such as that of
    :class:`~pyro_mixtures.infer.AutoDiagonalNormalMixture`, also within ``to_event`` (of one
    mixture), ``mask`` or a transformed distribution; its components can be drawn with gradients
    (:func:`~pyro_mixtures.estimators.strata.component_samples`). Mixtures in plates are
    summed over one by one, so every site that depends on their samples must lie in the same
    plates. Other latent sites may have a score function: its cost gets the baseline of
    :class:`~pyro_mixtures.infer.BaselinedTrace_ELBO`. What improves a mixture's own gradients
    (a ``transport``, groups, a ``control_var``) has no part in it.

    The weights themselves may be the sample of a site before, in logarithms
    (:meth:`~pyro_mixtures.distributions.StickBreaking.log_weights`): then each particle draws
    them, and the bound and its gradient are those of
    :math:`E_{q(\pi)} \sum_k \pi_k E_{q_k}[\log p(x, \pi, z_k) - \log q(\pi) - \log q(z_k | \pi)]`.
    Their mean may stand in for them where they only weigh evaluations that do not depend on them,
    those of the data; in the densities of z it makes a number that may exceed the evidence.

    Args:
        num_particles: draws of each component.
        sticking_the_landing: leave out the part of the gradient that has mean zero,
            :math:`\nabla_\theta \log q_\theta(z)` at a fixed z
            (:func:`~pyro_mixtures.infer.detached`): the variance vanishes where the guide meets
            the posterior.
        baseline_decay: as for ``BaselinedTrace_ELBO``.
        kwargs: as for ``Trace_ELBO``.

    Raises:
        ValueError: for a guide without a mixture or without a latent site of the model, or a site
            that depends on the mixture's sample but lost the dimension of the components.
        NotImplementedError: for two mixtures, several of them in one event, sites that depend on
            the samples of mixtures in a plate from outside of it, and sites or components without
            ``rsample``.

    Reference:
        Roeder, Wu and Duvenaud, *Sticking the Landing: Simple, Lower-Variance Gradient Estimators
        for Variational Inference* (2017), https://arxiv.org/abs/1703.09194, section 4.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_mixtures.infer import AutoDiagonalNormalMixture
        >>> pyro.clear_param_store(); pyro.set_rng_seed(1)
        >>> def model():
        ...     x = pyro.sample("x", dist.Normal(0.0, 3.0))
        ...     pyro.sample("y", dist.Normal(x.abs(), 0.5), obs=torch.tensor(3.0))
        >>> guide = AutoDiagonalNormalMixture(model, num_components=2)
        >>> optimizer = pyro.optim.Adam({"lr": 0.02})
        >>> svi = SVI(model, guide, optimizer, MarginalizedMixture_ELBO(sticking_the_landing=True))
        >>> loss = [svi.step() for _ in range(600)]
        >>> low, high = guide.quantiles([0.2, 0.8])["x"]  # one in each mode
        >>> bool(low < -2), bool(high > 2)
        (True, True)
    """
