"""Systematic draws of the components."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_mixtures.distributions.mixture_distribution import MixtureDistribution
from pyro_mixtures.estimators.estimated_mixture import EstimatedMixture, checked
from pyro_mixtures.numerics.precision import double_dtype
from pyro_mixtures.samples.shapes import unfolded

if TYPE_CHECKING:
    from typing_extensions import Self


class StratifiedMixture(EstimatedMixture):
    """Samples of evenly spread components, with the mixture's pathwise gradient.

    Args:
        mixture: with the weight gradient ``"pathwise"``.
        expanded: whether dimensions that ``expand`` adds hold samples of one draw.
        num_added: how many of those there are.
    """

    def __init__(
        self, mixture: MixtureDistribution, *, expanded: bool = False, num_added: int = 0
    ) -> None:
        super().__init__(mixture)
        self.expanded, self.num_added = expanded, num_added

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        batch_shape = torch.Size(batch_shape)
        own = self.batch_shape[self.num_added :]
        added = max(0, len(batch_shape) - len(own)) if self.expanded else 0
        if batch_shape[added:] != own:
            added = 0
        return StratifiedMixture(
            self.mixture.expand(batch_shape), expanded=self.expanded, num_added=added
        )

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        core, shape = self.mixture.core, torch.Size(sample_shape)
        strata = shape + self.batch_shape[: self.num_added]  # samples of one draw
        size = len(self.batch_shape) - len(core.batch_shape)
        others = self.batch_shape[self.num_added : size].numel()
        weights = core.component_logits.softmax(-1, dtype=double_dtype(core.component_logits))
        index = systematic_index(weights.expand(others, *weights.shape), strata.numel())
        index = index.movedim(-1, 0).flatten(0, 1).movedim(0, -1)  # (*B, S others)
        z = core.components.draw(index)  # (*B, S others, D)
        return unfolded(z, shape + self.batch_shape + self.event_shape)

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return self.mixture.reparameterize(self.sample(sample_shape))


def stratified(mixture: MixtureDistribution, *, expanded: bool = False) -> StratifiedMixture:
    r"""Samples whose components are drawn systematically, with the pathwise gradient.

    Of S samples of one mixture the i-th takes the component at

    .. math:: u_i = \frac{u + \rho(i)}{S}, \qquad u \sim \mathrm{Uniform}(0, 1)

    of the cumulative sum of the weights, with a random permutation :math:`\rho`. Each component
    is drawn :math:`S \pi_k` times, up to less than one, and each sample alone follows the
    mixture.

    Unbiased, with one evaluation of the cost for each sample. What the choice of the component
    adds to the variance of :func:`~pyro_mixtures.estimators.pathwise` falls like 1/S instead of
    :math:`1 / \sqrt S` (in standard deviations), at no cost; with one sample there is no
    difference. The S samples are those of one ``sample_shape``; the guides of this package count
    the vectorized particles with them. Elements of plates stay independent, so that in a guide
    written by hand the particles' do, too. The samples depend on each other, so that means of the
    others would be no baseline for a score term: the weights' gradient is pathwise.

    Args:
        mixture: of any class.
        expanded: stratify over the dimensions that ``expand`` adds as well: where these are
            vectorized particles and no plates whose elements a model may compare.

    Returns:
        A distribution; each of its samples is distributed like the mixture.

    Raises:
        ValueError: for what is no mixture of this package.
        NotImplementedError: for components without a transport.

    Reference:
        Douc and Cappe, *Comparison of resampling schemes for particle filtering* (2005),
        https://arxiv.org/abs/cs/0507025, for the systematic draws.

    Example:
        >>> from pyro_mixtures.distributions import MixtureOfDiagNormals
        >>> locs = torch.tensor([[-9.0], [9.0]])
        >>> q = MixtureOfDiagNormals(locs, torch.ones(2, 1), torch.zeros(2))
        >>> int((stratified(q).sample((100,)) > 0).sum())
        50
    """
    mixture = checked(mixture).with_weight_gradient("pathwise")
    return StratifiedMixture(mixture, expanded=expanded)


def systematic_index(weights: Tensor, count: int) -> Tensor:
    """Evenly spread component indices in random order, ``(*B, K) -> (*B, count)``.

    Never one of weight zero.
    """
    cdf = weights.cumsum(-1)
    cdf = cdf / cdf[..., -1:]  # exactly 1 from the last positive weight on

    def uniform(size: int) -> Tensor:
        return torch.rand(*weights.shape[:-1], size, dtype=cdf.dtype, device=cdf.device)

    place = (uniform(count).argsort(-1) + uniform(1)) / max(count, 1)
    place = place.clamp_max(1 - torch.finfo(cdf.dtype).eps)
    return torch.searchsorted(cdf, place, right=True)
