"""What the guides here refuse where Pyro's would go on with a wrong posterior."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.util import sum_rightmost
from pyro.infer.autoguide import AutoContinuous
from pyro.nn import PyroParam
from torch import Size, Tensor, nn
from torch.distributions import biject_to, transform_to


class NotCalledError(ValueError, AttributeError):
    """A guide has no parameters before its first call, and so no attributes made of them."""


class Image(Delta):
    """A ``Delta`` that knows its own sample, the image of the latent vector at a site."""

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return super().rsample(Size(sample_shape)) if sample_shape else self.v

    def log_prob(self, x: Tensor) -> Tensor:
        return self.log_density if x is self.v else super().log_prob(x)


class CheckedGuide(AutoContinuous):
    """Base of the guides, which checks the model's plates and the parameters in Pyro's store.

    Pyro hands a guide what another one of the same name left in the parameter store, of whatever
    shape. Of equal shapes that is a way to go on with a fit, of others a mistake.

    The packed latent vector has one entry for each element that a plate holds in one run. If that
    is a subsample, the entry would be of a position in it, and so of another datum in each step.
    If it is the whole plate, the distribution is a joint one over all of its elements.

    Raises:
        ValueError: for parameters in the store whose shapes are not those of the guide, and by
            ``get_posterior`` before the first call.
        NotImplementedError: for a latent site in a plate that subsamples.
    """

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        for name, frames in self._cond_indep_stacks.items():
            for frame in frames:
                if frame.size != (frame.full_size or frame.size):
                    self.prototype_trace = None  # to be set up again by the next call
                    raise NotImplementedError(
                        f"Expected latent site {name!r} to be in plates without subsamples, but"
                        f" got plate {frame.name!r} with {frame.size} of {frame.full_size}:"
                        f" {type(self).__name__} would take each datum for that at its place in"
                        " the subsample. Write a guide with this plate, in which a network, such"
                        " as nn.ConditionalMixture, or a pyro.param with event_dim makes a mixture"
                        " for each datum; or leave the site to Pyro's AutoNormal, in an"
                        " AutoGuideList with create_plates; or do without subsamples, with one"
                        " joint distribution over the data"
                    )

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Values of the latent sites by name: Pyro's ``forward``, with less work at each site."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        latent = self.sample_latent(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        hidden = poutine.get_mask() is False
        values = {}
        for site, unconstrained in self._unpack_latent(latent):
            name, fn = site["name"], site["fn"]
            transform = biject_to(fn.support)
            value = transform(unconstrained)
            log_density: Any = 0.0
            if not hidden:
                volume = transform.log_abs_det_jacobian(unconstrained, value)
                log_density = -sum_rightmost(volume, volume.dim() - value.dim() + fn.event_dim)
            image = Image(value, log_density=log_density, event_dim=fn.event_dim)
            with ExitStack() as stack:
                for frame in self._cond_indep_stacks[name]:
                    stack.enter_context(plates[frame.name])
                values[name] = pyro.sample(name, image)
        return values

    def _unpack_latent(self, latent: Tensor) -> Iterator[tuple[Any, Tensor]]:
        """Sites and their unconstrained values: Pyro's, for one vector without its broadcasts."""
        if latent.shape != (self.latent_dim,):
            yield from super()._unpack_latent(latent)
            return
        start, prototype = 0, self.prototype_trace
        assert prototype is not None  # where there is a size
        for name, site in prototype.iter_stochastic_nodes():
            shape = self._unconstrained_shapes[name]
            yield site, latent.narrow(-1, start, shape.numel()).view(shape)
            start += shape.numel()

    def _check_finite(self) -> None:
        """Raise an error for parameters that are not numbers any more."""
        for name, parameter in self.named_parameters():
            count = int(parameter.isnan().sum())
            if count:
                raise ValueError(
                    f"Expected parameters that are numbers, but got NaN in {count} of"
                    f" {parameter.numel()} elements of {name}: the step before had a loss or a"
                    " gradient that was not finite, as a log density of -inf makes it. Start"
                    " where the model has a density (init_loc_fn, init_scale);"
                    " diagnostics.nonfinite_site names the site where it has none"
                ) from None

    def __setattr__(self, name: str, value: Any) -> None:
        shape: torch.Size | None = None
        if isinstance(value, nn.Parameter):
            shape = value.shape
        elif isinstance(value, PyroParam) and isinstance(value.init_value, torch.Tensor):
            shape = transform_to(value.constraint).inverse_shape(value.init_value.shape)
        if shape is not None:
            try:
                self._check_stored(name, shape)
            except ValueError:
                self.prototype_trace = None  # to be set up again by the next call
                raise
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__.get("_parameters", {})
        parameter = own.get(f"{name}_unconstrained", own.get(name))
        if parameter is not None:
            self._check_stored(name, parameter.shape)
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            if name.startswith("_") or self.__dict__.get("prototype_trace", ...) is not None:
                raise
            raise AttributeError(f"{error}: {self._how_to_call}") from None

    @property
    def _how_to_call(self) -> str:
        return (
            f"{type(self).__name__} makes its parameters at its first call: call it once with the"
            " model's arguments, guide(*args, **kwargs), or run a step of SVI"
        )

    def _check_called(self) -> None:
        """Raise an error for a guide that has no parameters yet."""
        if self.prototype_trace is None:
            raise NotCalledError(
                "Expected a guide that was called before, but got one that was not:"
                f" {self._how_to_call}"
            )

    def _check_stored(self, name: str, shape: torch.Size) -> None:
        """Raise an error if the store, where Pyro would use it, has another shape."""
        if not self._pyro_context.active:
            return
        full_name = self._pyro_get_fullname(name)
        parameters = pyro.get_param_store().named_parameters()
        stored = parameters.mapping.get(full_name)  # type: ignore[attr-defined] # without a copy
        if stored is None or stored.shape == shape:
            return
        if not pyro.settings.get("module_local_params"):
            raise ValueError(
                f"Expected the parameter {full_name!r} in Pyro's store to have the shape"
                f" {tuple(shape)} of this guide's, but got {tuple(stored.shape)}, of another guide"
                " of the same name: call pyro.clear_param_store() before a new fit, or make and"
                " fit each guide within `with pyro.get_param_store().scope():`"
            )
