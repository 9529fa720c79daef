"""A prior that is a mixture of diagonal Normals, to be learned."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pyro_mixtures.distributions import MixtureOfDiagNormals
from pyro_mixtures.nn.floors import AboveFloor
from pyro_mixtures.nn.spread import START_SCALE, spread_locs
from pyro_mixtures.numerics.validation import check_at_least


class MixturePrior(nn.Module):
    r"""A mixture of K diagonal Normals, whose parameters are learned.

    .. math:: p(z) = \sum_{k=1}^K \pi_k \prod_{i=1}^D N(z_i \mid \mu_{ki}, \sigma_{ki})

    Calling it makes the distribution. In each coordinate the means start evenly between
    -``init_spread`` and ``init_spread``, in random order, with scales of half of that and equal
    weights; :meth:`init_from` starts at samples, such as encodings of some data, and
    :meth:`start_at` at a mixture. The parameters are in units of the start, so that a step of an
    optimizer is one in any unit, and scales are ``unit * (scale_floor + softplus(parameter))``.

    Args:
        event_size: D, the size of a latent.
        num_components: K, the number of components.
        init_spread: of the means at first.
        scale_floor: the lowest scale in terms of the unit.
        options: ``transport``, ``weight_gradient`` and ``validate_args`` of
            :class:`~pyro_mixtures.distributions.MixtureOfDiagNormals`.

    Raises:
        ValueError: for sizes below one, and a spread or floor that is not positive and finite.

    References:
        Stratos, *Useful facts about latent-variable generative models*, section 3; Dilokthanakul
        et al., *Deep unsupervised clustering with Gaussian mixture variational autoencoders*
        (2016), https://arxiv.org/abs/1611.02648.

    Example:
        >>> import pyro
        >>> prior = MixturePrior(2, num_components=5)
        >>> def model(n):
        ...     pyro.module("prior", prior)
        ...     with pyro.plate("data", n):
        ...         return pyro.sample("z", prior())
        >>> model(10).shape
        torch.Size([10, 2])
    """

    unit: Tensor
    offset: Tensor

    def __init__(
        self,
        event_size: int,
        num_components: int,
        *,
        init_spread: float = 1.0,
        scale_floor: float = 1e-3,
        **options: Any,
    ) -> None:
        super().__init__()
        check_at_least(1, event_size=event_size, num_components=num_components)
        for name, value in (("init_spread", init_spread), ("scale_floor", scale_floor)):
            if not (isinstance(value, (int, float)) and 0 < value < math.inf):
                raise ValueError(f"Expected a finite {name} > 0, but got {value!r}")
        self.event_size, self.num_components = event_size, num_components
        self.options = options
        self._scale = AboveFloor(scale_floor)
        shape = (num_components, event_size)
        self.locs = nn.Parameter(spread_locs(*shape))
        self.raw_scale = nn.Parameter(self._scale.inv(torch.full(shape, START_SCALE)))
        self.component_logits = nn.Parameter(torch.zeros(num_components))
        self.register_buffer("unit", torch.full((event_size,), float(init_spread)))
        self.register_buffer("offset", torch.zeros(event_size))
        self()  # tells of wrong options

    def extra_repr(self) -> str:
        return f"event_size={self.event_size}, num_components={self.num_components}"

    def forward(self) -> MixtureOfDiagNormals:
        """The mixture, without batch shape."""
        return MixtureOfDiagNormals(
            torch.addcmul(self.offset, self.unit, self.locs),
            self.unit * self._scale(self.raw_scale),
            self.component_logits,
            **self.options,
        )

    @torch.no_grad()
    def start_at(self, mixture: MixtureOfDiagNormals) -> MixturePrior:
        """Start at a mixture, and take its moments for units.

        Args:
            mixture: of K diagonal Normals in D dimensions, without batch shape. Scales next to
                the floor start at twice that.

        Returns:
            The module itself.

        Raises:
            ValueError: for a mixture of another class or size, or a weight of zero.
        """
        size = (self.num_components, self.event_size)
        if not isinstance(mixture, MixtureOfDiagNormals) or mixture.batch_shape:
            raise ValueError(
                "Expected mixture to be a MixtureOfDiagNormals without batch shape, but got"
                f" {mixture}"
            )
        if (mixture.num_components, *mixture.event_shape) != size:
            raise ValueError(
                f"Expected mixture with K, D = {size}, but got"
                f" {(mixture.num_components, *mixture.event_shape)}"
            )
        if not bool(mixture.log_weights.isfinite().all()):
            raise ValueError(
                "Expected mixture with positive weights, but its component_logits are"
                f" {mixture.component_logits}"
            )
        self.unit.copy_(mixture.stddev)
        self.offset.copy_(mixture.mean)
        self.locs.copy_((mixture.locs - mixture.mean) / mixture.stddev)
        self.raw_scale.copy_(self._scale.inv(mixture.coord_scale / mixture.stddev))
        self.component_logits.copy_(mixture.log_weights)
        return self

    def init_from(self, samples: Tensor, *, seed: int | None = 0) -> MixturePrior:
        """Start at a mixture that is fitted to samples, such as encodings of some data.

        By :meth:`~pyro_mixtures.distributions.ParametricMixture.from_samples`, which needs
        scikit-learn.

        Args:
            samples: ``(N, event_size)``; of many, some thousand serve.
            seed: of the starts; None for random ones.

        Returns:
            The module itself.

        Raises:
            ImportError: if scikit-learn is missing.
            ValueError: for samples of another shape, fewer than K, or not finite.

        Example:
            >>> _ = torch.manual_seed(0)
            >>> z = torch.cat([torch.randn(500, 1) - 50, torch.randn(500, 1) + 50])
            >>> MixturePrior(1, 2).init_from(z)().locs.round().flatten().sort().values.tolist()
            [-50.0, 50.0]
        """
        if not isinstance(samples, Tensor) or samples.shape[1:] != (self.event_size,):
            given = tuple(samples.shape) if isinstance(samples, Tensor) else type(samples).__name__
            raise ValueError(f"Expected samples of shape (N, {self.event_size}), but got {given}")
        count = self.num_components
        return self.start_at(MixtureOfDiagNormals.from_samples(samples, count, seed=seed))
