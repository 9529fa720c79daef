"""Which components of a mixture are in use, which are dead and which say the same twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_mixtures.components import Normals
from pyro_mixtures.distributions.mixture_distribution import MixtureDistribution
from pyro_mixtures.normals.bounds import are_degenerate, bhattacharyya_distances
from pyro_mixtures.numerics.chunks import MEMORY_BUDGET
from pyro_mixtures.numerics.precision import double
from pyro_mixtures.numerics.validation import check_at_least


@dataclass(frozen=True)
class ComponentSummary:
    r"""What the components of a mixture are worth; ``print`` shows it as a table.

    Attributes:
        weights: :math:`\pi`, ``(*B, K)``.
        overlaps: :math:`O_{jk} = \int \sqrt{q_j q_k}`, the Bhattacharyya coefficients of all
            pairs, ``(*B, K, K)``: 1 for components that coincide, 0 for those that do not touch,
            :math:`e^{-d^2 / 8}` for Normals of one scale whose means are d standard deviations
            apart.
        effective_components: :math:`\exp(-\sum_j \pi_j \log \pi_j)`, the exponential of the
            weights' entropy, ``(*B,)``.
        distinct_components: :math:`\exp(-\sum_j \pi_j \log \sum_k O_{jk} \pi_k)`, ``(*B,)``. This
            is the effective number where components do not touch, counts those that coincide
            once, and is 1 if all do. It is the diversity of order one that heeds similarity
            (Leinster and Cobbold), and at most the exponential of the mutual information between
            a sample and its component (Kolchinsky and Tracey).
        dead: which components have next to no weight, ``(*B, K)``.
        doubled: which pairs of components are nearly the same, ``(*B, K, K)``.
        degenerate: which components have no density, as with a scale that is zero or not finite,
            ``(*B, K)``. Their overlaps with others count as zero.
    """

    weights: Tensor
    overlaps: Tensor
    effective_components: Tensor
    distinct_components: Tensor
    dead: Tensor
    doubled: Tensor
    degenerate: Tensor

    def __str__(self) -> str:
        if self.weights.dim() == 1:
            return _table(self)
        fields = (self.effective_components, self.distinct_components)
        effective, distinct = (f"{x.amin():.2f} to {x.amax():.2f}" for x in fields)
        return (
            f"{self.weights.shape[:-1].numel()} mixtures of {self.weights.shape[-1]} components:"
            f" {effective} effective, {distinct} distinct"
        )


@torch.no_grad()
def component_summary(
    mixture: MixtureDistribution,
    *,
    dead_below: float = 0.1,
    doubled_above: float = 0.9,
    num_samples: int = 1000,
) -> ComponentSummary:
    r"""Weights and overlaps of a mixture's components, for each mixture of a batch.

    The overlaps of Normals are exact. Of other families they are means over samples of the two
    components,

    .. math::
        \int \sqrt{q_j q_k} = E_{z \sim (q_j + q_k) / 2} \,
        \mathrm{sech}\big(\tfrac12 \log q_j(z) - \tfrac12 \log q_k(z)\big),

    where the sech lies between 0 and 1: their standard error is below
    :math:`1 / \sqrt{8\, \text{num\_samples}}`, which is 0.011 by default.

    Args:
        mixture: any of this package, such as ``guide.get_posterior()``; batch shape ``B``.
        dead_below: components of a weight below ``dead_below / K`` are dead.
        doubled_above: pairs of an overlap above this are doubled; the overlap of Normals of one
            scale is above 0.9 when their means are less than 0.92 standard deviations apart.
        num_samples: of each component, for overlaps without a closed form.

    Returns:
        The summary, without gradients.

    Raises:
        ValueError: for what is no mixture of this package, ``dead_below`` or ``doubled_above``
            outside [0, 1], or ``num_samples < 1``.

    References:
        Kolchinsky and Tracey, *Estimating mixture entropy with pairwise distances*, Entropy
        19(7), 2017, https://arxiv.org/abs/1706.02419. Leinster and Cobbold, *Measuring
        diversity: the importance of species similarity*, Ecology 93(3), 2012.

    Example:
        >>> from pyro_mixtures.distributions import MixtureOfDiagNormals
        >>> locs = torch.tensor([[0.0], [0.1], [9.0], [5.0]])
        >>> weights = torch.tensor([0.25, 0.25, 0.495, 0.005])
        >>> print(component_summary(MixtureOfDiagNormals(locs, torch.ones(4, 1), weights.log())))
        component  weight  nearest  overlap
                2   0.495        3    0.135
                0   0.250        1    0.999  doubled
                1   0.250        0    0.999  doubled
                3   0.005        2    0.135  dead
        4 components: 2.91 effective, 2.03 distinct
    """
    if not isinstance(mixture, MixtureDistribution):
        raise ValueError(
            "Expected mixture to be one of pyro_mixtures.distributions, to which to_event, mask"
            f" and estimators are not applied, but got {type(mixture).__name__}"
        )
    for name, value in (("dead_below", dead_below), ("doubled_above", doubled_above)):
        if not 0 <= value <= 1:
            raise ValueError(f"Expected {name} between 0 and 1, but got {value}")
    check_at_least(1, num_samples=num_samples)
    (logits,) = double(mixture.component_logits)
    weights = logits.softmax(-1)
    overlaps, degenerate = _overlaps(mixture, num_samples)
    count = weights.shape[-1]
    similar = (overlaps @ weights.unsqueeze(-1)).squeeze(-1)
    itself = torch.eye(count, dtype=torch.bool, device=weights.device)
    dtype = mixture.component_logits.dtype
    return ComponentSummary(
        weights=weights.to(dtype),
        overlaps=overlaps.to(dtype),
        effective_components=torch.special.entr(weights).sum(-1).exp().to(dtype),
        distinct_components=(-torch.xlogy(weights, similar).sum(-1)).exp().to(dtype),
        dead=weights < dead_below / count,
        doubled=(overlaps > doubled_above) & ~itself,
        degenerate=degenerate,
    )


def _overlaps(mixture: Any, num_samples: int) -> tuple[Tensor, Tensor]:
    """Bhattacharyya coefficients, ``(*B, K, K)``, and which components have none, ``(*B, K)``."""
    if not isinstance(mixture.components, Normals):
        return _sampled_overlaps(mixture, num_samples)
    locs, scales = double(*mixture.components.normals("component_summary"))
    count, kept = mixture.num_components, scales.dim() - locs.dim()  # 1 for Cholesky factors
    own_locs = locs.expand(*locs.shape[:-2], count, -1)
    own_scales = scales.expand(*scales.shape[: -2 - kept], count, *scales.shape[-1 - kept :])
    row = mixture.batch_shape.numel() * count * scales.shape[-1] ** (1 + kept)
    rows = max(1, MEMORY_BUDGET // (row * locs.element_size()))
    parts = zip(own_locs.split(rows, -2), own_scales.split(rows, -2 - kept), strict=True)
    distances = torch.cat([bhattacharyya_distances(*own, locs, scales) for own in parts], -2)
    overlaps = _symmetric((-distances).exp().expand(*mixture.batch_shape, count, count))
    return overlaps, are_degenerate(locs, scales).expand(*mixture.batch_shape, count)


def _sampled_overlaps(mixture: MixtureDistribution, num_samples: int) -> tuple[Tensor, Tensor]:
    components, log_weights = mixture.core.components, mixture.core.log_weights
    z = components.sample(num_samples)  # (*B, S, K, D)
    rows, degenerate = [], []
    for index, points in enumerate(z.unbind(-2)):
        (log_prob,) = double(components.log_prob(points, log_weights))  # (*B, S, K)
        ratio = log_prob[..., index : index + 1] - log_prob
        # NaN where a sample was rounded to an end of the support, where all densities are infinite
        rows.append((ratio / 2).cosh().reciprocal().nanmean(-2))
        degenerate.append(log_prob[..., index].isnan().all(-1))  # (*B,)
    overlaps = torch.stack(rows, -2)
    return (
        _symmetric(overlaps.expand(*mixture.batch_shape, *overlaps.shape[-2:])),
        torch.stack(degenerate, -1).expand(*mixture.batch_shape, len(rows)),
    )


def _symmetric(overlaps: Tensor) -> Tensor:
    """Means of both orders, with ones on the diagonal and none above in spite of rounding.

    Zeros take the place of NaN, as of a component that has no density.
    """
    overlaps = ((overlaps + overlaps.mT) / 2).nan_to_num(0).clamp(0, 1)
    overlaps.diagonal(dim1=-2, dim2=-1).fill_(1)
    return overlaps


def _table(summary: ComponentSummary) -> str:
    """A line for each component, the heaviest first, and one for all."""
    count = len(summary.weights)
    lines = ["component  weight  nearest  overlap"]
    others = summary.overlaps - torch.eye(count).to(summary.overlaps)  # zero for itself
    for index in summary.weights.argsort(descending=True, stable=True).tolist():
        touches = bool(others[index].amax() > 0)
        nearest = str(int(others[index].argmax())) if touches else "-"
        overlap = f"{others[index].amax():.3f}" if touches else "-"
        line = f"{index:9}  {summary.weights[index]:6.3f}  {nearest:>7}  {overlap:>7}"
        found = {
            "dead": summary.dead[index],
            "doubled": summary.doubled[index].any(),
            "degenerate": summary.degenerate[index],
        }
        remarks = [word for word, holds in found.items() if holds]
        lines.append(f"{line}  {', '.join(remarks)}".rstrip())
    lines.append(
        f"{count} component{'s' if count > 1 else ''}:"
        f" {summary.effective_components:.2f} effective,"
        f" {summary.distinct_components:.2f} distinct"
    )
    return "\n".join(lines)
