"""What the mixture guides share: starting points, the latent site and quantiles."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn import PyroParam
from torch import Tensor, nn

from pyro_mixtures.distributions import MixtureDistribution
from pyro_mixtures.distributions.mixture_distribution import WEIGHT_GRADIENTS
from pyro_mixtures.estimators import ESTIMATORS, stratified
from pyro_mixtures.infer.guides.given_mixture import (
    component_parameters,
    mean_stddev,
    suited,
    with_values,
)
from pyro_mixtures.infer.guides.prior_units import DRAWS, in_units, spread
from pyro_mixtures.infer.guides.site_quantiles import site_quantiles
from pyro_mixtures.infer.guides.starting_points import InitLoc, StartingPoints, init_to_prior
from pyro_mixtures.infer.guides.takes_mixtures import TakesMixtures
from pyro_mixtures.infer.search.starting_mixture import starting_mixture
from pyro_mixtures.numerics.validation import check_at_least, check_choice
from pyro_mixtures.samples.groups import KeptGroups

IN_GUIDES: dict[str, Callable[[Any], Any]] = {
    # the latent site is in no plate but that of particles
    name: functools.partial(stratified, expanded=True) if name == "stratified" else estimator
    for name, estimator in ESTIMATORS.items()
}


class AutoMixture(TakesMixtures):
    """Base of the guides whose posterior is a mixture over the packed latent vector.

    A guide of your own has two methods, and all else from here. ``init_components(locs)`` makes
    the parameters of the components from the starting points ``(K, D)``.
    ``make_mixture(**options)`` makes the posterior of them and of ``component_logits``: any
    mixture of this package over vectors. A guide whose parameters are those of one of the classes
    with named tensors (:class:`~pyro_mixtures.distributions.ParametricMixture`) sets
    ``distribution`` to that class in place of the second method. For ``set_posterior`` and
    ``from_mixture`` a guide with the second method has a third, ``read_components(mixture)``, its
    inverse.

    The mixture is a joint one: its components are over all latent sites together, those in plates
    included. For N local variables in a plate K components are K configurations of all N, and not
    K choices for each. A mixture for each datum is a guide written by hand, with the plate, in
    which a network such as ``nn.ConditionalMixture`` makes it of the datum's features, or a
    ``pyro.param`` with ``event_dim`` has the parameters of each datum.

    The groups of 100 components and more, by which ``"clustered"`` weights get their gradient, are
    kept over up to K / 20 draws, as long as no component moves far: these are unbiased as well,
    and to find groups takes longer than a step.

    Args:
        model: a Pyro model with continuous latent sites.
        num_components: K, at least 1.
        init_loc_fn: a per-site initialization function of Pyro. Each component starts from a draw
            of its own, moved by a Normal of scale ``init_scale`` unless it is the only one: equal
            components would get equal gradients in every step. By default the first component
            starts where Pyro's guides do, at ``init_to_median``, and is not moved, and the others
            start from ``init_to_uniform``. Pyro's functions that draw the elements of a site one
            by one get all components in one run of the model, if that is written as for
            ``vectorize_particles=True``; others are called in a run for each component.
        init_scale: standard deviation of each component in each unconstrained coordinate.
        transport: as for the distribution; None for its default.
        weight_gradient: as for the distribution; under any objective the guide is unbiased.
        estimator: a gradient to use instead of that of ``weight_gradient``, by its name in
            :data:`~pyro_mixtures.estimators.ESTIMATORS`, or a function of the mixture such as
            ``functools.partial(gumbel_soft, temperature=0.1)``. (With that the samples follow a
            relaxed distribution; quantiles and ``get_posterior`` are those of the mixture.)
        init: ``"prior"`` to measure in standard deviations of the prior, as 100 draws of it have
            them in each unconstrained coordinate (1 where they are no positive numbers):
            components start at draws of the prior, unless there is an ``init_loc_fn``,
            ``init_scale`` is in these units, and so are an optimizer's steps of parameters named
            ``locs``; of ``coord_scale`` they are of the logarithm. For posteriors whose modes are
            far apart, or coordinates of unlike sizes. ``"modes"`` to start at the modes that
            ascents from draws of the prior find, with their weights and widths
            (:func:`~pyro_mixtures.infer.starting_mixture`, with the arguments of the first call),
            and to measure in standard deviations of these components; a guide whose components
            are no Normals only takes their places. None for units of one.

    Raises:
        ValueError: for ``num_components`` below 1, an ``init_scale`` that is not positive and
            finite, an unknown ``transport``, ``weight_gradient``, ``estimator`` or ``init``, or
            (at the first call) a discrete latent site in the model, an ``estimator`` that makes no
            distribution, parameters of other shapes that another fit left in Pyro's store, or
            what ``make_mixture`` returns if that is no mixture of vectors of the right size.
        NotImplementedError: at the first call, for a class that the ``estimator`` does not serve,
            or a latent site in a plate that subsamples. By ``quantiles`` and ``median``, for
            components whose coordinates have no quantiles here.

    Example:
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro_mixtures.distributions import MixtureSameFamily
        >>> class AutoStudentTMixture(AutoMixture):  # with heavy tails, of learned degrees
        ...     def init_components(self, locs):
        ...         scale = torch.full_like(locs, self.init_scale)
        ...         df = torch.full_like(locs[:, :1], 10.0)  # (K, 1)
        ...         return {
        ...             "locs": locs,
        ...             "coord_scale": PyroParam(scale, constraints.softplus_positive),
        ...             "df": PyroParam(df, constraints.greater_than(1.0)),
        ...         }
        ...     def make_mixture(self, **options):
        ...         weights = dist.Categorical(logits=self.component_logits)
        ...         components = dist.StudentT(self.df, self.locs, self.coord_scale).to_event(1)
        ...         return MixtureSameFamily(weights, components, **options)
        >>> pyro.clear_param_store(); pyro.set_rng_seed(0)
        >>> def model():
        ...     pyro.sample("x", dist.StudentT(3.0, torch.zeros(2), 1.0).to_event(1))
        >>> guide = AutoStudentTMixture(model, num_components=2)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
        >>> loss = [svi.step() for _ in range(10)]
    """

    scale_constraint: ClassVar[Any] = constraints.softplus_positive
    init_scale: float
    transport: str | None
    weight_gradient: str
    estimator: str | Callable[[Any], Any] | None
    init: str | None
    _starts: Any

    def __init__(
        self,
        model: Callable[..., Any],
        num_components: int,
        init_loc_fn: InitLoc | None = None,
        init_scale: float = 0.1,
        *,
        transport: str | None = None,
        weight_gradient: str = "clustered",
        estimator: str | Callable[[Any], Any] | None = None,
        init: str | None = None,
    ) -> None:
        check_at_least(1, num_components=num_components)
        if not (isinstance(init_scale, (int, float)) and 0 < init_scale < math.inf):
            raise ValueError(f"Expected a finite init_scale > 0, but got {init_scale!r}")
        if not (transport is None or self.distribution is None):
            check_choice("transport", transport, tuple(self.distribution.transports))
        check_choice("weight_gradient", weight_gradient, WEIGHT_GRADIENTS)
        if not (estimator is None or callable(estimator)):
            check_choice("estimator", estimator, tuple(IN_GUIDES))
        if init is not None:
            check_choice("init", init, ("prior", "modes"))
        if init is not None and init_loc_fn is None:
            init_loc_fn = init_to_prior
        starts = StartingPoints(init_loc_fn)
        super().__init__(model, init_loc_fn=starts)
        self._starts = starts
        self.num_components = int(num_components)
        self.init_scale = float(init_scale)
        self.transport, self.weight_gradient = transport, weight_gradient
        self.estimator, self.init = estimator, init
        self.register_buffer("prior_units", None)
        self._kept_groups, self._weights_held = KeptGroups(), False

    def init_components(self, locs: Tensor) -> Mapping[str, Tensor | PyroParam]:
        """First values of the components' parameters, by name; a guide of your own defines it.

        Args:
            locs: starting points ``(K, D)`` in the unconstrained space, to be kept apart.

        Returns:
            From a name to a tensor, or to a ``PyroParam`` with a constraint. Each is an attribute
            of the guide, and in Pyro's store under the guide's name.
        """
        raise NotImplementedError(
            f"Expected {type(self).__name__} to define init_components(locs), but it does not"
        )

    def make_mixture(self, **options: Any) -> MixtureDistribution:
        """The posterior, made of the parameters; a guide without ``distribution`` defines it.

        Args:
            options: ``weight_gradient``, and ``transport`` if one is asked for: to be handed on to
                the mixture.

        Returns:
            A mixture of K components, without batch shape, over vectors of D numbers.
        """
        if self.distribution is None:
            raise NotImplementedError(
                f"Expected {type(self).__name__} to define make_mixture(**options) or to set"
                " distribution, but it does neither"
            )
        parameters = {name: getattr(self, name) for name in self.distribution.component_parameters}
        return self.distribution(**parameters, component_logits=self.component_logits, **options)

    def read_components(self, mixture: MixtureDistribution) -> Mapping[str, Tensor]:
        """Values of the parameters, by name, of which ``make_mixture`` makes a given mixture.

        A guide that defines ``make_mixture`` defines this one, too, if it is to take mixtures.

        Args:
            mixture: K components, without batch shape, over vectors of D numbers.

        Returns:
            Values of what ``init_components`` names; what is left out starts as there.

        Raises:
            ValueError: for a mixture that the guide cannot be.
        """
        inverse, maker = (
            next(each for each in type(self).__mro__ if name in vars(each))
            for name in ("read_components", "make_mixture")
        )
        if self.distribution is None or (inverse is not maker and issubclass(maker, inverse)):
            raise NotImplementedError(
                f"Expected {type(self).__name__} to define read_components(mixture), the inverse"
                " of its make_mixture, but it does not"
            )
        return component_parameters(mixture, self.distribution)

    def _first_values(self, locs: Tensor) -> Mapping[str, Tensor | PyroParam]:
        values = self.init_components(locs)
        for name in values:
            if hasattr(type(self), name) or name in vars(self):
                raise ValueError(
                    "Expected init_components to return names of new attributes, but got"
                    f" {name!r}, which {type(self).__name__} has"
                )
        return values if self.prior_units is None else in_units(values, self.prior_units)

    def _set_parameters(self, logits: Tensor, values: Mapping[str, Tensor | PyroParam]) -> None:
        self.component_logits = nn.Parameter(logits)
        self.hold_weights(self._weights_held)
        for name, value in values.items():
            setattr(self, name, value if isinstance(value, PyroParam) else nn.Parameter(value))

    def _setup_prototype(self, *args, **kwargs):
        super()._setup_prototype(*args, **kwargs)
        run = functools.partial(self.model, *args, **kwargs)
        scale: float | Tensor = self.init_scale
        if self.init == "prior":
            units = spread(self._starts.of_prior(run, self.prototype_trace, DRAWS))
            self.prior_units, scale = units, scale * units
        try:
            if self._given is not None:
                self._take(self._given)
                return
            if self.init == "modes":
                self._start_at_modes(*args, **kwargs)
                return
            locs = self._starts.locs(run, self.prototype_trace, self.num_components, scale)
            locs = self._mixture_points(locs)
            self._set_parameters(locs.new_zeros(self.num_components), self._first_values(locs))
            self._take_units()
        except Exception:
            self.prototype_trace = None  # to be set up again by the next call
            raise

    def _start_at_modes(self, *args: Any, **kwargs: Any) -> None:
        seed = int(torch.randint(2**31, ()))
        try:
            start = starting_mixture(
                self.model, args, kwargs, num_components=self.num_components, seed=seed
            )
        except NotImplementedError as error:  # a plate that subsamples
            raise NotImplementedError(
                "Expected a model whose density is the same in each run for init='modes', but"
                f" got: {error}. Find the modes with one that runs on all data, or on a part that"
                " stays, and hand them over: guide.set_posterior(starting_mixture(...))"
            ) from error
        normals = suited(start, self.distribution)
        like = self._init_loc()
        self.prior_units = mean_stddev(start if normals is None else normals).to(like)
        values = dict(self._first_values(start.locs.to(like)))
        if normals is not None:
            for name, value in self.read_components(normals).items():
                values[name] = with_values(values[name], name, value)
        self._set_parameters(start.log_weights.to(like), values)
        self._take_units()

    def __getstate__(self):
        self._starts = None  # as Pyro does with the model: the function may not be pickled
        return super().__getstate__()

    def get_posterior(self, *args: Any, **kwargs: Any) -> MixtureDistribution:
        """The mixture over the packed unconstrained latent vector, once the guide was called."""
        self._check_called()
        options = {} if self.transport is None else {"transport": self.transport}
        try:
            posterior = self.make_mixture(**options, weight_gradient=self.weight_gradient)
        except ValueError:
            self._check_finite()
            raise
        is_mixture = isinstance(posterior, MixtureDistribution)
        if not (is_mixture and posterior.event_shape == (self.latent_dim,)) or (
            posterior.batch_shape and posterior.batch_shape != self._batch_shape
        ):
            raise ValueError(
                "Expected make_mixture to return a mixture of pyro_mixtures.distributions of"
                f" batch shape {tuple(self._batch_shape)} and event shape ({self.latent_dim},),"
                f" but got {posterior}"
            )
        posterior.kept_groups = self._kept_groups
        return posterior

    @property
    def _batch_shape(self) -> torch.Size:
        """Of the parameters: ``()`` but for those put in from outside."""
        return self.component_logits.shape[:-1]

    def sample_latent(self, *args: Any, **kwargs: Any) -> Tensor:
        """Sample a packed unconstrained latent vector."""
        if self.estimator is None:
            return super().sample_latent(*args, **kwargs)
        name, mixture = f"_{self._pyro_name}_latent", self._mixture(*args, **kwargs)
        return pyro.sample(name, self._estimated(mixture), infer={"is_auxiliary": True})

    def _estimated(self, mixture: MixtureDistribution) -> Any:
        """The mixture with another gradient."""
        given: Any = self.estimator
        estimated = (given if callable(given) else IN_GUIDES[given])(mixture)
        if not isinstance(estimated, dist.TorchDistribution):
            raise ValueError(
                "Expected estimator to make a distribution of a mixture, but got"
                f" {type(estimated).__name__} from {given!r}"
            )
        return estimated

    @property
    def loc(self) -> Tensor:
        """Mean of the mixture over the packed unconstrained latent vector, ``(D,)``."""
        return self.get_posterior().mean

    @property
    def scale(self) -> Tensor:
        """Standard deviations of the mixture in the unconstrained coordinates, ``(D,)``."""
        return self.get_posterior().stddev

    def _loc_scale(self, *args, **kwargs) -> tuple[Tensor, Tensor]:
        posterior = self.get_posterior(*args, **kwargs)
        return posterior.mean, posterior.stddev

    def get_base_dist(self) -> Any:
        """A mixture is no transformed distribution: raises ``NotImplementedError``."""
        raise NotImplementedError(
            f"Expected a guide whose posterior is a transformed distribution, but got"
            f" {type(self).__name__}, whose mixture is not one; use get_posterior(), or for"
            " NeuTraReparam a guide with one Normal, such as AutoMultivariateNormal"
        )

    def get_transform(self, *args: Any, **kwargs: Any) -> Any:
        """A mixture is no transformed distribution: raises ``NotImplementedError``."""
        return self.get_base_dist()

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Median of each latent site: that of the mixture in each unconstrained coordinate."""
        quantiles = self.quantiles([0.5], *args, **kwargs)
        return {name: value.squeeze(0) for name, value in quantiles.items()}

    @torch.no_grad()
    def quantiles(
        self, quantiles: Sequence[float] | Tensor, *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Quantiles of each latent site, by the distribution function of the whole mixture.

        ``quantiles`` is a list or vector of probabilities between 0 and 1, the rest are arguments
        of the model. Returns a dict from site name to values, with the quantiles along the first
        dimension.
        """
        posterior = self.get_posterior(*args, **kwargs)
        return site_quantiles(self, posterior.marginal_icdf, quantiles)
