"""The base class of the mixtures of Normals that are given by tensors with names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor

from pyro_mixtures.components import Normals
from pyro_mixtures.distributions.mixture_distribution import MixtureDistribution
from pyro_mixtures.distributions.parametric import ParametricDistribution
from pyro_mixtures.normals.from_samples import fit
from pyro_mixtures.numerics.validation import check_logits

if TYPE_CHECKING:
    from typing_extensions import Self

ParametricMixtureT = TypeVar("ParametricMixtureT", bound="ParametricMixture")


class ParametricMixture(ParametricDistribution, MixtureDistribution):
    """A mixture whose components are made of tensors that are its arguments.

    A class names its component parameters in ``component_parameters``, with the shape of each
    behind the batch, in letters, and in the order of ``components.parameters``; it lists its
    ``transports`` and makes its components in ``_components``. ``linear_image`` is the class of
    its images under a matrix.
    """

    components: Normals
    component_parameters: ClassVar[dict[str, str]]
    transports: ClassVar[Mapping[str, Any]]
    _components: ClassVar[Callable[..., Normals]]
    linear_image: ClassVar[type[ParametricMixture] | None] = None

    def __init__(
        self,
        given: Mapping[str, Tensor | None],
        component_logits: Tensor,
        *,
        transport: str,
        weight_gradient: str,
        validate_args: bool | None = None,
    ) -> None:
        parameters = {**given, "component_logits": component_logits}
        super().__init__(parameters, validate_args=validate_args)
        self._set_up(self.components, self.component_logits, transport, weight_gradient)

    def _set_shapes(self, batch_shape, event_shape, validate_args):
        self.components = self._components(*self.given.values())
        asked = self._validate_args if validate_args is None else validate_args
        compiled = self.components.compiled() if asked else None
        if compiled is None or not compiled.are_valid(self.component_logits):
            super()._set_shapes(batch_shape, event_shape, validate_args)
            if asked:
                check_logits(self.component_logits)
            return
        super()._set_shapes(batch_shape, event_shape, False)
        if validate_args is None:
            del self._validate_args  # the default, which may change
        else:
            self._validate_args = validate_args

    @classmethod
    def _parameter_shapes(cls) -> dict[str, str]:
        return {**cls.component_parameters, "component_logits": "K"}

    @property
    def given(self) -> dict[str, Tensor]:
        """The component parameters that are not None, by name."""
        values = {name: getattr(self, name) for name in self.component_parameters}
        return {name: value for name, value in values.items() if value is not None}

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        new = super().expand(batch_shape, _instance)
        self._expand_into(new, torch.Size(batch_shape))
        return new

    def _like(self, components, logits):
        kind: Any = type(self)
        if components.scale.kind != self.components.scale.kind:
            kind = self.linear_image
        kept = self.transport in kind.transports
        return kind(
            **dict(zip(kind.component_parameters, components.parameters, strict=False)),
            component_logits=logits,
            transport=self.transport if kept else "auto",
            weight_gradient=self.weight_gradient,
            validate_args=self._validate_args,
        )

    @classmethod
    def from_samples(
        cls: type[ParametricMixtureT],
        samples: Tensor,
        num_components: int,
        *,
        seed: int | None = 0,
        centered: bool = False,
        **options: Any,
    ) -> ParametricMixtureT:
        """Fit a mixture to samples by maximum likelihood.

        Expectation maximization, the best of several k-means++ starts. It needs scikit-learn.
        Variances do not fall much below a millionth of those of the samples.

        Args:
            samples: ``(N, D)``.
            num_components: K, the number of components.
            seed: of the starts; None for random ones.
            centered: fit a :class:`~pyro_mixtures.distributions.GaussianScaleMixture` without
                ``locs``.
            options: ``transport``, ``weight_gradient`` and ``validate_args`` of the class.

        Returns:
            A mixture without batch shape, in the dtype and on the device of the samples, whose
            parameters carry no gradient. (Of a ``GaussianScaleMixture`` the component scales have
            the geometric mean 1.)

        Raises:
            ImportError: if scikit-learn is missing.
            ValueError: for samples of another shape, fewer than K, or not finite, for K < 1, and
                for ``centered`` in a family that always has ``locs``.

        Example:
            >>> from pyro_mixtures.distributions import MixtureOfDiagNormals
            >>> _ = torch.manual_seed(0)
            >>> samples = torch.cat([torch.randn(500, 1) - 5, torch.randn(1500, 1) + 5])
            >>> q = MixtureOfDiagNormals.from_samples(samples, 2)
            >>> q.log_weights.exp().sort().values
            tensor([0.2500, 0.7500])
        """
        return fit(cls, samples, num_components, seed, centered, options)
