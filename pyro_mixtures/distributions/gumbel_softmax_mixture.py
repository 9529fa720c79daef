"""Mixture of diagonal Normals whose choice of the component is relaxed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Normal, constraints

from pyro_mixtures.distributions.mixture_of_diag_normals import MixtureOfDiagNormals
from pyro_mixtures.distributions.parametric import ParametricDistribution
from pyro_mixtures.distributions.relaxed_categorical import (
    RelaxedCategorical,
    RelaxedCategoricalStraightThrough,
)
from pyro_mixtures.numerics.validation import check_at_least, check_choice, check_logits
from pyro_mixtures.samples.remembering import recall, remember
from pyro_mixtures.samples.shapes import folded, samples_first, unfolded

if TYPE_CHECKING:
    from typing_extensions import Self

DENSITIES = ("nested", "mixture")


class GumbelSoftmaxMixtureOfDiagNormals(ParametricDistribution):
    r"""A relaxed mixture of K Normals in D dimensions with diagonal covariances.

    .. math::
        z = \sum_{k=1}^K y_k (\mu_k + \epsilon \sigma_k), \qquad
        y = \mathrm{softmax}((\mathrm{logits} + g) / \tau)

    with one :math:`\epsilon \sim N(0, 1)` of dimension D for all components and Gumbel noise
    :math:`g_k`: an infinite mixture of Normals between the components. As an estimator for the
    gradients of the mixture itself it is biased: to compare with. At a low temperature the
    distribution comes near to the mixture, and the gradients of the weights have a variance that
    grows like :math:`1 / \tau`.

    With ``hard`` the y are snapped to unit vectors in the forward pass: the samples are those of
    the mixture, and their gradients those of the relaxed y (straight-through).

    The distribution of soft samples has no density in closed form. By ``density="nested"`` it is
    estimated,

    .. math:: \log q(z) \approx \log \frac{1}{M} \sum_{m=1}^M
              N\big(z \mid {y^{(m)}}^T \mu, {y^{(m)}}^T \sigma\big)

    with M fresh :math:`y^{(m)}` at each call, common to all values: consistent as M grows, biased
    low for any M, and differentiable in everything. At the sample just drawn its own y is one more
    of them. There the mean over samples is too high, so that an ELBO stays a lower bound (Yin and
    Zhou); without its own y a sample that is far from all others would raise it without limit.
    ``density="mixture"`` is that of the mixture, another distribution, and leaves an ELBO
    unbounded for the same reason. There are no moments in closed form for soft samples; those of
    hard ones are the mixture's.

    Args:
        locs: means :math:`\mu`, shape ``(*B, K, D)``.
        coord_scale: standard deviations :math:`\sigma > 0`, shape ``(*B, K, D)``.
        component_logits: unnormalized log weights, shape ``(*B, K)``.
        temperature: :math:`\tau > 0`, shape ``(*B)``, or a number.
        hard: snap the y in the forward pass.
        density: what ``log_prob`` is, ``"nested"`` or ``"mixture"``; None for its own, which
            is ``"mixture"`` for hard samples and ``"nested"`` for soft ones.
        num_nested: M, at least 1.
        validate_args: check the values of the arguments and of ``log_prob``'s argument.

    The batch shapes ``B`` of the arguments broadcast against each other. ``batch_shape`` is ``B``
    and ``event_shape`` is ``(D,)``.

    Raises:
        ValueError: for shapes that do not fit, K or D of zero, scales or temperatures that are not
            positive, NaN, logits of ``+inf``, an unknown ``density``, ``"nested"`` for hard
            samples, or ``num_nested`` below 1.

    References:
        Jankowiak and Karaletsos, *Pathwise Derivatives for Multivariate Distributions* (2019),
        https://arxiv.org/abs/1806.01856, Eq. 66. Jang, Gu and Poole, *Categorical
        Reparameterization with Gumbel-Softmax* (2017), https://arxiv.org/abs/1611.01144. Yin and
        Zhou, *Semi-Implicit Variational Inference* (2018), https://arxiv.org/abs/1805.11183.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> locs = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
        >>> q = GumbelSoftmaxMixtureOfDiagNormals(locs, torch.ones(2, 2), logits, temperature=1.0)
        >>> z = q.rsample((100_000,))
        >>> z[:, 0].mean().backward()  # exactly [-1/3, 1/3], and of the mixture [-1/2, 1/2]
        >>> torch.allclose(logits.grad, torch.tensor([-1 / 3, 1 / 3]), atol=0.01)
        True
    """

    has_rsample = True
    arg_constraints = {
        "locs": constraints.independent(constraints.real, 2),
        "coord_scale": constraints.independent(constraints.positive, 2),
        "component_logits": constraints.real_vector,
        "temperature": constraints.positive,
    }

    locs: Tensor
    coord_scale: Tensor
    component_logits: Tensor
    temperature: Tensor
    hard: bool
    density: str
    num_nested: int

    def __init__(
        self,
        locs: Tensor,
        coord_scale: Tensor,
        component_logits: Tensor,
        temperature: Tensor | float,
        *,
        hard: bool = False,
        density: str | None = None,
        num_nested: int = 100,
        validate_args: bool | None = None,
    ) -> None:
        if density is None:
            density = "mixture" if hard else "nested"
        check_choice("density", density, DENSITIES)
        if hard and density == "nested":
            raise ValueError(
                "Expected density to be 'mixture' for hard samples, which follow the mixture, but"
                " got 'nested'"
            )
        check_at_least(1, num_nested=num_nested)
        self.hard, self.density, self.num_nested = bool(hard), density, int(num_nested)
        if isinstance(temperature, Real) and isinstance(locs, Tensor):
            temperature = locs.new_tensor(float(temperature))
        given: dict[str, Any] = {
            "locs": locs,
            "coord_scale": coord_scale,
            "component_logits": component_logits,
            "temperature": temperature,
        }
        super().__init__(given, validate_args=validate_args)
        if self._validate_args:
            self._check_values()

    @classmethod
    def _parameter_shapes(cls) -> dict[str, str]:
        return {"locs": "KD", "coord_scale": "KD", "component_logits": "K", "temperature": ""}

    def _check_values(self) -> None:
        check_logits(self.component_logits)
        if not float(self.temperature.detach().amax()) < math.inf:
            raise ValueError(f"Expected a finite temperature, but got {self.temperature}")

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        new = super().expand(batch_shape, _instance)
        new.hard, new.density, new.num_nested = self.hard, self.density, self.num_nested
        return new

    @property
    def device(self) -> torch.device:
        """Of the parameters."""
        return self.component_logits.device

    @property
    def mixture(self) -> MixtureOfDiagNormals:
        """What is relaxed here."""
        return MixtureOfDiagNormals(
            self.locs, self.coord_scale, self.component_logits, validate_args=False
        )

    @property
    def mean(self) -> Tensor:
        self._check_hard("mean")
        return self.mixture.mean

    @property
    def variance(self) -> Tensor:
        self._check_hard("variance")
        return self.mixture.variance

    def _check_hard(self, moment: str) -> None:
        if not self.hard:
            raise NotImplementedError(
                f"the {moment} of soft samples has no closed form: take that of many samples, or"
                f" the {moment} of the mixture, q.mixture.{moment}"
            )

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        core = self.core
        shape = torch.Size(sample_shape) + self.batch_shape
        loc, scale = _chosen(core, shape[: len(shape) - len(core.batch_shape)].numel())
        z = loc + scale * torch.randn_like(loc)  # (*B, S, D)
        value = unfolded(z, shape + self.event_shape)
        remember(self, value, (loc, scale))
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        core, z, shape = folded(self, self._validated(value))
        if self.density == "nested":
            log_prob = _nested_log_prob(core, z, own=recall(self, value))
        else:
            log_prob = core.mixture.log_prob(samples_first(z))
        dtype = torch.promote_types(value.dtype, self.component_logits.dtype)
        return log_prob.reshape(shape).to(dtype)


def _nested_log_prob(
    distribution: GumbelSoftmaxMixtureOfDiagNormals, z: Tensor, own: tuple[Tensor, Tensor] | None
) -> Tensor:
    """``(*B, S, D) -> (S, *B)``, with the means and scales of each value's own y if known."""
    locs, scales = _chosen(distribution, distribution.num_nested)  # (*B, M, D)
    fresh = MixtureOfDiagNormals(
        locs, scales, torch.zeros_like(locs[..., 0]), validate_args=False
    ).log_prob(samples_first(z))
    if own is None:
        return fresh
    each = Normal(*own, validate_args=False).log_prob(z).sum(-1, keepdim=True)
    total = torch.logaddexp(fresh + math.log(distribution.num_nested), unfolded(each, fresh.shape))
    return total - math.log(distribution.num_nested + 1)


def _chosen(distribution: GumbelSoftmaxMixtureOfDiagNormals, count: int) -> tuple[Tensor, Tensor]:
    """Means and standard deviations between those of the components, ``(*B, count, D)``."""
    family = RelaxedCategoricalStraightThrough if distribution.hard else RelaxedCategorical
    choice = family(
        distribution.temperature, logits=distribution.component_logits, validate_args=False
    )
    y = choice.rsample((count,))  # (count, *B, K)
    y = y.movedim(0, -2) if distribution.batch_shape else y
    return y @ distribution.locs, y @ distribution.coord_scale
