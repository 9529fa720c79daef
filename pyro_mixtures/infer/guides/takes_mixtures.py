"""What mixture guides do with mixtures that they are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import pyro
from pyro import poutine
from pyro.nn import PyroParam
from torch import Tensor

from pyro_mixtures.distributions import MixtureDistribution
from pyro_mixtures.infer.guides.checked_guide import CheckedGuide
from pyro_mixtures.infer.guides.given_mixture import (
    GivenMixture,
    check_vectors,
    with_values,
)
from pyro_mixtures.samples.groups import KeptGroups

if TYPE_CHECKING:
    from typing_extensions import Self


class TakesMixtures(CheckedGuide):
    """Base of the mixture guides, which become a mixture that they are given.

    The parameters of any guide have names. ``init_components`` makes the first ones, with their
    constraints, and ``read_components`` finds the values of a given mixture.
    """

    distribution: ClassVar[Any] = None
    num_components: int
    _given: GivenMixture | None = None
    _kept_groups: KeptGroups

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
        values = {**self.read_components(mixture), "component_logits": mixture.log_weights}
        copies = {name: value.detach().clone() for name, value in values.items()}
        given = GivenMixture(mixture.event_shape[0], copies)
        if self.prototype_trace is None:
            self._given, self.num_components = given, mixture.num_components
        else:
            self._take(given)

    def _take(self, given: GivenMixture) -> None:
        """Make the parameters those of a given mixture."""
        if given.size != self.latent_dim:
            raise ValueError(
                f"Expected mixture to be over the {self.latent_dim} unconstrained coordinates of"
                f" the model's latent sites, but got event shape ({given.size},)"
            )
        before, self.num_components = self.num_components, len(given.values["component_logits"])
        try:
            locs = self._init_loc().expand(self.num_components, -1).clone()  # (K, D)
            new = dict(self._first_values(locs))
            logits = given.values["component_logits"].to(locs)
            for name in given.values.keys() - {"component_logits"}:
                new[name] = with_values(new[name], name, given.values[name])
        except Exception:
            self.num_components = before
            raise
        with self._pyro_context:
            store = pyro.get_param_store()
            for name in ("component_logits", *new):  # else Pyro would use what it finds there
                full_name = self._pyro_get_fullname(name)
                if full_name in store:
                    del store[full_name]
            self._set_parameters(logits, new)
        self._given, self._kept_groups = None, KeptGroups()

    def _first_values(self, locs: Tensor) -> Mapping[str, Tensor | PyroParam]:
        """Checked values of ``init_components``."""
        raise NotImplementedError

    def _set_parameters(self, logits: Tensor, values: Mapping[str, Tensor | PyroParam]) -> None:
        """Make them parameters of the guide."""
        raise NotImplementedError
