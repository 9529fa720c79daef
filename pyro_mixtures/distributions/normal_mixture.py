"""What mixtures of Normals share: moments, quantiles, conditionals, entropy bounds, fits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyro_mixtures.distributions import linear
from pyro_mixtures.distributions.bounds import mixture_entropy_bounds
from pyro_mixtures.distributions.from_samples import fit
from pyro_mixtures.distributions.parametric_mixture import ParametricMixture
from pyro_mixtures.distributions.quantiles import mixture_cdf, mixture_icdf

NormalMixtureT = TypeVar("NormalMixtureT", bound="NormalMixture")


class NormalMixture(ParametricMixture):
    """Base of the mixtures whose components are Normal.

    A family supplies ``_normals``, and inherits what follows from it.
    """

    @property
    def _normals(self) -> tuple[Tensor, Tensor]:
        """Means ``(*B, K, D)`` and scales of the components.

        Standard deviations ``(*B, K, D)`` or Cholesky factors of the covariances
        ``(*B, K, D, D)``; a scale that all components share may have K = 1.
        """
        raise NotImplementedError

    @property
    def mean(self):
        return (self.log_weights.exp().unsqueeze(-2) @ self._normals[0]).squeeze(-2)

    @property
    def variance(self):
        locs, stddev = self._marginals
        spread = (locs - self.mean.unsqueeze(-2)).square() + stddev.square()
        return (self.log_weights.exp().unsqueeze(-2) @ spread).squeeze(-2)

    @property
    def covariance_matrix(self) -> Tensor:
        r"""Of the mixture, ``(*B, D, D)``.

        .. math:: \sum_j \pi_j [\Sigma_j + (\mu_j - \mu) (\mu_j - \mu)^T]
        """
        weights = self.log_weights.exp().unsqueeze(-1)  # (*B, K, 1)
        offset = self._normals[0] - self.mean.unsqueeze(-2)  # (*B, K, D)
        within = (weights.unsqueeze(-1) * self._component_covariances).sum(-3)
        return within + offset.mT @ (weights * offset)

    @property
    def _component_covariances(self) -> Tensor:
        """``(*B, K or 1, D, D)``."""
        locs, scales = self._normals
        if scales.dim() > locs.dim():
            scales = scales.tril()  # no gradients above the diagonal
            return scales @ scales.mT
        return scales.square().diag_embed()

    @property
    def _marginals(self) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of each component's coordinates, ``(*B, K, D)``."""
        locs, scales = self._normals
        if scales.dim() > locs.dim():
            scales = scales.square().sum(-1).sqrt()
        return locs, scales.expand_as(locs)

    def marginal_cdf(self, value: Tensor) -> Tensor:
        r"""Distribution function of each coordinate, ``(*X, D) -> (*X, D)``.

        .. math:: F_i(z_i) = \sum_k \pi_k \Phi((z_i - \mu_{ki}) / \sigma_{ki})
        """
        return mixture_cdf(value, self.log_weights, *self._marginals)

    def marginal_icdf(self, value: Tensor) -> Tensor:
        """Quantile of each coordinate, without gradient, by bisection of :meth:`marginal_cdf`.

        Args:
            value: probabilities between 0 and 1, of a shape that broadcasts with ``(*B, D)``.

        Raises:
            ValueError: for what is no probability.
        """
        value = torch.as_tensor(value)
        if self._validate_args and not bool(((0 <= value) & (value <= 1)).all()):
            raise ValueError(f"Expected value to be probabilities in [0, 1], but got {value}")
        return mixture_icdf(value, self.log_weights, *self._marginals)

    def cdf(self, value):
        """Distribution function of a one-dimensional mixture, ``(*X, 1) -> (*X,)``.

        Raises:
            NotImplementedError: for D > 1.
        """
        self._check_one_dimensional("cdf", "marginal_cdf")
        return self.marginal_cdf(self._validated(value)).squeeze(-1)

    def icdf(self, value):
        """Quantile of a one-dimensional mixture, without gradient, ``(*X,) -> (*X, 1)``.

        Raises:
            NotImplementedError: for D > 1.
            ValueError: for what is no probability.
        """
        self._check_one_dimensional("icdf", "marginal_icdf")
        return self.marginal_icdf(torch.as_tensor(value).unsqueeze(-1))

    def _check_one_dimensional(self, name: str, alternative: str) -> None:
        if self.event_shape != (1,):
            raise NotImplementedError(
                f"{name} is for one dimension, but D = {self.event_shape[0]}; use {alternative}"
            )

    def marginal(self: NormalMixtureT, dims: int | Iterable[int]) -> NormalMixtureT:
        """The law of some coordinates: a mixture of the same class, transport and gradient.

        Args:
            dims: the coordinates, in the order that they are to have; negative ones count from
                the last.

        Returns:
            A mixture with the same batch shape, differentiable in the parameters of this one.

        Raises:
            ValueError: for no coordinate, one named twice, or one that there is not.

        Example:
            >>> from pyro_mixtures.distributions import MixtureOfDiagNormals
            >>> locs = torch.tensor([[0.0, 1.0, 2.0], [0.0, 3.0, 6.0]])
            >>> q = MixtureOfDiagNormals(locs, torch.ones(2, 3), torch.zeros(2))
            >>> q.marginal([2, 1]).mean
            tensor([4., 2.])
        """
        indices = linear.checked_dims(dims, self.event_shape[0])
        parameters = linear.select(self._given, self.component_parameters, indices)
        return self._like(type(self), parameters, self.component_logits)

    def condition(
        self: NormalMixtureT, dims: int | Iterable[int], value: Tensor
    ) -> NormalMixtureT:
        r"""The law of the other coordinates when some are known: a mixture of the same class.

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

        Example:
            >>> from pyro_mixtures.distributions import MixtureOfDiagNormals
            >>> locs = torch.tensor([[-1.0, -5.0], [1.0, 5.0]])
            >>> q = MixtureOfDiagNormals(locs, torch.ones(2, 2), torch.zeros(2))
            >>> q.condition([0], torch.tensor([[-3.0], [0.0]])).mean  # 5 tanh(z_0)
            tensor([[-4.9753],
                    [ 0.0000]])
        """
        known = linear.checked_dims(dims, self.event_shape[0])
        others = [dim for dim in range(self.event_shape[0]) if dim not in known]
        if not others:
            raise ValueError(f"Expected dims to leave a coordinate, but got all of them: {dims!r}")
        linear.check_vectors("value", value, len(known), self.batch_shape)
        value = value.to(self.component_logits)
        logits = self.component_logits + self.marginal(known).component_log_prob(value)
        ordered = self.marginal(known + others)
        parameters = linear.condition(
            ordered._given, self.component_parameters, ordered._normals, value
        )
        return self._like(type(self), parameters, logits)

    def affine(self, matrix: Tensor, offset: Tensor | None = None) -> NormalMixture:
        """The law of ``matrix @ z + offset``.

        Args:
            matrix: ``(D,)`` to multiply each coordinate by a number other than zero, which keeps
                the class; or ``(D', D)`` of full rank with D' <= D, which makes
                :class:`~pyro_mixtures.distributions.MixtureOfNormals` of a family of diagonal
                Normals, :class:`~pyro_mixtures.distributions.MixtureOfNormalsSharedCovariance`
                if they share their covariance.
            offset: ``(*X, D')`` where X broadcasts with the batch, or None for zero.

        Returns:
            A mixture with the same gradient and, if its class has it, the same transport. It is
            differentiable in the arguments and the parameters.

        Raises:
            ValueError: for shapes that do not fit, zeros in ``(D,)``, and a rank below D'.

        Example:
            >>> from pyro_mixtures.distributions import MixtureOfDiagNormals
            >>> locs = torch.tensor([[-1.0, -5.0], [1.0, 5.0]])
            >>> q = MixtureOfDiagNormals(locs, torch.ones(2, 2), torch.zeros(2))
            >>> q.affine(torch.tensor([[1.0, 1.0]]), torch.tensor([4.0])).mean  # of the sum plus 4
            tensor([4.])
        """
        linear.check_matrix(matrix, self.event_shape[0])
        matrix = matrix.to(self.component_logits)
        if self._validate_args:
            linear.check_rank(matrix)
        if matrix.dim() == 1:
            family: type[NormalMixture] = type(self)
            parameters = linear.rescale(self._given, self.component_parameters, matrix)
        else:
            locs, scale_tril = linear.transform(self._normals, matrix)
            family = self._full_covariance_family
            if family.component_parameters["scale_tril"] == "DD":
                scale_tril = scale_tril[..., 0, :, :]
            parameters = {"locs": locs, "scale_tril": scale_tril}
        if offset is not None:
            linear.check_vectors("offset", offset, matrix.shape[0], self.batch_shape)
            locs = parameters.get("locs", self._normals[0])
            parameters["locs"] = locs + offset.to(locs).unsqueeze(-2)
        return self._like(family, parameters, self.component_logits)

    def entropy_bounds(self) -> tuple[Tensor, Tensor]:
        """A lower and an upper bound of the entropy, each ``(*B,)``, without samples.

        They are differentiable, exact for one component, and agree where components are far apart
        or coincide: :func:`~pyro_mixtures.distributions.bounds.mixture_entropy_bounds`.

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
        return mixture_entropy_bounds(self.log_weights, *self._normals)

    @classmethod
    def from_samples(
        cls: type[NormalMixtureT],
        samples: Tensor,
        num_components: int,
        *,
        seed: int | None = 0,
        centered: bool = False,
        **options: Any,
    ) -> NormalMixtureT:
        """Fit a mixture to samples by maximum likelihood.

        Expectation maximization, the best of several k-means++ starts. It needs scikit-learn.
        Variances do not fall much below a millionth of those of the samples.

        Args:
            samples: ``(N, D)``.
            num_components: K.
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

    @property
    def _given(self) -> dict[str, Tensor]:
        """The component parameters that are not None, by name."""
        values = {name: getattr(self, name) for name in self.component_parameters}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def _full_covariance_family(self) -> type[NormalMixture]:
        """The class of linear images of this mixture."""
        from pyro_mixtures.distributions import MixtureOfNormals, MixtureOfNormalsSharedCovariance

        letters = {k: v for k, v in self.component_parameters.items() if k != "locs"}.values()
        if any(value.endswith("DD") for value in letters):
            return type(self)
        own = any("K" in value for value in letters)
        return MixtureOfNormals if own else MixtureOfNormalsSharedCovariance

    def _like(
        self, family: type[NormalMixtureT], parameters: dict[str, Tensor], logits: Tensor
    ) -> NormalMixtureT:
        """A mixture with other parameters and these options."""
        arguments: dict[str, Any] = {**parameters, "component_logits": logits}
        if self.transport in family.transports:
            arguments["transport"] = self.transport
        arguments["weight_gradient"] = self.weight_gradient
        return family(**arguments, validate_args=self._validate_args)
