"""A prior that is the mixture of an encoder's posteriors at inputs that are learned."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_mixtures.distributions import MixtureOfDiagNormals, MixtureOfNormals
from pyro_mixtures.normals.divergence import as_normals

INSIDE = 0.01
"""Of the interval: nearer to its ends pseudo-inputs would start with next to no gradient."""


class VampPrior(nn.Module):
    r"""The mean of an encoder's posteriors at M pseudo-inputs, which are learned.

    .. math:: p(z) = \frac1M \sum_{m=1}^M q(z \mid u_m)

    It is as the best prior, the mean of the posteriors of all data, but of fewer. Calling it makes
    the distribution: of an encoder that returns one Normal for each input a mixture of M, of one
    that returns mixtures of K a mixture of K M. Its parameters are the pseudo-inputs u and those
    of the encoder, which is trained through both.

    With ``lo`` and ``hi`` the pseudo-inputs stay between them,
    :math:`u = \mathrm{lo} + (\mathrm{hi} - \mathrm{lo}) \, \mathrm{sigmoid}(\text{parameter})`.
    They start a hundredth of the interval inside of it, where they were nearer to its ends.

    Args:
        encoder: maps inputs ``(M, *X)`` to a distribution of batch shape ``(M,)`` and event shape
            ``(D,)``: a mixture of Normals, ``Normal(...).to_event(1)`` or a
            ``MultivariateNormal``.
        pseudo_inputs: where they start, ``(M, *X)``; some of the data, say.
        lo: the lowest value of an input, or None.
        hi: the highest; both or none of them.
        options: ``transport``, ``weight_gradient`` and ``validate_args`` of the mixture.

    Raises:
        ValueError: for pseudo-inputs of another shape than the encoder takes, which are not
            finite, or which are not between ``lo`` and ``hi``; for ``lo >= hi``, or one of them.
        NotImplementedError: for an encoder that returns anything else.

    Reference:
        Tomczak and Welling, *VAE with a VampPrior* (2018), https://arxiv.org/abs/1705.07120.

    Example:
        >>> from pyro_mixtures.nn import ConditionalMixture
        >>> encoder = ConditionalMixture(6, event_size=2, num_components=3, hidden=(8,))
        >>> prior = VampPrior(encoder, torch.rand(20, 6), lo=0.0, hi=1.0)
        >>> p = prior()
        >>> type(p).__name__, p.num_components, p.event_shape
        ('MixtureOfDiagNormals', 60, torch.Size([2]))
    """

    def __init__(
        self,
        encoder: Callable[[Tensor], Distribution],
        pseudo_inputs: Tensor,
        *,
        lo: float | None = None,
        hi: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        _check_interval(lo, hi)
        _check_inputs(pseudo_inputs, lo, hi)
        self.encoder = encoder
        self.lo, self.hi, self.options = lo, hi, options
        self.raw_inputs = nn.Parameter(self._raw(pseudo_inputs.detach()).clone())
        with torch.no_grad():
            try:
                encoder(self.pseudo_inputs)
            except (RuntimeError, ValueError) as error:
                raise ValueError(
                    "Expected pseudo_inputs (M, *X) of the shape that the encoder takes, but of"
                    f" {tuple(pseudo_inputs.shape)} it says: {error}"
                ) from error
            self()  # tells of wrong options, and of what the encoder returns

    def extra_repr(self) -> str:
        interval = "" if self.lo is None else f", lo={self.lo}, hi={self.hi}"
        return f"pseudo_inputs={tuple(self.raw_inputs.shape)}{interval}"

    @property
    def pseudo_inputs(self) -> Tensor:
        """As they are now, ``(M, *X)``."""
        if self.lo is None or self.hi is None:
            return self.raw_inputs
        return self.lo + (self.hi - self.lo) * self.raw_inputs.sigmoid()

    def forward(self) -> MixtureOfDiagNormals | MixtureOfNormals:
        """The mixture, without batch shape."""
        posteriors = self.encoder(self.pseudo_inputs)
        log_weights, locs, scales = as_normals(posteriors, "VampPrior")
        count = len(self.raw_inputs)
        if posteriors.batch_shape != (count,):
            raise ValueError(
                f"Expected the encoder to return a distribution of batch shape {(count,)} for as"
                f" many pseudo_inputs, but got {tuple(posteriors.batch_shape)}"
            )
        scales = scales.expand(*locs.shape[:2], *scales.shape[2:]).flatten(0, 1)  # (M K, D, ...)
        kind: Any = MixtureOfDiagNormals if scales.dim() == 2 else MixtureOfNormals
        mixture: MixtureOfDiagNormals | MixtureOfNormals = kind(
            locs.flatten(0, 1), scales, log_weights.flatten(), **self.options
        )
        return mixture

    def _raw(self, inputs: Tensor) -> Tensor:
        if self.lo is None or self.hi is None:
            return inputs
        return ((inputs - self.lo) / (self.hi - self.lo)).clamp(INSIDE, 1 - INSIDE).logit()


def _check_interval(lo: float | None, hi: float | None) -> None:
    if lo is None and hi is None:
        return
    given = [value for value in (lo, hi) if isinstance(value, (int, float))]
    if len(given) < 2 or not -math.inf < given[0] < given[1] < math.inf:
        raise ValueError(f"Expected finite lo < hi, or neither, but got {lo!r} and {hi!r}")


def _check_inputs(inputs: Tensor, lo: float | None, hi: float | None) -> None:
    if not isinstance(inputs, Tensor) or inputs.dim() < 1 or not inputs.numel():
        given = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise ValueError(f"Expected pseudo_inputs of shape (M, *X), but got {given}")
    if not inputs.is_floating_point() or not bool(inputs.isfinite().all()):
        raise ValueError(
            f"Expected pseudo_inputs of finite floating point numbers, but got {inputs}"
        )
    least, greatest = float(inputs.detach().amin()), float(inputs.detach().amax())
    if lo is not None and hi is not None and not lo <= least <= greatest <= hi:
        raise ValueError(
            f"Expected pseudo_inputs between lo = {lo} and hi = {hi}, but they lie between"
            f" {least} and {greatest}"
        )
