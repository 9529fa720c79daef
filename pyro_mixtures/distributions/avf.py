"""Elliptical distributions with adaptive velocity fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.distributions.elliptical import (
    EllipticalDistribution,
    EllipticalNormal,
    EllipticalStudentT,
)
from pyro_mixtures.numerics.precision import at_least_single
from pyro_mixtures.numerics.validation import check_choice
from pyro_mixtures.samples.shapes import folded
from pyro_mixtures.velocity.rotations import rotations
from pyro_mixtures.velocity.row_rotations import row_rotations

if TYPE_CHECKING:
    from typing_extensions import Self

FIELDS = {"axes": rotations, "rows": row_rotations}
CONTROL_VAR = {"control_var": constraints.independent(constraints.real, 3)}


class AVFElliptical(EllipticalDistribution):
    r"""An elliptical distribution with an adaptive velocity field: a control variate that learns.

    When the Cholesky factor L changes, samples move by reparameterization and, besides, turn in
    the whitened space, which leaves the distribution as it is. ``control_var`` holds B and C, each
    ``(M, D)``, of which ``planes`` makes the rotation that goes with :math:`L_{ab}`:

    - ``"axes"``: in the plane of the axes a and b, with the velocity :math:`(B^T C)_{ab}`: the
      paper's Eq. 10, and Pyro's class (:func:`~pyro_mixtures.velocity.rotations.rotations`).
    - ``"rows"``: in the plane of the row a of :math:`B^T C` and the axis b. It costs less, and
      reaches a much lower variance where the cost's gradients in the whitened space have a
      direction in common, down to a tenth of that of the axes; elsewhere it is about equal. A
      large learning rate upsets it more easily
      (:func:`~pyro_mixtures.velocity.row_rotations.row_rotations`).

    The gradient of L is unbiased for every B and C; its variance is least for ones that depend on
    the cost. After ``backward`` the gradient of ``control_var`` is not that of the cost: it is an
    unbiased estimate of the gradient of

    .. math:: \tfrac12 \sum_{a \ge b} \operatorname{Var} G_{ab}

    where G is the gradient of L that comes with the cost's gradient at the samples. One optimizer
    can so step all parameters; :func:`~pyro_mixtures.infer.avf_optim_args` gives ``control_var`` a
    learning rate of its own: 0.03, say, or for the rows' planes 0.01 and less. A good start is
    B = 0, the plain gradient, and a small random C. Not both may be zero, nor rows be equal: they
    would stay so. Where gradients are clipped by their joint norm, leave out ``control_var``,
    whose own would dominate.

    If the cost holds ``log_prob(z)``, that variance is the one of the part which comes through the
    sample, not of the whole gradient, and less is gained: use ``entropy()``, or ``score_parts`` as
    Pyro's ``Trace_ELBO`` and its kin do.

    A distribution of your own has ``loc``, ``scale_tril`` and ``control_var`` among its parameters
    and supplies what :class:`~pyro_mixtures.distributions.elliptical.EllipticalDistribution` asks
    for.

    Args:
        given: all parameters by name, tensors that broadcast against each other.
        planes: ``"axes"`` or ``"rows"``.
        validate_args: check the values of the arguments and of ``log_prob``'s argument.

    Example:
        >>> import math
        >>> class AVFMultivariateLaplace(AVFElliptical):  # density ~ exp(-|L^-1 (z - mu)|)
        ...     arg_constraints = AVFMultivariateNormal.arg_constraints
        ...     def __init__(self, loc, scale_tril, control_var, *, validate_args=None):
        ...         given = {"loc": loc, "scale_tril": scale_tril, "control_var": control_var}
        ...         super().__init__(given, validate_args=validate_args)
        ...     def _rsample_white(self, shape):
        ...         direction = torch.nn.functional.normalize(torch.randn(shape), dim=-1)
        ...         radius = torch._standard_gamma(torch.full(shape[:-1], float(shape[-1])))
        ...         return direction * radius.unsqueeze(-1)
        ...     def _log_density(self, squared_radius):
        ...         dim = self.event_shape[0]
        ...         volume = math.log(2) + dim / 2 * math.log(math.pi)
        ...         constant = math.lgamma(dim / 2) - math.lgamma(dim) - volume
        ...         return constant - squared_radius.sqrt()
        >>> q = AVFMultivariateLaplace(torch.zeros(1), 2 * torch.eye(1), torch.randn(2, 1, 1))
        >>> reference = torch.distributions.Laplace(0.0, 2.0)
        >>> torch.allclose(q.log_prob(torch.ones(1)), reference.log_prob(torch.tensor(1.0)))
        True
    """

    control_var: Tensor
    planes: str

    def __init__(
        self,
        given: Mapping[str, Any],
        *,
        planes: str = "axes",
        validate_args: bool | None = None,
    ) -> None:
        check_choice("planes", planes, tuple(FIELDS))
        self.planes = planes
        super().__init__(given, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        new = super().expand(batch_shape, _instance)
        new.planes = self.planes
        return new

    @property
    def field(self) -> Any:
        """The velocity field that goes with the planes."""
        return FIELDS[self.planes]

    @classmethod
    def _parameter_shapes(cls) -> dict[str, str]:
        return {**super()._parameter_shapes(), "control_var": "2MD"}

    @property
    def field_parameters(self) -> tuple[Tensor, ...]:
        return (self.control_var,)

    def variance_gradient(self, value: Tensor, grad: Tensor) -> Tensor:
        r"""What ``backward`` leaves in ``control_var.grad``, to be used by hand.

        The gradient of :math:`\tfrac12 \sum_{a \ge b} \operatorname{Var} G_{ab}`, where G is the
        sum of the gradients of ``scale_tril`` over the samples.

        Args:
            value: samples of this distribution, ``(*X, D)``.
            grad: gradients of the cost at them, ``(*X, D)``.

        Returns:
            An estimate for each distribution of the batch, ``(*B, 2, M, D)``. B is the batch
            before ``expand`` added dimensions on the left, which count as samples.

        Raises:
            ValueError: when the two shapes differ.

        Example:
            >>> _ = torch.manual_seed(0)
            >>> control_var = torch.stack([torch.zeros(1, 3), 0.1 * torch.randn(1, 3)])
            >>> q = AVFMultivariateNormal(torch.zeros(3), torch.eye(3), control_var)
            >>> for _ in range(500):
            ...     z = q.sample((10,))
            ...     control_var -= 0.03 * q.variance_gradient(z, grad=z.cos())
        """
        if value.shape != grad.shape:
            raise ValueError(
                f"Expected grad of the shape of value, {tuple(value.shape)}, but got"
                f" {tuple(grad.shape)}"
            )
        with torch.no_grad():
            core, z, _ = folded(self, self._validated(value))
            grad = folded(self, grad)[1]
            parameters = (core.scale_tril, core.control_var)
            return self.field(*at_least_single(core.white(z), grad, *parameters))[2]


class AVFMultivariateNormal(AVFElliptical, EllipticalNormal):  # type: ignore[override]
    r"""Multivariate Normal whose Cholesky factor learns a control variate for its gradient.

    .. math:: q(z) = N(z \mid \mu, L L^T)

    A drop-in for ``MultivariateNormal(loc, scale_tril=scale_tril)`` with the same samples and
    densities: :class:`AVFElliptical` tells what the other arguments do. The gradient of
    ``scale_tril`` is another, and lower triangular. For S samples it costs O((S + M) D^2), the
    plain one O(S D^2): with few rotations about twice the time.

    Args:
        loc: the mean :math:`\mu`, shape ``(*B, D)``.
        scale_tril: the lower triangular L with a positive diagonal, shape ``(*B, D, D)``.
        control_var: B and C, shape ``(*B, 2, M, D)`` with M >= 1.
        planes: ``"axes"`` or ``"rows"``.
        validate_args: check the values of the arguments and of ``log_prob``'s argument (to be set
            to False under ``torch.func.vmap``, where values cannot be looked at).

    Raises:
        ValueError: for shapes that do not fit, M or D of zero, a factor that is not lower
            triangular with a positive diagonal, NaN, or unknown ``planes``.

    Reference:
        Jankowiak and Karaletsos, *Pathwise Derivatives for Multivariate Distributions* (2019),
        https://arxiv.org/abs/1806.01856, section 3 and appendix C.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> loc = torch.zeros(3, requires_grad=True)
        >>> scale_tril = torch.eye(3).requires_grad_()
        >>> control_var = torch.stack([torch.zeros(1, 3), 0.1 * torch.randn(1, 3)])
        >>> _ = control_var.requires_grad_()
        >>> optimizer = torch.optim.Adam(
        ...     [{"params": [loc, scale_tril]}, {"params": [control_var], "lr": 0.03}], lr=0.01
        ... )
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     q = AVFMultivariateNormal(loc, scale_tril, control_var)
        ...     (q.rsample() - 1).square().sum().backward()
        ...     optimizer.step()
    """

    arg_constraints = {**EllipticalNormal.arg_constraints, **CONTROL_VAR}

    def __init__(
        self,
        loc: Tensor,
        scale_tril: Tensor,
        control_var: Tensor,
        *,
        planes: str = "axes",
        validate_args: bool | None = None,
    ) -> None:
        given = {"loc": loc, "scale_tril": scale_tril, "control_var": control_var}
        super().__init__(given, planes=planes, validate_args=validate_args)


class AVFMultivariateStudentT(AVFElliptical, EllipticalStudentT):  # type: ignore[misc]
    r"""Multivariate Student t distribution with an adaptive velocity field.

    .. math:: z = \mu + L n / \sqrt\tau, \qquad n \sim N(0, 1), \quad
              \tau \sim \mathrm{Gamma}(\nu / 2, \nu / 2)

    A drop-in for Pyro's ``MultivariateStudentT(df, loc, scale_tril)``; as there,
    ``covariance_matrix`` is L L^T. The gradient of ``df`` is that of reparameterized Gammas.

    Args:
        df: the degrees of freedom :math:`\nu`, a positive number or a tensor of shape ``(*B)``.
        loc: :math:`\mu`, shape ``(*B, D)``.
        scale_tril: the lower triangular L with a positive diagonal, shape ``(*B, D, D)``.
        control_var: B and C, shape ``(*B, 2, M, D)`` with M >= 1.
        planes: ``"axes"`` or ``"rows"``.
        validate_args: as for :class:`AVFMultivariateNormal`.

    Raises:
        ValueError: as for :class:`AVFMultivariateNormal`, and for ``df`` that is not positive.

    Reference:
        Jankowiak and Karaletsos, appendix C.1.

    Example:
        >>> control_var = torch.stack([torch.zeros(1, 2), 0.1 * torch.randn(1, 2)])
        >>> q = AVFMultivariateStudentT(4.0, torch.zeros(2), torch.eye(2), control_var)
        >>> q.rsample((5,)).shape
        torch.Size([5, 2])
    """

    arg_constraints = {**EllipticalStudentT.arg_constraints, **CONTROL_VAR}

    def __init__(
        self,
        df: Tensor | float,
        loc: Tensor,
        scale_tril: Tensor,
        control_var: Tensor,
        *,
        planes: str = "axes",
        validate_args: bool | None = None,
    ) -> None:
        if isinstance(df, (int, float)) and isinstance(loc, Tensor):
            df = loc.new_tensor(df)
        given = {"loc": loc, "scale_tril": scale_tril, "control_var": control_var, "df": df}
        super().__init__(given, planes=planes, validate_args=validate_args)
