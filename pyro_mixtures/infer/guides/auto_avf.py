"""Guides with full covariance whose gradients have adaptive velocity fields."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, init_to_median
from pyro.nn import PyroParam
from torch import Tensor, nn

from pyro_mixtures.distributions import AVFMultivariateNormal, AVFMultivariateStudentT
from pyro_mixtures.distributions.avf import FIELDS
from pyro_mixtures.infer.guides.checked_guide import CheckedGuide
from pyro_mixtures.infer.guides.site_quantiles import site_quantiles
from pyro_mixtures.numerics.symmetric import student_t_icdf
from pyro_mixtures.numerics.validation import check_at_least, check_choice


class AutoAVFMultivariateNormal(AutoMultivariateNormal, CheckedGuide):
    """``AutoMultivariateNormal`` whose gradients have a control variate that learns with it.

    The same guide, with a smaller variance of its Cholesky factor's gradient:
    :class:`~pyro_mixtures.distributions.AVFMultivariateNormal`. Its further parameter
    ``control_var (2, M, D)`` follows the gradient of that variance and wants a learning rate of
    its own (:func:`avf_optim_args`): 0.03, say, or with ``planes="rows"`` 0.01 and less.

    It starts with B = 0, the plain gradient. Row a of ``B^T C`` is divided by the guide's scale of
    coordinate a (and, for ``planes="rows"``, by the root of D), so that what was learned stays
    right while the scales change; the posterior's ``control_var`` is therefore not the parameter
    itself.

    Args:
        model: a Pyro model with continuous latent sites.
        num_rotations: M, at least 1.
        init_loc_fn: a per-site initialization function of Pyro.
        init_scale: initial standard deviation of each unconstrained coordinate.
        planes: ``"axes"`` or ``"rows"``, as for the distribution.

    Raises:
        ValueError: for ``num_rotations`` below 1, an ``init_scale`` that is not a positive float,
            or unknown ``planes``.

    Reference:
        Jankowiak and Karaletsos, *Pathwise Derivatives for Multivariate Distributions*, section 3.

    Example:
        >>> import pyro
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> pyro.clear_param_store(); pyro.set_rng_seed(0)
        >>> def model():
        ...     x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        ...     pyro.sample("y", dist.Normal(x.sum(), 0.1), obs=torch.tensor(1.0))
        >>> guide = AutoAVFMultivariateNormal(model, num_rotations=2)
        >>> optimizer = pyro.optim.Adam(avf_optim_args({"lr": 0.01}, {"lr": 0.03}))
        >>> svi = SVI(model, guide, optimizer, Trace_ELBO())
        >>> loss = [svi.step() for _ in range(100)]
    """

    scale: Any  # a PyroParam is set, a tensor is got
    control_var: Any
    num_rotations: int
    planes: str

    def __init__(
        self,
        model: Callable[..., Any],
        num_rotations: int = 1,
        init_loc_fn: Callable[..., Any] = init_to_median,
        init_scale: float = 0.1,
        *,
        planes: str = "axes",
    ) -> None:
        check_at_least(1, num_rotations=num_rotations)
        check_choice("planes", planes, tuple(FIELDS))
        super().__init__(model, init_loc_fn=init_loc_fn, init_scale=init_scale)
        self.num_rotations, self.planes = int(num_rotations), planes

    def _setup_prototype(self, *args, **kwargs):
        super()._setup_prototype(*args, **kwargs)
        c = 0.1 * torch.randn(self.num_rotations, self.latent_dim).to(self.loc)
        self.control_var = nn.Parameter(torch.stack([torch.zeros_like(c), c]))

    def _elliptical_parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        scale = self.scale
        b, c = self.control_var.unbind(-3)
        b = b / scale.detach().unsqueeze(-2)
        if self.planes == "rows":
            c = c / math.sqrt(self.latent_dim)
        control_var = torch.stack([b, c], -3)
        return self.loc, scale.unsqueeze(-1) * self.scale_tril, control_var

    def get_posterior(self, *args: Any, **kwargs: Any) -> AVFMultivariateNormal:
        """The Normal over the packed unconstrained latent vector."""
        self._check_called()
        return AVFMultivariateNormal(*self._elliptical_parameters(), planes=self.planes)


class AutoAVFMultivariateStudentT(AutoAVFMultivariateNormal):
    """A multivariate Student t over all latent sites, with adaptive velocity fields.

    :class:`AutoAVFMultivariateNormal` with heavier tails, of learned degrees of freedom ``df``.

    Args:
        model: a Pyro model with continuous latent sites.
        num_rotations: M, at least 1.
        init_loc_fn: a per-site initialization function of Pyro.
        init_scale: initial scale of each unconstrained coordinate.
        planes: ``"axes"`` or ``"rows"``, as for the distribution.
        init_df: initial degrees of freedom.

    Raises:
        ValueError: as :class:`AutoAVFMultivariateNormal`, and for an ``init_df`` that is not
            positive and finite.

    Example:
        >>> import pyro
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> pyro.clear_param_store(); pyro.set_rng_seed(0)
        >>> def model():
        ...     pyro.sample("x", dist.StudentT(3.0, 0.0, torch.ones(2)).to_event(1))
        >>> guide = AutoAVFMultivariateStudentT(model)
        >>> optimizer = pyro.optim.Adam(avf_optim_args({"lr": 0.01}, {"lr": 0.03}))
        >>> loss = SVI(model, guide, optimizer, Trace_ELBO()).step()
    """

    df: Any
    df_constraint = dist.constraints.softplus_positive

    def __init__(
        self,
        model: Callable[..., Any],
        num_rotations: int = 1,
        init_loc_fn: Callable[..., Any] = init_to_median,
        init_scale: float = 0.1,
        *,
        planes: str = "axes",
        init_df: float = 10.0,
    ) -> None:
        if not (isinstance(init_df, (int, float)) and 0 < init_df < math.inf):
            raise ValueError(f"Expected a finite init_df > 0, but got {init_df!r}")
        super().__init__(model, num_rotations, init_loc_fn, init_scale, planes=planes)
        self._init_df = float(init_df)

    def _setup_prototype(self, *args, **kwargs):
        super()._setup_prototype(*args, **kwargs)
        self.df = PyroParam(self.loc.new_tensor(self._init_df), self.df_constraint)

    def get_base_dist(self) -> Any:
        """The standard Student t distribution, of which the posterior is an affine image."""
        identity = torch.eye(self.latent_dim, dtype=self.loc.dtype, device=self.loc.device)
        return dist.MultivariateStudentT(self.df, torch.zeros_like(self.loc), identity)

    def get_posterior(self, *args: Any, **kwargs: Any) -> AVFMultivariateStudentT:
        """The Student t distribution over the packed unconstrained latent vector."""
        self._check_called()
        return AVFMultivariateStudentT(self.df, *self._elliptical_parameters(), planes=self.planes)

    @torch.no_grad()
    def quantiles(
        self, quantiles: Sequence[float] | Tensor, *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Quantiles of each latent site, as the guides of Pyro give them."""
        loc, scale = self._loc_scale(*args, **kwargs)
        return site_quantiles(
            self, lambda probability: loc + scale * student_t_icdf(probability, self.df), quantiles
        )


def avf_optim_args(
    optim_args: Mapping[str, Any], control_var_args: Mapping[str, Any]
) -> Callable[[str], dict[str, Any]]:
    """Arguments of a Pyro optimizer in which ``control_var`` has its own.

    Args:
        optim_args: for all parameters, such as ``{"lr": 0.01}``.
        control_var_args: replace or complete those for parameters named ``control_var``, which the
            elliptical and the mixture guides with a control variate have, such as
            ``{"lr": 0.03, "betas": (0.5, 0.99)}``.

    Returns:
        What ``pyro.optim.Adam`` and others take in place of a dict.

    Example:
        >>> import pyro
        >>> args = avf_optim_args({"lr": 0.01}, {"lr": 0.03, "betas": (0.5, 0.99)})
        >>> optimizer = pyro.optim.Adam(args)
        >>> args("guide.control_var")
        {'lr': 0.03, 'betas': (0.5, 0.99)}
    """

    def per_parameter(name: str) -> dict[str, Any]:
        own = control_var_args if name.split(".")[-1] == "control_var" else {}
        return {**optim_args, **own}

    return per_parameter
