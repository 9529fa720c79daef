"""Where a NaN or an infinity in a loss or its gradient comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.distributions import MaskedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor


@torch.no_grad()
def nonfinite_site(
    elbo: ELBO, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
) -> str | None:
    """The first sample site with a NaN among its parameters, or a bad value or log density.

    The guide and then the model run as for the loss. Of each site the tensors of its distribution
    are looked at before it draws, since samplers fail at a NaN without a name; then its value, if
    it was drawn, and the log density. What a mask hides is not to blame.

    Args:
        elbo: an objective of Pyro or ours, which draws the traces. They are new draws: for those
            of a loss that was not finite set the random state back to what it was before
            (``pyro.util.set_rng_state``).
        model: a Pyro model.
        guide: a Pyro guide.
        args: arguments of both.
        kwargs: keyword arguments of both.

    Returns:
        The site and what is wrong, as a part of a sentence. None if all is finite, or the traces
        fail for another reason.

    Raises:
        ValueError: for an ``elbo`` that is no ``pyro.infer.ELBO``.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro.infer import Trace_ELBO
        >>> def model(scale):
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, scale), obs=torch.tensor(2.0))
        >>> def guide(scale):
        ...     pyro.sample("x", dist.Normal(1.0, 0.7))
        >>> nonfinite_site(Trace_ELBO(), model, guide, torch.tensor(float("nan")))
        'site y of the model has a scale that is nan in 1 of 1 elements'
        >>> nonfinite_site(Trace_ELBO(), model, guide, torch.tensor(1.0)) is None
        True
    """
    if not isinstance(elbo, ELBO):
        raise ValueError(
            f"Expected elbo to be an objective (pyro.infer.ELBO), but got {type(elbo).__name__}"
        )
    watched = _Watch("model")(model), _Watch("guide")(guide)
    try:
        with pyro.validation_enabled(False):  # which stops at a parameter and names no site
            for _ in elbo._get_traces(*watched, args, kwargs):
                pass
    except _NonFiniteError as found:
        return str(found)
    except (ValueError, RuntimeError):
        return None
    return None


def nonfinite_gradient(module: torch.nn.Module) -> str | None:
    """The first parameter whose gradient is bad, as a part of a sentence, or None.

    Args:
        module: after ``backward()``: a guide, a model, or an objective that is called with both.

    Raises:
        ValueError: for what is no module.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(1, 2)
        >>> (0 * net(torch.ones(1))).sqrt().sum().backward()
        >>> nonfinite_gradient(net)
        'the gradient of weight is nan in 2 of 2 elements'
    """
    if not isinstance(module, torch.nn.Module):
        raise ValueError(f"Expected a torch.nn.Module, but got {type(module).__name__}")
    for name, parameter in module.named_parameters():
        if parameter.grad is not None and (bad := _bad(parameter.grad)):
            return f"the gradient of {name} is {bad}"
    return None


class _NonFiniteError(Exception):
    pass


class _Watch(Messenger):
    """Looks at each site's distribution before it is drawn from, and at the value after.

    Of a masked site the density is looked at first: parameters count where it does.
    """

    def __init__(self, owner: str) -> None:
        super().__init__()
        self.owner = owner

    def _pyro_sample(self, msg) -> None:
        if not _masked(msg):
            self._look_at_parameters(msg)

    def _pyro_post_sample(self, msg) -> None:
        value = msg["value"]
        if not isinstance(value, Tensor):
            return
        if not (_masked(msg) or msg["is_observed"]):
            self._tell(msg["name"], "value", _bad(value))
        log_prob = msg["fn"].log_prob(value, *msg["args"], **msg["kwargs"])
        bad = _bad(torch.as_tensor(scale_and_mask(log_prob, mask=msg["mask"])))
        if bad is not None:
            self._look_at_parameters(msg)
        self._tell(msg["name"], "log density", bad)

    def _look_at_parameters(self, msg) -> None:
        fn = _chain(msg["fn"])[-1]
        for name in getattr(fn, "arg_constraints", {}):
            value = vars(fn).get(name)
            if isinstance(value, Tensor) and bool(value.isnan().any()):
                self._tell(msg["name"], name, _bad(value))

    def _tell(self, site: str, what: str, bad: str | None) -> None:
        if bad is not None:
            raise _NonFiniteError(f"site {site} of the {self.owner} has a {what} that is {bad}")


def _chain(fn: Any) -> list[Any]:
    """A distribution and those that it is made of, the innermost last."""
    found = [fn]
    while hasattr(found[-1], "base_dist"):
        found.append(found[-1].base_dist)
    return found


def _masked(msg: Any) -> bool:
    wrappers = _chain(msg["fn"])
    return msg["mask"] is not None or any(isinstance(fn, MaskedDistribution) for fn in wrappers)


def _bad(tensor: Tensor) -> str | None:
    """``nan`` or ``infinite`` with the number of elements, or None."""
    for name, found in (("nan", tensor.isnan()), ("infinite", tensor.isinf())):
        if count := int(found.sum()):
            return f"{name} in {count} of {tensor.numel()} elements"
    return None
