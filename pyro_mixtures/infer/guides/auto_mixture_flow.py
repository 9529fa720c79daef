"""The guide with a flow on a mixture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import pyro
import torch
from pyro.params.param_store import param_with_module_name
from torch import Tensor, nn
from torch.distributions import AffineTransform, ComposeTransform, Transform

from pyro_mixtures.distributions import MixtureDistribution, MixtureFlow, TransformedDistribution
from pyro_mixtures.distributions.moving import modules_of, moved_back, without_memory
from pyro_mixtures.infer.guides.auto_diagonal_normal_mixture import AutoDiagonalNormalMixture
from pyro_mixtures.infer.guides.site_quantiles import site_quantiles
from pyro_mixtures.infer.guides.starting_points import InitLoc

DRAWS = 10_000
"""For moments and quantiles, which flows have no formulas for."""


class AutoMixtureFlow(AutoDiagonalNormalMixture):
    r"""A flow on a mixture of K diagonal Normals, over all latent sites, unconstrained.

    Pyro's ``AutoNormalizingFlow`` with a mixture at its base. A flow alone cannot tear a mode in
    two, and a mixture alone needs many components for a bent one.

    Each component starts where the flow leads to its starting point (at that point itself, if
    the flow has no inverse). With ``init`` the flow works in the units that this finds. A flow
    near the identity keeps the widths of components.

    Args:
        model: a Pyro model with continuous latent sites.
        num_components: K, at least 1.
        init_transform_fn: from the number of latent coordinates to a transform of vectors of that
            size, as for ``AutoNormalizingFlow``: ``functools.partial(iterated, 2,
            spline_coupling)``, say. Transforms without an inverse serve for objectives that draw
            from the guide, and not for those that draw from each component.
        init_loc_fn: as for :class:`~pyro_mixtures.infer.AutoMixture`, and what follows, too.
        init_scale: of each component, below the flow.
        transport: as there.
        weight_gradient: as there.
        estimator: of the mixture below the flow.
        init: as there. (The starting mixture of ``"modes"`` is that below the flow, with means
            that the flow leads to the modes.)

    Raises:
        ValueError: as there, and at the first call for an ``init_transform_fn`` that returns no
            transform, or a transform that does not fit
            (:class:`~pyro_mixtures.distributions.MixtureFlow`).
        NotImplementedError: as there, and by ``set_posterior`` and ``from_mixture``, for the
            posterior is no mixture (:meth:`set_base`).

    Example:
        >>> import functools, torch, pyro, pyro.distributions as dist
        >>> from pyro.distributions.transforms import iterated, spline_coupling
        >>> from pyro.infer import SVI
        >>> from pyro_mixtures.infer import BaselinedTrace_ELBO
        >>> pyro.clear_param_store(); pyro.set_rng_seed(0)
        >>> def model():
        ...     x = pyro.sample("x", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        ...     radius = x.norm(dim=-1)
        ...     pyro.sample("y", dist.Normal(radius, 0.2), obs=torch.tensor(2.0))
        >>> flow = functools.partial(iterated, 2, spline_coupling)
        >>> guide = AutoMixtureFlow(model, 4, flow, init_scale=0.5)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), BaselinedTrace_ELBO())
        >>> loss = [svi.step() for _ in range(10)]
        >>> guide.get_posterior().component_log_prob(torch.zeros(2)).shape
        torch.Size([4])

    The parameters are ``locs (K, D)``, ``coord_scale (K, D)`` and ``component_logits (K,)``, and
    those of the flow. For another mixture below the flow a class of your own has
    ``init_components`` and ``make_mixture``, as :class:`~pyro_mixtures.infer.AutoMixture` tells.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        num_components: int,
        init_transform_fn: Callable[[int], Transform],
        init_loc_fn: InitLoc | None = None,
        init_scale: float = 0.1,
        *,
        transport: str | None = None,
        weight_gradient: str = "clustered",
        estimator: str | Callable[[Any], Any] | None = None,
        init: str | None = None,
    ) -> None:
        if isinstance(init_transform_fn, nn.Module) or not callable(init_transform_fn):
            raise ValueError(
                "Expected init_transform_fn to make a transform of the number of latent"
                f" coordinates, but got {init_transform_fn!r}"
            )
        super().__init__(
            model,
            num_components,
            init_loc_fn,
            init_scale,
            transport=transport,
            weight_gradient=weight_gradient,
            estimator=estimator,
            init=init,
        )
        self._init_transform_fn: Callable[[int], Transform] | None = init_transform_fn
        self._made: tuple[Transform, ...] = ()  # a module in a tuple is not registered twice

    # the flow

    def _setup_prototype(self, *args, **kwargs):
        self._made = ()
        super()._setup_prototype(*args, **kwargs)
        try:
            self._transforms()
        except Exception:
            self.prototype_trace = None  # to be set up again by the next call
            raise

    def _transforms(self) -> list[Transform]:
        """The flow, in units if there are some, of parameters as Pyro's store has them."""
        if not self._made:
            self._made = (self._new_transform(),)
            self.transforms = nn.ModuleList(modules_of(self._made))
        if self._pyro_context.active and not pyro.settings.get("module_local_params"):
            modules: Any = self._modules["transforms"]
            for name, value in modules.named_parameters():
                self._check_stored(param_with_module_name("transforms", name), value.shape)
            full_name = self._pyro_get_fullname("transforms")
            pyro.module(full_name, modules, update_module_params=True)
        if self.prior_units is None:
            return list(self._made)
        return [AffineTransform(0.0, 1 / self.prior_units), *self._made] + [
            AffineTransform(0.0, self.prior_units)
        ]

    def _new_transform(self) -> Transform:
        assert self._init_transform_fn is not None  # copies were set up
        made = self._init_transform_fn(self.latent_dim)
        if not isinstance(made, Transform):
            raise ValueError(
                "Expected init_transform_fn to return a transform of torch or Pyro, of vectors of"
                f" size {self.latent_dim}, but got {type(made).__name__}"
            )
        for module in modules_of([made]):
            module.to(self._init_loc())
        return made

    def get_base_dist(self) -> MixtureDistribution:
        """The mixture below the flow."""
        return self._mixture()

    def get_transform(self, *args: Any, **kwargs: Any) -> Transform:
        """The flow, from the mixture to the packed unconstrained latent vector."""
        self._check_called()
        transforms = self._transforms()
        return transforms[0] if len(transforms) == 1 else ComposeTransform(transforms)

    def get_posterior(self, *args: Any, **kwargs: Any) -> MixtureFlow:
        """The flow over the packed unconstrained latent vector, once the guide was called."""
        base = super().get_posterior(*args, **kwargs)
        return MixtureFlow(base, self._transforms())

    # what the other guides do with their posterior is done with the mixture

    def _mixture(self, *args, **kwargs):
        return super().get_posterior(*args, **kwargs)

    def _estimated(self, mixture):
        return TransformedDistribution(super()._estimated(mixture), self._transforms())

    def _latent_points(self, z):
        flow = MixtureFlow(self.get_base_dist(), self._transforms())
        return flow.moved(z)

    @torch.no_grad()
    def _mixture_points(self, latent):
        points = latent
        try:
            for transform in reversed(self._transforms()):
                points = moved_back(transform, points)
        except (NotImplementedError, ValueError):  # a draw will tell what does not fit
            return latent
        return torch.where(points.isfinite(), points, latent)

    def _start_at_modes(self, *args, **kwargs):
        super()._start_at_modes(*args, **kwargs)
        locs = getattr(self, "locs", None)
        if isinstance(locs, Tensor):
            self.locs = self._mixture_points(locs.detach())

    def set_base(self, mixture: MixtureDistribution) -> None:
        """Make the mixture below the flow a given one, as ``set_posterior`` does elsewhere.

        The flow stays as it is: of one that is the identity the posterior is then the mixture.

        Args:
            mixture: diagonal Normals over the packed unconstrained latent vector.

        Raises:
            ValueError: for another mixture.
            NotImplementedError: for a guide of your own without ``read_components``.

        Example:
            >>> import torch, pyro, pyro.distributions as dist
            >>> from pyro_mixtures import AutoMixtureFlow, MixtureOfDiagNormals
            >>> pyro.clear_param_store(); pyro.set_rng_seed(0)
            >>> def model():
            ...     pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            >>> guide = AutoMixtureFlow(model, 3, dist.transforms.Spline)
            >>> locs = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
            >>> guide.set_base(MixtureOfDiagNormals(locs, torch.ones(2, 2), torch.zeros(2)))
            >>> _ = guide()
            >>> guide.num_components
            2
        """
        super().set_posterior(mixture)

    def set_posterior(self, mixture: MixtureDistribution) -> NoReturn:
        """The posterior is no mixture: raises ``NotImplementedError``."""
        raise NotImplementedError(
            f"Expected a guide whose posterior is a mixture, but got {type(self).__name__}, whose"
            " posterior is a flow on one: set_base(mixture) sets what the flow moves"
        )

    @classmethod
    def from_mixture(cls, model: Any, mixture: Any, /, *args: Any, **kwargs: Any) -> NoReturn:
        """The posterior is no mixture: raises ``NotImplementedError``."""
        raise NotImplementedError(
            f"Expected a guide whose posterior is a mixture, but got {cls.__name__}, whose"
            " posterior is a flow on one: make a guide, and set_base(mixture)"
        )

    def _draws(self, *args, **kwargs) -> Tensor:
        return self.get_posterior(*args, **kwargs).sample((DRAWS,))  # (N, D)

    def _loc_scale(self, *args, **kwargs):
        draws = self._draws(*args, **kwargs)
        return draws.mean(0), draws.std(0)

    @property
    def loc(self) -> Tensor:
        """Mean of 10,000 draws of the packed unconstrained latent vector, ``(D,)``."""
        return self._loc_scale()[0]

    @property
    def scale(self) -> Tensor:
        """Standard deviations of 10,000 draws in the unconstrained coordinates, ``(D,)``."""
        return self._loc_scale()[1]

    @torch.no_grad()
    def quantiles(
        self, quantiles: Sequence[float] | Tensor, *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Quantiles of each latent site, of 10,000 draws: flows have no distribution function.

        ``quantiles`` is a list or vector of probabilities between 0 and 1, the rest are arguments
        of the model. Returns a dict from site name to values, with the quantiles along the first
        dimension.
        """
        draws = self._draws(*args, **kwargs).sort(0).values
        last = len(draws) - 1
        return site_quantiles(self, lambda level: draws[round(float(level) * last)], quantiles)

    def __getstate__(self):
        without_memory(self._made)
        return {**super().__getstate__(), "_init_transform_fn": None}  # it may not be pickled
