"""Networks from contexts to mixtures of Normals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions.conditional import ConditionalDistribution
from torch import Size, Tensor, nn
from torch.distributions.transforms import Transform, identity_transform

from pyro_mixtures.distributions import (
    GaussianScaleMixture,
    MixtureOfDiagNormals,
    MixtureOfDiagNormalsSharedCovariance,
    MixtureOfNormals,
    MixtureOfNormalsSharedCovariance,
    ParametricMixture,
)
from pyro_mixtures.nn.floors import AboveFloor, CholeskyAboveFloor
from pyro_mixtures.nn.named_outputs import NamedOutputs
from pyro_mixtures.nn.spread import START_SCALE, evenly, spread_locs
from pyro_mixtures.numerics.validation import check_at_least, check_choice

FAMILIES: dict[str, type[ParametricMixture]] = {
    "diagonal": MixtureOfDiagNormals,
    "shared_diagonal": MixtureOfDiagNormalsSharedCovariance,
    "full": MixtureOfNormals,
    "shared_full": MixtureOfNormalsSharedCovariance,
    "scale": GaussianScaleMixture,
    "centered_scale": GaussianScaleMixture,
}
"""Mixtures of Normals by name; the last has no ``locs``."""


@ConditionalDistribution.register  # as a base its metaclass would keep PyroModule out
class ConditionalMixture(nn.Module):
    r"""A network that makes a mixture of Normals of each context.

    .. math::
        q(z \mid c) = \sum_{j=1}^K \pi_j(c) \, N(z \mid \mu_j(c), \Sigma_j(c))

    A mixture density network if fitted by ``log_prob``, an amortized guide if its samples are.
    Calling it and Pyro's ``condition`` do the same: contexts ``(*B, context_features)`` make a
    distribution of batch shape ``B`` and event shape ``(event_size,)``, with the
    ``component_logits`` and component parameters of its class. Contexts should be of order one.

    At first the mixture hardly depends on the context. In each coordinate the means lie evenly
    between -``init_spread`` and ``init_spread``, in random order, and scales are half of that;
    without means the sizes lie between a quarter and one ``init_spread``. :meth:`init_from` starts
    at samples, and :meth:`start_at` at a mixture. A unit goes with the start: the spread, or the
    standard deviations of the samples or the mixture in each coordinate. The network's outputs
    are in terms of it, so that events may have any unit.

    Scales are ``unit * (scale_floor + softplus(output))``, and so are the diagonals of Cholesky
    factors. This floor has a gradient, and bounds densities: no component can collapse on one
    datum.

    Args:
        context_features: size of a context.
        event_size: D, the size of an event.
        num_components: K, the number of components.
        family: ``"diagonal"`` for :class:`~pyro_mixtures.distributions.MixtureOfDiagNormals`,
            ``"full"`` for :class:`~pyro_mixtures.distributions.MixtureOfNormals`,
            ``"shared_diagonal"`` and ``"shared_full"`` for those of one covariance, ``"scale"``
            for :class:`~pyro_mixtures.distributions.GaussianScaleMixture` and
            ``"centered_scale"`` for that without ``locs``.
        hidden: sizes of hidden layers, with SiLU between them; none for a linear layer, on top of
            a network of your own.
        init_spread: of the means at first.
        scale_floor: the lowest scale in terms of the unit. (Of scale mixtures its square root is
            that of each of the two factors.)
        options: ``transport``, ``weight_gradient`` and ``validate_args`` of the distribution.

    Raises:
        ValueError: for sizes below one, an unknown ``family``, a spread or floor that is not
            positive and finite, and contexts of another shape or type.

    References:
        Bishop, *Mixture Density Networks* (1994),
        https://publications.aston.ac.uk/id/eprint/373/.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> network = ConditionalMixture(3, event_size=2, num_components=4, hidden=(64, 64))
        >>> q = network(torch.randn(10, 3))
        >>> type(q).__name__, q.batch_shape, q.event_shape
        ('MixtureOfDiagNormals', torch.Size([10]), torch.Size([2]))
        >>> q.rsample((5,)).shape, q.log_prob(torch.zeros(2)).shape
        (torch.Size([5, 10, 2]), torch.Size([10]))
    """

    unit: Tensor
    offset: Tensor

    def __init__(
        self,
        context_features: int,
        event_size: int,
        num_components: int,
        *,
        family: str = "diagonal",
        hidden: Sequence[int] = (),
        init_spread: float = 1.0,
        scale_floor: float = 1e-3,
        **options: Any,
    ) -> None:
        super().__init__()
        check_at_least(1, event_size=event_size, num_components=num_components)
        check_choice("family", family, tuple(FAMILIES))
        for name, value in (("init_spread", init_spread), ("scale_floor", scale_floor)):
            if not (isinstance(value, (int, float)) and 0 < value < math.inf):
                raise ValueError(f"Expected a finite {name} > 0, but got {value!r}")
        self.event_size, self.num_components = event_size, num_components
        self.family, self.options = family, options
        self._maps = self._maps_above(scale_floor)
        self.network = NamedOutputs(context_features, self._output_shapes(), hidden)
        self.register_buffer("unit", torch.full((event_size,), float(init_spread)))
        self.register_buffer("offset", torch.zeros(event_size))
        self._start_outputs(self._spread_out())
        self(torch.zeros(context_features))  # tells of wrong options

    def extra_repr(self) -> str:
        return (
            f"event_size={self.event_size}, num_components={self.num_components},"
            f" family={self.family!r}"
        )

    def forward(self, context: Tensor) -> ParametricMixture:
        """The mixtures of contexts ``(*B, context_features)``."""
        outputs = self.network(context)
        parameters = {
            name: standardized(outputs[name]) for name, standardized in self._maps.items()
        }
        logits = outputs["component_logits"]
        if "locs" in parameters:
            parameters["locs"] = torch.addcmul(self.offset, self.unit, parameters["locs"])
        if "coord_scale" in parameters:
            parameters["coord_scale"] = self.unit * parameters["coord_scale"]
        if "scale_tril" in parameters:
            parameters["scale_tril"] = self.unit.unsqueeze(-1) * parameters["scale_tril"]
        return self._distribution(**parameters, component_logits=logits, **self.options)

    def condition(self, context: Tensor) -> ParametricMixture:
        """The mixtures of contexts ``(*B, context_features)``, by Pyro's name for that."""
        return self(context)

    def start_at(self, mixture: ParametricMixture) -> ConditionalMixture:
        """Start at one mixture, whatever the context, and take its moments for units.

        Args:
            mixture: of this module's class and sizes, without batch shape. Scales next to the
                floor start at twice that.

        Returns:
            The module itself.

        Raises:
            ValueError: for a mixture of another class or size, or a weight of zero.

        Example:
            >>> start = MixtureOfDiagNormals(
            ...     torch.tensor([[-20.0], [30.0]]), torch.ones(2, 1), torch.zeros(2)
            ... )
            >>> network = ConditionalMixture(3, event_size=1, num_components=2).start_at(start)
            >>> network(torch.zeros(3)).locs.round().flatten().tolist()
            [-20.0, 30.0]
        """
        self._check_start(mixture)
        with torch.no_grad():
            centered = "locs" not in self._letters
            self.unit.copy_(mixture.stddev)
            self.offset.copy_(torch.zeros_like(self.offset) if centered else mixture.mean)
            unit = mixture.stddev
            standard = mixture.affine(1 / unit, None if centered else -mixture.mean / unit)
            values = {name: getattr(standard, name) for name in self._letters}
            if "component_scale" in values:  # the largest is 1: the shape is that of the widest
                largest = values["component_scale"].amax()
                values["component_scale"] = values["component_scale"] / largest
                values["coord_scale"] = values["coord_scale"] * largest
            self._start_outputs({**values, "component_logits": mixture.log_weights})
        return self

    def init_from(self, samples: Tensor, *, seed: int | None = 0) -> ConditionalMixture:
        """Start at a mixture that is fitted to events, whatever their contexts.

        k-means++ and expectation maximization, as
        :meth:`~pyro_mixtures.distributions.ParametricMixture.from_samples` does. It needs
        scikit-learn.

        Args:
            samples: events ``(N, event_size)``; of many, some thousand serve.
            seed: of the starts; None for random ones.

        Returns:
            The module itself.

        Raises:
            ImportError: if scikit-learn is missing.
            ValueError: for samples of another shape, fewer than K, or not finite.

        Example:
            >>> _ = torch.manual_seed(0)
            >>> y = torch.cat([torch.randn(500, 1) - 50, torch.randn(500, 1) + 50])
            >>> network = ConditionalMixture(3, event_size=1, num_components=2).init_from(y)
            >>> network(torch.zeros(3)).locs.round().flatten().sort().values.tolist()
            [-50.0, 50.0]
        """
        if not isinstance(samples, Tensor) or samples.shape[1:] != (self.event_size,):
            given = tuple(samples.shape) if isinstance(samples, Tensor) else type(samples).__name__
            raise ValueError(f"Expected samples of shape (N, {self.event_size}), but got {given}")
        centered = "locs" not in self._letters
        fitted = self._distribution.from_samples(
            samples, self.num_components, seed=seed, centered=centered
        )
        return self.start_at(fitted)

    @property
    def _distribution(self) -> type[Any]:
        return FAMILIES[self.family]

    @property
    def _letters(self) -> dict[str, str]:
        """Shapes of the component parameters."""
        letters = self._distribution.component_parameters
        return {k: v for k, v in letters.items() if (self.family, k) != ("centered_scale", "locs")}

    def _maps_above(self, floor: float) -> dict[str, Transform]:
        """From outputs to standardized component parameters."""
        letters = self._letters
        factor = AboveFloor(math.sqrt(floor) if "component_scale" in letters else floor)
        maps: dict[str, Transform] = {
            "locs": identity_transform,
            "coord_scale": factor,
            "component_scale": factor,
            "scale_tril": CholeskyAboveFloor(floor),
        }
        return {name: maps[name] for name in letters}

    def _output_shapes(self) -> dict[str, Size]:
        sizes = {"K": self.num_components, "D": self.event_size}
        shapes = {
            name: self._maps[name].inverse_shape(Size([sizes[letter] for letter in letters]))
            for name, letters in self._letters.items()
        }
        return {**shapes, "component_logits": Size([self.num_components])}

    def _spread_out(self) -> dict[str, Tensor]:
        """Standardized parameters whose components are apart."""
        count, size = self.num_components, self.event_size
        sized = torch.ones(count) if "locs" in self._letters else evenly(count).exp2()
        letters = self._letters.get("coord_scale", "D")
        coord_scale = torch.full((count, size) if letters == "KD" else (size,), START_SCALE)
        return {
            "locs": spread_locs(count, size),
            "coord_scale": coord_scale,
            "component_scale": sized,
            "scale_tril": START_SCALE * torch.eye(size),
            "component_logits": torch.zeros(count),
        }

    def _check_start(self, mixture: ParametricMixture) -> None:
        kind, size = self._distribution, (self.num_components, self.event_size)
        if type(mixture) is not kind or mixture.batch_shape:
            raise ValueError(
                f"Expected mixture to be a {kind.__name__} without batch shape, but got {mixture}"
            )
        if (len(mixture.component_logits), *mixture.event_shape) != size:
            raise ValueError(
                f"Expected mixture with K, D = {size}, but got"
                f" {(len(mixture.component_logits), *mixture.event_shape)}"
            )
        if ("locs" in mixture.given) != ("locs" in self._letters):
            raise ValueError(
                f"Expected mixture with the parameters {', '.join(self._letters)}, but got"
                f" {', '.join(mixture.given)}"
            )
        if not bool(mixture.component_logits.isfinite().all()):
            raise ValueError(
                "Expected mixture with positive weights, but its component_logits are"
                f" {mixture.component_logits}"
            )

    def _start_outputs(self, values: dict[str, Tensor]) -> None:
        """Let the biases give these standardized parameters."""
        outputs = {name: transform.inv(values[name]) for name, transform in self._maps.items()}
        self.network.start_at({**outputs, "component_logits": values["component_logits"]})
