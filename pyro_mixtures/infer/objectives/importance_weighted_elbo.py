"""The importance weighted bound of any guide."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Independent

from pyro_mixtures.infer.objectives.importance_bound import ImportanceBound
from pyro_mixtures.infer.objectives.objective import Loss
from pyro_mixtures.infer.objectives.sample_draws import SampleDraws
from pyro_mixtures.infer.objectives.terms import Leaf, Terms, is_drawn, plates, sample_sites


class ImportanceWeighted_ELBO(SampleDraws, ImportanceBound):
    r"""The importance weighted bound with T draws of the guide, unbiased for every site.

    .. math::
        L_T = E \log \frac1T \sum_{t=1}^T w_t, \qquad w_t = \frac{p(x, z_t)}{q(z_t)}, \quad
        z_t \sim q

    It is the ELBO for T = 1 and rises to :math:`\log p(x)` as T grows. With the normalized weights
    :math:`\tilde w_t` and the score terms :math:`S_t` of sites that have one (mixtures among
    them, discrete ones) the gradient is that of

    .. math::
        \sum_t \tilde w_t \log w_t + \sum_t (L_T - L_{-t}) S_t

    in which :math:`L_{-t}` has the geometric mean of the other weights in place of :math:`w_t`.
    (For T = 1 it is a decaying average over earlier steps, that of
    :class:`~pyro_mixtures.infer.BaselinedTrace_ELBO`.) Mixtures are blended as there.

    ``doubly_reparameterized=True`` replaces :math:`\tilde w_t \nabla_\phi \log w_t`, whose noise
    drowns its mean as T grows, by

    .. math:: \sum_t \tilde w_t^2 \, \frac{\partial \log w_t}{\partial z_t} \nabla_\phi z_t

    for the guide's parameters :math:`\phi`: unbiased, and without variance where the guide meets
    the posterior. (Those of ``Delta``, ``pyro.factor`` and what the guide observes keep
    :math:`\tilde w_t`, for nothing is drawn there.) The samples of the guide may depend on each
    other. Those of mixtures carry the whole gradient of their weights here, as with
    ``weight_gradient="pathwise"``, which is noisy where components are far from each other (an
    ``UnusedScoreWarning`` says so).

    If all latent sites of the guide are in a plate, the logarithm is taken for each of its
    elements (each datum of an autoencoder), with the sum over all that lies inside. The sites
    there share one scale (``poutine.scale``, subsampling), which is outside of it; masks are
    inside. What lies outside must not depend on samples if T > 1. A plate that is looped over
    (``for i in pyro.plate(...)``) has one logarithm.

    Args:
        num_particles: T, the number of draws.
        baseline_decay: weight of the past in the decaying average, in [0, 1).
        blending: blend, or leave the groups to the transport alone.
        blending_decay: weight of the past in the moments, in [0, 1).
        doubly_reparameterized: as above.
        kwargs: as for ``Trace_ELBO``; ``vectorize_particles=True`` runs all draws at once.

    Raises:
        ValueError: for a decay outside [0, 1), for a guide that lacks a latent site of the model,
            and for sites of different scales within a logarithm.
        NotImplementedError: with ``doubly_reparameterized``, for sites without ``rsample``, and
            for masks in the guide over samples on which others depend; for T > 1, for sites
            outside of the plates of the logarithms that depend on samples.

    References:
        Burda, Grosse and Salakhutdinov, *Importance Weighted Autoencoders* (2016),
        https://arxiv.org/abs/1509.00519; Mnih and Rezende, *Variational Inference for Monte Carlo
        Objectives* (2016), https://arxiv.org/abs/1602.06725, Eq. 8 to 10; Tucker, Lawson, Gu and
        Maddison, *Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives* (2018),
        https://arxiv.org/abs/1810.04152, Eq. 8.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_mixtures.infer import AutoDiagonalNormalMixture
        >>> pyro.clear_param_store(); pyro.set_rng_seed(1)
        >>> def model():
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(1.0))
        >>> guide = AutoDiagonalNormalMixture(model, num_components=2, init_scale=0.5)
        >>> elbo = ImportanceWeighted_ELBO(num_particles=20_000, vectorize_particles=True)
        >>> evidence = dist.Normal(0.0, 2**0.5).log_prob(torch.tensor(1.0))
        >>> bool((elbo.loss(model, guide) + evidence).abs() < 0.05)
        True
    """

    def __init__(
        self,
        num_particles: int = 1,
        *,
        baseline_decay: float = 0.9,
        blending: bool = True,
        blending_decay: float = 0.995,
        doubly_reparameterized: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_particles,
            baseline_decay=baseline_decay,
            blending=blending,
            blending_decay=blending_decay,
            **kwargs,
        )
        self.doubly_reparameterized = doubly_reparameterized

    def _units(self, terms: Terms) -> dict[str, int | None]:
        latent = [
            plates(site)
            for site in sample_sites(terms.guide_trace).values()
            if not site["is_observed"]
        ]
        common = set.intersection(*map(set, latent)) if latent else set()
        first = latent[0].items() if latent else ()
        # a loop over a plate has one logarithm: its samples are sites of their own
        return {name: dim for name, dim in first if name in common and dim is not None}

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Terms:
        if not (self.doubly_reparameterized and torch.is_grad_enabled()):
            return super()._get_trace(model, guide, args, kwargs)
        messenger = _Leaves()
        terms = super()._get_trace(model, messenger(guide), args, kwargs)
        if terms.scores:
            raise NotImplementedError(
                f"Expected a guide whose samples carry gradients, but got sites without rsample at"
                f" {sorted(terms.scores)}: use doubly_reparameterized=False"
            )
        return dataclasses.replace(terms, leaves=tuple(messenger.leaves))

    def _losses(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Iterator[Loss]:
        if not self.doubly_reparameterized:
            yield from super()._losses(model, guide, args, kwargs)
            return
        terms = list(self._get_traces(model, guide, args, kwargs))
        weights = self._log_weights(terms)
        shares = weights.values.detach().softmax(0)  # (T, *units)
        held = torch.cat(
            [
                each.particles_first(part.held).expand_as(part.log_weights)
                for each, part in zip(terms, weights.parts, strict=True)
            ]
        )
        none, rest = shares == 0, weights.rest()  # zero times minus infinity would be NaN
        surrogate = (weights.scale * shares * held.masked_fill(none, 0)).sum() + rest
        values = weights.values.masked_fill(none, 0)
        squares = (weights.scale * shares.square() * values).sum() + rest
        for each in terms:
            surrogate = surrogate + moved(squares, each.leaves)
        yield Loss(-weights.bound(), -surrogate)


class _Leaves(Messenger):
    """Replaces each sample of a guide by a leaf of autograd's graph, and keeps both.

    It is to be entered outside of all plates, so that distributions arrive expanded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.leaves: list[Leaf] = []

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) or not is_drawn(msg):
            return
        if msg["value"] is None:
            msg["value"], msg["done"] = msg["fn"](*msg["args"], **msg["kwargs"]), True
        sample = msg["value"]
        if sample.is_floating_point():
            msg["value"] = sample.detach().requires_grad_()
            self.leaves.append(Leaf(msg["name"], sample, msg["value"], tuple(_masks(msg))))


