"""What mixture guides do with mixtures that they are given."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import pyro
import torch
from pyro import poutine
from pyro.nn import PyroParam
from torch import Tensor

from pyro_mixtures.distributions import MixtureDistribution
from pyro_mixtures.estimators.strata import component_samples
from pyro_mixtures.infer.guides.fewer_components import best_log_weights, merged, overlaps
from pyro_mixtures.infer.guides.given_mixture import (
    GivenMixture,
    check_vectors,
    shape_of,
    with_values,
)
from pyro_mixtures.infer.guides.joint_density import joint_log_density
from pyro_mixtures.infer.guides.prior_units import InPriorUnits
from pyro_mixtures.numerics.precision import double
from pyro_mixtures.numerics.validation import check_at_least
from pyro_mixtures.samples.groups import KeptGroups

if TYPE_CHECKING:
    from typing_extensions import Self

SAMPLES = 1000
"""Of each component, for overlaps without a closed form."""

NUMBERS = itertools.count(1)
"""Of the guides with names of their own."""


class TakesMixtures(InPriorUnits):
    """Base of the mixture guides, which become a mixture that they are given.

    The parameters of any guide have names. ``init_components`` makes the first ones, with their
    constraints, and ``read_components`` finds the values of a given mixture.
    """

    distribution: ClassVar[Any] = None
    num_components: int
    _given: GivenMixture | None = None
    _kept_groups: KeptGroups
    _weights_held: bool

    def read_components(self, mixture: MixtureDistribution) -> Mapping[str, Tensor]:
        """Values of the parameters, by name, of a given mixture."""
        raise NotImplementedError

    @classmethod
    def from_mixture(
        cls, model: Callable[..., Any], mixture: MixtureDistribution, /, *args: Any, **kwargs: Any
    ) -> Self:
        """A guide whose posterior is a given mixture, ready to use.

        It has the mixture's ``weight_gradient``, and its ``transport`` if the class of guide has
        that; for other options make a guide and call :meth:`set_posterior`.

        Args:
            model: a Pyro model with continuous latent sites.
            mixture: as for :meth:`set_posterior`.
            args: of the model, which is run once.
            kwargs: of the model, too.

        Raises:
            ValueError: as for :meth:`set_posterior`.
            NotImplementedError: as there.

        Example:
            >>> import torch, pyro.distributions as dist
            >>> from pyro_mixtures import AutoDiagonalNormalMixture, MixtureOfDiagNormals
            >>> pyro.clear_param_store(); pyro.set_rng_seed(0)
            >>> def model(size):
            ...     pyro.sample("x", dist.Normal(torch.zeros(size), 1.0).to_event(1))
            >>> locs = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
            >>> q = MixtureOfDiagNormals(locs, torch.ones(2, 2), torch.zeros(2))
            >>> guide = AutoDiagonalNormalMixture.from_mixture(model, q, 2)
            >>> guide.get_posterior().mean
            tensor([0., 0.], grad_fn=<SqueezeBackward1>)
        """
        check_vectors(mixture)
        known = cls.distribution is None or mixture.transport in cls.distribution.transports
        guide = cls(  # type: ignore[call-arg] # of the guides
            model,
            mixture.num_components,
            transport=mixture.transport if known else None,
            weight_gradient=mixture.weight_gradient,
        )
        guide.set_posterior(mixture)
        with poutine.block():
            guide(*args, **kwargs)
        return guide

    def set_posterior(self, mixture: MixtureDistribution) -> None:
        """Make the posterior a given mixture, with as many components as that has.

        It can be called before the first call of the guide, which then starts there, and at any
        time between steps. The parameters are new ones, in the guide and in Pyro's store, where
        they replace what a guide of the same name has left: Pyro's optimizers start anew for
        them, and an optimizer of torch has to be made anew. They have the dtype and the device of
        the model's sites.

        Args:
            mixture: over the packed unconstrained latent vector, of the class of
                ``get_posterior()``, or of Normals that such a mixture holds without a change, as
                diagonal ones are also of full covariance. Its values are copied.

        Raises:
            ValueError: for what is no mixture, of another class or dimension, or with parameters
                that the guide cannot have in its dtype. Before the first call of the guide its
                dimension and values are checked by that.
            NotImplementedError: for a guide of your own without ``read_components``.

        Example:
            >>> import torch, pyro.distributions as dist
            >>> from pyro_mixtures import AutoDiagonalNormalMixture, MixtureOfDiagNormals
            >>> pyro.clear_param_store(); pyro.set_rng_seed(0)
            >>> def model():
            ...     pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            >>> guide = AutoDiagonalNormalMixture(model, num_components=5)
            >>> locs = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
            >>> guide.set_posterior(MixtureOfDiagNormals(locs, torch.ones(2, 2), torch.zeros(2)))
            >>> _ = guide()
            >>> guide.num_components, guide.locs.shape
            (2, torch.Size([2, 2]))
        """
        check_vectors(mixture)
        values = self.read_components(mixture)
        copies = {name: value.detach().clone() for name, value in values.items()}
        logits = mixture.log_weights.detach().clone()
        given = GivenMixture(mixture.event_shape[0], copies, logits)
        if self.prototype_trace is None:
            self._given, self.num_components = given, mixture.num_components
        else:
            self._take(given)

    def keep_apart(self) -> None:
        """Give the parameters names of their own in Pyro's store, before the first call.

        Pyro names them by the guide's class, so that a second guide of the class goes on with the
        parameters of the first. A guide that is kept apart has a number in its name, one that no
        other guide of this process has, and keeps its parameters whatever others do. The names
        are not the same in another process unless it makes such guides in the same order:
        ``guide.state_dict()`` is the way to save them.

        Raises:
            ValueError: after the first call.

        Example:
            >>> import pyro.distributions as dist
            >>> from pyro_mixtures import AutoDiagonalNormalMixture
            >>> pyro.clear_param_store(); pyro.set_rng_seed(0)
            >>> def model():
            ...     pyro.sample("x", dist.Normal(0.0, 3.0))
            >>> first, second = (AutoDiagonalNormalMixture(model, 2) for _ in range(2))
            >>> first.keep_apart(); second.keep_apart()
            >>> _ = first(), second()
            >>> torch.equal(first.locs, second.locs)
            False
        """
        if self.prototype_trace is not None:
            raise ValueError(
                "Expected a guide that was not called yet, but got one whose parameters have their"
                " names already: call keep_apart() first"
            )
        stored = {name.split(".")[0] for name in pyro.get_param_store()}  # loaded ones, too
        names = (f"{type(self).__name__}_{number}" for number in NUMBERS)
        name = next(each for each in names if each not in stored)
        self._pyro_set_supermodule(name, self._pyro_context)

    def _take(self, given: GivenMixture) -> None:
        """Make the parameters those of a given mixture."""
        if given.size != self.latent_dim:
            raise ValueError(
                f"Expected mixture to be over the {self.latent_dim} unconstrained coordinates of"
                f" the model's latent sites, but got event shape ({given.size},)"
            )
        new = self._made_for(len(given.logits))
        for name, value in given.values.items():
            new[name] = with_values(new[name], name, value)
        logits = given.logits.to(self._init_loc())
        self.num_components = len(logits)
        with self._pyro_context:
            store = pyro.get_param_store()
            for name in ("component_logits", *new):  # else Pyro would use what it finds there
                full_name = self._pyro_get_fullname(name)
                if full_name in store:
                    del store[full_name]
            self._set_parameters(logits, new)
        self._given, self._kept_groups = None, KeptGroups()

    def _made_for(self, num_components: int) -> dict[str, Any]:
        """What ``init_components`` makes for another number of components."""
        before, self.num_components = self.num_components, num_components
        try:
            return dict(self._first_values(self._init_loc().repeat(num_components, 1)))
        finally:
            self.num_components = before

    def hold_weights(self, held: bool = True) -> None:
        """Leave the weights as they are in the steps to come, or let them learn again.

        While components are on their way those that are behind would lose their weight, and with
        it the gradient that moves them. To hold the weights equal for the first half of the steps
        or more keeps more modes, and no step takes longer.

        Args:
            held: whether they stay as they are, for any objective and optimizer.

        Example:
            >>> import pyro.distributions as dist, torch
            >>> from pyro.infer import SVI, Trace_ELBO
            >>> from pyro_mixtures import AutoDiagonalNormalMixture
            >>> pyro.clear_param_store(); pyro.set_rng_seed(0)
            >>> def model():
            ...     x = pyro.sample("x", dist.Normal(0.0, 3.0))
            ...     pyro.sample("y", dist.Normal(x.abs(), 0.5), obs=torch.tensor(3.0))
            >>> guide = AutoDiagonalNormalMixture(model, num_components=4)
            >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
            >>> for step in range(10):
            ...     guide.hold_weights(step < 6)
            ...     loss = svi.step()
        """
        self._weights_held = bool(held)
        logits = self._parameters.get("component_logits")
        if logits is not None and logits.requires_grad == held:
            logits.grad = None  # which momentum would still follow
            logits.requires_grad_(not held)

    @torch.no_grad()
    def refit_weights(self, *args: Any, num_samples: int = 100, **kwargs: Any) -> None:
        r"""Give the components the weights that suit them best, in closed form.

        .. math:: \pi_k \propto \pi_k \exp E_{q_k}[\log p(x, z) - \log q(z)]

        iterated on draws of each component to where it stays: there the ELBO, which is concave in
        the weights, is largest. It needs no gradients, and brings back components whose weight
        died before they arrived at their mode. The weights' errors fall with the root of
        ``num_samples``, and with the divergence of the components from the posterior.

        Args:
            args: of the model.
            num_samples: draws of each component. The model is evaluated at all of them, at once
                if it is written as for ``vectorize_particles=True``, with one subsample.
            kwargs: of the model.

        Raises:
            ValueError: before the first call, for ``num_samples < 1``, for components at which
                the model has no density, and for a model with other latent sites than those of
                the guide, or without data.
            NotImplementedError: for components that cannot be drawn from one by one.

        Example:
            >>> import torch, pyro.distributions as dist
            >>> from pyro_mixtures import AutoDiagonalNormalMixture, MixtureOfDiagNormals
            >>> pyro.clear_param_store(); pyro.set_rng_seed(0)
            >>> def model():
            ...     x = pyro.sample("x", dist.Normal(0.0, 3.0))
            ...     pyro.sample("y", dist.Normal(x.abs(), 0.5), obs=torch.tensor(3.0))
            >>> start = torch.tensor([[-2.92], [2.92]]), torch.full((2, 1), 0.5)
            >>> q = MixtureOfDiagNormals(*start, torch.tensor([-9.0, 0.0]))
            >>> guide = AutoDiagonalNormalMixture.from_mixture(model, q)
            >>> guide.refit_weights()
            >>> guide.component_logits.detach().exp().round(decimals=2)
            tensor([0.5000, 0.5000])
        """
        check_at_least(1, num_samples=num_samples)
        mixture = self._mixture(*args, **kwargs)
        z = component_samples(mixture, (num_samples,))  # (S, K, D)
        prototype: Any = self.prototype_trace
        known = [name for name, _ in prototype.iter_stochastic_nodes()]
        points, log_volume = self._latent_points(z.flatten(0, 1))
        log_p = joint_log_density(self.model, args, kwargs, known, points) + log_volume
        log_p = log_p.reshape(z.shape[:2])
        if not bool(log_p.isfinite().all(0).any()):
            raise ValueError(
                "Expected a component within the support of the model's density, but each has"
                " draws without one; see diagnostics.nonfinite_site"
            )
        log_weights = best_log_weights(log_p, mixture.component_log_prob(z))
        self.component_logits.copy_(log_weights.to(self.component_logits))

    @torch.no_grad()
    def prune(self, min_weight: float = 1e-3, *, max_overlap: float = 0.97) -> None:
        """Drop components that weigh next to nothing, or are there twice.

        The weight of a component that overlaps with a heavier one goes to that one; what then
        weighs less than ``min_weight`` is left out, but for the heaviest. The parameters are new
        ones, as :meth:`set_posterior` tells, if anything is left out.

        Args:
            min_weight: the least weight that a component may have.
            max_overlap: the largest Bhattacharyya coefficient of two components, from 0 to 1: of
                Normals of one scale 0.97 is that of means half a standard deviation apart. With 1
                all are kept.

        Raises:
            ValueError: before the first call, and for numbers outside of [0, 1].

        Example:
            >>> import torch, pyro.distributions as dist
            >>> from pyro_mixtures import AutoDiagonalNormalMixture, MixtureOfDiagNormals
            >>> pyro.clear_param_store(); pyro.set_rng_seed(0)
            >>> def model():
            ...     pyro.sample("x", dist.Normal(0.0, 3.0))
            >>> locs = torch.tensor([[0.0], [0.1], [7.0], [3.0]])
            >>> weights = torch.tensor([0.4, 0.1, 0.4996, 0.0004])
            >>> q = MixtureOfDiagNormals(locs, torch.ones(4, 1), weights.log())
            >>> guide = AutoDiagonalNormalMixture.from_mixture(model, q)
            >>> guide.prune()
            >>> guide.locs.flatten().tolist()
            [0.0, 7.0]
        """
        for name, value in (("min_weight", min_weight), ("max_overlap", max_overlap)):
            if not 0 <= value <= 1:
                raise ValueError(f"Expected {name} between 0 and 1, but got {value}")
        mixture = self._mixture()
        (weights,) = double(mixture.log_weights.exp())
        index, mass = merged(weights, overlaps(mixture, SAMPLES), min_weight, max_overlap)
        if len(index) < self.num_components:
            logits = mass.log().to(self.component_logits)
            self._take(GivenMixture(self.latent_dim, self._rows(index), logits))

    def _rows(self, index: Tensor) -> dict[str, Tensor]:
        """Values of the parameters, of some components."""
        values = {}
        for name, first in self._made_for(len(index)).items():
            value = getattr(self, name)
            for dim, size in enumerate(shape_of(first)):
                if size != value.shape[dim]:  # that of the components
                    value = value.index_select(dim, index.to(value.device))
            values[name] = value
        return values

    def _mixture(self, *args: Any, **kwargs: Any) -> Any:
        """The mixture of the parameters: the posterior, or what it is made of."""
        return self.get_posterior(*args, **kwargs)

    def _latent_points(self, z: Tensor) -> tuple[Tensor, Tensor | float]:
        """Latent vectors of points of the mixture, and what that adds to their log volume."""
        return z, 0.0

    def _mixture_points(self, latent: Tensor) -> Tensor:
        """Points of the mixture for latent vectors: where its components start."""
        return latent

    def _first_values(self, locs: Tensor) -> Mapping[str, Tensor | PyroParam]:
        """Checked values of ``init_components``."""
        raise NotImplementedError

    def _set_parameters(self, logits: Tensor, values: Mapping[str, Tensor | PyroParam]) -> None:
        """Make them parameters of the guide."""
        raise NotImplementedError
