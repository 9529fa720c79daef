"""Mixture of diagonal Normals whose weights' gradient learns to have less variance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.components import Diagonal, LearnedHub
from pyro_mixtures.distributions.mixture_of_diag_normals import MixtureOfDiagNormals
from pyro_mixtures.distributions.parametric_mixture import ParametricMixture

if TYPE_CHECKING:
    from typing_extensions import Self


class AVFMixtureOfDiagNormals(MixtureOfDiagNormals):
    r"""A :class:`MixtureOfDiagNormals` whose weights' gradient learns to have less variance.

    Its samples, densities and other gradients are those of the base class. The weights' gradient
    comes from a displacement of the components to a hub, and is unbiased for any hub; the base
    class takes, for each group C of components, the Normal of the group's mean :math:`\mu_C` and
    standard deviation :math:`\sigma_C`. Here the hub may depart from it, to the mean and scale

    .. math::
        \mu_C + \sigma_C \frac{a_1}{\rho}, \qquad \sigma_C \exp \frac{a_2}{\rho}, \qquad
        a = \sum_{k \in C} \frac{\pi_k}{\pi_C} c_k, \quad \rho = \sqrt{1 + |a|^2 / 0.7^2},

    where c is ``control_var``: a row for each component, so that groups may change, and zero for
    the base class. After ``backward`` the gradient of ``control_var`` is not that of the cost: for
    each group it is an unbiased estimate of what is proportional to the gradient of

    .. math:: \log V + 2 |a|^2,

    where V is the second moment of the gradient of the group's logits that comes with the cost's
    gradient at a sample
    (:func:`~pyro_mixtures.velocity.adaptive_displacement.variance_gradient`). One optimizer can so
    step all parameters; :func:`~pyro_mixtures.infer.avf_optim_args` gives ``control_var`` a
    learning rate of its own: 0.01, or 0.003 with one sample a step. The bound and the second term
    keep few samples, of which none shows the tails, from leading the hub astray.

    It helps where components overlap in several dimensions and the cost is near to quadratic: to
    two thirds of the variance as a rule, to a tenth at best, with 8 samples a step and that
    learning rate; to less than a half as a rule with 100 samples. Elsewhere it gains little: for
    costs that oscillate, for the ELBO of a mixture that has come near its target, in two
    dimensions; and nothing in one, where the field is unique, or where every component is a group
    of its own. A ``control_var`` that needs no gradient costs up to a fifth more than the base
    class's ``rsample`` and ``backward``, one that does two to three times as much. Where gradients
    are clipped by their joint norm, leave it out.

    Args:
        locs: means :math:`\mu`, shape ``(*B, K, D)``.
        coord_scale: standard deviations :math:`\sigma > 0`, shape ``(*B, K, D)``.
        component_logits: unnormalized log weights, shape ``(*B, K)``.
        control_var: c, in units of the hub's scale and logarithms of it, shape ``(*B, 2, K, D)``.
        transport: ``"displacement"``, the only one with a hub to choose.
        weight_gradient: as for the base class; with ``"hybrid"`` nothing is left to learn.
        validate_args: as for the base class.

    Raises:
        ValueError: as the base class, and for a ``control_var`` of another shape or with NaN.

    Reference:
        Jankowiak and Karaletsos, *Pathwise Derivatives for Multivariate Distributions* (2019),
        https://arxiv.org/abs/1806.01856, section 3 and appendix D.7.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> locs, logits = torch.randn(5, 10) / 3, torch.zeros(5, requires_grad=True)
        >>> control_var = torch.zeros(2, 5, 10, requires_grad=True)
        >>> optimizer = torch.optim.Adam([control_var], lr=0.01)
        >>> def gradient():
        ...     logits.grad = None
        ...     optimizer.zero_grad()
        ...     q = AVFMixtureOfDiagNormals(locs, torch.ones(5, 10), logits, control_var)
        ...     q.rsample((8,)).square().sum().backward()
        ...     return logits.grad
        >>> before = torch.stack([gradient() for _ in range(100)]).var(0).sum()
        >>> for _ in range(200):
        ...     _ = gradient()
        ...     optimizer.step()
        >>> after = torch.stack([gradient() for _ in range(100)]).var(0).sum()
        >>> bool(after < before / 2)
        True
    """

    arg_constraints = {
        **MixtureOfDiagNormals.arg_constraints,
        "control_var": constraints.independent(constraints.real, 3),
    }
    component_parameters = {**MixtureOfDiagNormals.component_parameters, "control_var": "2KD"}
    transports = LearnedHub.transports

    control_var: Tensor

    def __init__(
        self,
        locs: Tensor,
        coord_scale: Tensor,
        component_logits: Tensor,
        control_var: Tensor,
        *,
        transport: str = "displacement",
        weight_gradient: str = "clustered",
        validate_args: bool | None = None,
    ) -> None:
        given = {"locs": locs, "coord_scale": coord_scale, "control_var": control_var}
        ParametricMixture.__init__(
            self,
            given,
            component_logits,
            transport=transport,
            weight_gradient=weight_gradient,
            validate_args=validate_args,
        )

    @staticmethod
    def _components(locs, coord_scale, control_var):  # type: ignore[override]
        return LearnedHub(locs, Diagonal(coord_scale), control_var)

    @classmethod
    def from_samples(cls, samples: Tensor, num_components: int, **options: Any) -> Self:
        """Fit a mixture to samples by maximum likelihood; its ``control_var`` is zero.

        Arguments and errors: :meth:`MixtureOfDiagNormals.from_samples`.
        """
        fit_options = {name: options.pop(name) for name in ("seed", "centered") if name in options}
        fitted = MixtureOfDiagNormals.from_samples(samples, num_components, **fit_options)
        control_var = fitted.locs.new_zeros(2, *fitted.locs.shape)
        return cls(
            fitted.locs, fitted.coord_scale, fitted.component_logits, control_var, **options
        )
