"""Weights and components: densities, moments, quantiles, parts and images of mixtures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Size, Tensor

from pyro_mixtures.components import Components
from pyro_mixtures.components.quantiles import mixture_icdf, mixture_tails
from pyro_mixtures.distributions import linear
from pyro_mixtures.normals.bounds import mixture_entropy_bounds
from pyro_mixtures.samples.groups import Grouping
from pyro_mixtures.samples.record import SampleRecord
from pyro_mixtures.samples.shapes import Expandable, folded, unfolded

MixtureT = TypeVar("MixtureT", bound="FiniteMixture")


class FiniteMixture(Expandable):
    r"""Weights and components.

    .. math:: q(z) = \sum_j \pi_j q_j(z), \qquad \pi = \mathrm{softmax}(\text{logits})

    What a kind of mixture offers depends on what its components do: of what they lack the error
    names it. Coordinates are those of the event as a vector.

    Attributes:
        components: a value, see :class:`~pyro_mixtures.components.Components`.
        component_logits: of the weights, ``(*B, K)``.
    """

    components: Components
    component_logits: Tensor

    def _like(self: MixtureT, components: Any, logits: Tensor) -> MixtureT:
        """A mixture of this kind with other components and weights, and the same options."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Of the parameters."""
        return self.component_logits.device

    @property
    def num_components(self) -> int:
        """K."""
        return self.component_logits.shape[-1]

    @property
    def log_weights(self) -> Tensor:
        """Normalized logarithms of the weights, ``(*B, K)``."""
        return self.component_logits.log_softmax(-1)

    @property
    def grouping(self) -> Grouping:
        """Groups of the components, which are found when they are first asked for."""
        raise NotImplementedError

    # densities

    def record(self, value: Tensor) -> SampleRecord:
        """What the mixture says of points ``(*X, *E)``, laid out as ``(*B, S, K)``."""
        return self._evaluated(value)[0]

    def _evaluated(self, value: Tensor) -> tuple[SampleRecord, Size]:
        """What it says of a value, and that one's batch."""
        return self._record(self._validated(value))

    def _record(self, value: Tensor) -> tuple[SampleRecord, Size]:
        core, z, shape = folded(self, value)
        return SampleRecord(core.components, core.component_logits, z, core.grouping), shape

    def _result(self, x: Tensor, value: Tensor, shape: Size) -> Tensor:
        """``(*B, S, M)`` as ``(*shape, M)``, in the dtype that goes with a value."""
        dtype = self.component_logits.dtype
        if value.dtype != dtype:
            dtype = torch.promote_types(value.dtype, dtype)
        x = unfolded(x, torch.Size([*shape, x.shape[-1]]))
        return x if x.dtype == dtype else x.to(dtype)

    def component_log_prob(self, value: Tensor) -> Tensor:
        r"""Log densities :math:`\log q_j(z)` of all components, ``(*X, *E) -> (*X, K)``."""
        record, shape = self._evaluated(value)
        return self._result(record.component_log_prob, value, shape)

    def log_prob(self, value: Tensor) -> Tensor:
        record, shape = self._evaluated(value)
        return self._result(record.log_prob, value, shape).squeeze(-1)

    def responsibilities(self, value: Tensor) -> Tensor:
        r"""Posterior probabilities :math:`\pi_j q_j(z) / q(z)` of the components, ``(*X, K)``."""
        record, shape = self._evaluated(value)
        return self._result(record.responsibilities, value, shape)

    # moments and quantiles

    def _averaged(self, x: Tensor) -> Tensor:
        """``(*B, K, D) -> (*B, D)``."""
        return (self.log_weights.exp().unsqueeze(-2).to(x) @ x).squeeze(-2)

    def _event(self, x: Tensor) -> Tensor:
        """``(*X, D) -> (*X, *E)``."""
        return x if len(self.event_shape) == 1 else x.reshape(x.shape[:-1] + self.event_shape)

    @property
    def mean(self) -> Tensor:
        return self._event(self._averaged(self.components.mean))

    @property
    def variance(self) -> Tensor:
        mean = self.components.mean
        spread = (mean - self._averaged(mean).unsqueeze(-2)).square() + self.components.variance
        return self._event(self._averaged(spread))

    @property
    def covariance_matrix(self) -> Tensor:
        r"""Of the coordinates, ``(*B, D, D)``.

        .. math:: \sum_j \pi_j [\Sigma_j + (\mu_j - \mu) (\mu_j - \mu)^T]
        """
        within, mean = self.components.covariance, self.components.mean
        weights = self.log_weights.exp().unsqueeze(-1)  # (*B, K, 1)
        offset = mean - self._averaged(mean).unsqueeze(-2)  # (*B, K, D)
        return (weights.unsqueeze(-1) * within).sum(-3) + offset.mT @ (weights * offset)

    def marginal_cdf(self, value: Tensor) -> Tensor:
        r"""Distribution function of each coordinate, ``(*X, D) -> (*X, D)``.

        .. math:: F_i(z_i) = \sum_k \pi_k F_{ki}(z_i)
        """
        core, z, shape = folded(self, self._event(value))
        cdf, _ = mixture_tails(core.components, core.log_weights, z)  # (*B, S, D)
        return self._result(cdf, value, shape)

    def marginal_icdf(self, value: Tensor) -> Tensor:
        """Quantile of each coordinate, without gradient.

        It is the smallest number whose :meth:`marginal_cdf` reaches the probability, by bisection;
        of 0 and 1 it is the end of the support.

        Args:
            value: probabilities between 0 and 1, of a shape that broadcasts with ``(*B, D)``.

        Raises:
            ValueError: for what is no probability.
            NotImplementedError: for components without distribution functions.
        """
        dtype = self.component_logits.dtype
        value = torch.as_tensor(value, dtype=dtype, device=self.device)
        if self._validate_args and not bool(((0 <= value) & (value <= 1)).all()):
            raise ValueError(f"Expected value to be probabilities in [0, 1], but got {value}")
        value = value.expand(torch.broadcast_shapes(value.shape, (self.event_shape.numel(),)))
        core, probability, shape = folded(self, self._event(value))
        quantile = mixture_icdf(core.components, core.log_weights, probability)  # (*B, S, D)
        return self._result(quantile, value, shape)

    def cdf(self, value: Tensor) -> Tensor:
        """Distribution function of a one-dimensional mixture, ``(*X, *E) -> (*X,)``.

        Raises:
            NotImplementedError: for D > 1.
        """
        self._check_one_dimensional("cdf", "marginal_cdf")
        value = self._validated(value)
        column = value.reshape(*value.shape[: value.dim() - self.event_dim], 1)
        return self.marginal_cdf(column).squeeze(-1)

    def icdf(self, value: Tensor | float) -> Tensor:
        """Quantile of a one-dimensional mixture, without gradient, ``(*X,) -> (*X, *E)``.

        Raises:
            NotImplementedError: for D > 1, and components without distribution functions.
            ValueError: for what is no probability.
        """
        self._check_one_dimensional("icdf", "marginal_icdf")
        dtype = self.component_logits.dtype
        value = torch.as_tensor(value, dtype=dtype, device=self.device)
        return self._event(self.marginal_icdf(value.unsqueeze(-1)))

    def _check_one_dimensional(self, name: str, alternative: str) -> None:
        if self.event_shape.numel() != 1:
            raise NotImplementedError(
                f"{name} is for one dimension, but D = {self.event_shape.numel()}; use"
                f" {alternative}"
            )

    def entropy_bounds(self) -> tuple[Tensor, Tensor]:
        """A lower and an upper bound of the entropy, each ``(*B,)``, without samples.

        They are differentiable, exact for one component, and agree where components are far apart
        or coincide: :func:`~pyro_mixtures.normals.mixture_entropy_bounds`.

        Raises:
            NotImplementedError: for components that are not Normal.

        Reference:
            Kolchinsky and Tracey, *Estimating mixture entropy with pairwise distances*, Entropy
            19(7), 2017.

        Example:
            >>> from pyro_mixtures.distributions import MixtureOfDiagNormals
            >>> locs = torch.tensor([[-2.0], [2.0]])
            >>> q = MixtureOfDiagNormals(locs, torch.ones(2, 1), torch.zeros(2))
            >>> q.entropy_bounds()  # the entropy is 2.0517
            (tensor(1.9852), tensor(2.1118))
        """
        return mixture_entropy_bounds(self.log_weights, *self.components.normals("entropy_bounds"))

    # parts and images

    def marginal(self: MixtureT, dims: int | Iterable[int]) -> MixtureT:
        """The marginal of some coordinates: a mixture of the same class, transport and gradient.

        Args:
            dims: the coordinates, in the order that they are to have; negative ones count from
                the last.

        Returns:
            A mixture with the same batch shape, differentiable in the parameters of this one.

        Raises:
            ValueError: for no coordinate, one named twice, or one that there is not.
            NotImplementedError: for components that are not Normal.

        Example:
            >>> from pyro_mixtures.distributions import MixtureOfDiagNormals
            >>> locs = torch.tensor([[0.0, 1.0, 2.0], [0.0, 3.0, 6.0]])
            >>> q = MixtureOfDiagNormals(locs, torch.ones(2, 3), torch.zeros(2))
            >>> q.marginal([2, 1]).mean
            tensor([4., 2.])
        """
        known = linear.checked_dims(dims, self.event_shape.numel())
        return self._like(self.components.marginal(known), self.component_logits)

    def condition(self: MixtureT, dims: int | Iterable[int], value: Tensor) -> MixtureT:
        r"""The conditional of the others when some coordinates are known: a mixture of this class.

        .. math::
            q(z_2 \mid z_1) = \sum_j \pi_j(z_1) q_j(z_2 \mid z_1), \qquad
            \pi_j(z_1) \propto \pi_j q_j(z_1)

        Args:
            dims: the known coordinates; negative ones count from the last.
            value: of these, in their order, ``(*X, len(dims))``; X broadcasts with the batch.

        Returns:
            A mixture over the others, in their order, with the same transport and gradient. Its
            batch shape is that of X and this mixture's; it is differentiable in ``value`` and the
            parameters.

        Raises:
            ValueError: for no coordinate, all of them, one named twice, one that there is not, or
                a value whose shape does not fit.
            NotImplementedError: for components that are not Normal.

        Example:
            >>> from pyro_mixtures.distributions import MixtureOfDiagNormals
            >>> locs = torch.tensor([[-1.0, -5.0], [1.0, 5.0]])
            >>> q = MixtureOfDiagNormals(locs, torch.ones(2, 2), torch.zeros(2))
            >>> q.condition([0], torch.tensor([[-3.0], [0.0]])).mean  # 5 tanh(z_0)
            tensor([[-4.9753],
                    [ 0.0000]])
        """
        self.components.normals("condition")  # else the error were that of a marginal
        size = self.event_shape.numel()
        known = linear.checked_dims(dims, size)
        others = [dim for dim in range(size) if dim not in known]
        if not others:
            raise ValueError(f"Expected dims to leave a coordinate, but got all of them: {dims!r}")
        linear.check_vectors("value", value, len(known), self.batch_shape)
        value = value.to(self.component_logits)
        logits = self.component_logits + self.marginal(known).component_log_prob(value)
        ordered = self.components.marginal(known + others)
        return self._like(ordered.condition(value), logits)

    def affine(self, matrix: Tensor, offset: Tensor | None = None) -> FiniteMixture:
        """The distribution of ``matrix @ z + offset``.

        Args:
            matrix: ``(D,)`` to multiply each coordinate by a number other than zero, which keeps
                the class; or ``(D', D)`` of full rank with D' <= D, which makes
                :class:`~pyro_mixtures.distributions.MixtureOfNormals` of a family of diagonal
                Normals, :class:`~pyro_mixtures.distributions.MixtureOfNormalsSharedCovariance`
                if they share their covariance. ``MixtureSameFamily`` stays what it is, with
                components over vectors.
            offset: ``(*X, D')`` where X broadcasts with the batch, or None for zero.

        Returns:
            A mixture with the same gradient and, if its class has it, the same transport. It is
            differentiable in the arguments and the parameters.

        Raises:
            ValueError: for shapes that do not fit, zeros in ``(D,)``, and a rank below D'.
            NotImplementedError: for components that are not Normal.

        Example:
            >>> from pyro_mixtures.distributions import MixtureOfDiagNormals
            >>> locs = torch.tensor([[-1.0, -5.0], [1.0, 5.0]])
            >>> q = MixtureOfDiagNormals(locs, torch.ones(2, 2), torch.zeros(2))
            >>> q.affine(torch.tensor([[1.0, 1.0]]), torch.tensor([4.0])).mean  # of the sum plus 4
            tensor([4.])
        """
        linear.check_matrix(matrix, self.event_shape.numel())
        matrix = matrix.to(self.component_logits)
        if self._validate_args:
            linear.check_rank(matrix)
        if offset is not None:
            linear.check_vectors("offset", offset, matrix.shape[0], self.batch_shape)
            offset = offset.to(matrix)
        return self._like(self.components.affine(matrix, offset), self.component_logits)