def _masks(msg: Any) -> Iterator[Tensor]:
    """Of a site and of its distribution, with ones for the dimensions of events."""
    fn = msg["fn"]
    found = [(msg["mask"], fn.event_dim)]
    while isinstance(fn, (Independent, MaskedDistribution)):
        if isinstance(fn, MaskedDistribution):
            found.append((fn._mask, fn.event_dim))
        fn = fn.base_dist
    for mask, event_dim in found:
        if mask is not None:
            tensor = torch.as_tensor(mask)
            yield tensor.reshape(tensor.shape + (1,) * event_dim)


def moved(total: Tensor, replaced: Sequence[Leaf]) -> Tensor:
    """What has the gradient of ``total`` by way of samples alone, which may depend on each other.

    Args:
        total: depends on the leaves that stand for samples, and on whatever else.
        replaced: the samples, which may depend on earlier leaves, and their leaves, in order.

    Raises:
        NotImplementedError: for a sample on which ``total`` depends where a mask leaves its own
            density out, as if it had not been drawn.
    """
    leaves = [each.leaf for each in replaced]
    grads = _gradients(total, leaves)
    surrogate = total.new_zeros(())
    for index in reversed(range(len(replaced))):
        (name, sample, _, masks), grad = replaced[index], grads[index]
        if grad is None or not sample.requires_grad:
            continue
        if any(bool((grad != 0).logical_and(~mask).any()) for mask in masks):
            raise NotImplementedError(
                f"Expected no site to depend on samples that a mask leaves out at site {name!r} of"
                " the guide, but some do: use doubly_reparameterized=False"
            )
        surrogate = surrogate + (grad * sample).sum()
        for earlier, more in enumerate(_gradients(sample, leaves[:index], grad)):
            if more is not None:
                known = grads[earlier]
                grads[earlier] = more if known is None else known + more
    return surrogate


def _gradients(
    result: Tensor, leaves: list[Tensor], grad: Tensor | None = None
) -> list[Tensor | None]:
    if not (leaves and result.requires_grad):
        return [None] * len(leaves)
    return list(torch.autograd.grad(result, leaves, grad, retain_graph=True, allow_unused=True))
