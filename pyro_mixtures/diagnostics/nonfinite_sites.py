"""Where a NaN or an infinity in a loss comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor


@torch.no_grad()
def nonfinite_site(
    elbo: Any, model: Callable[..., Any], guide: Callable[..., Any], *args: Any
) -> str | None:
    """The first sample site with a NaN among its parameters, or a bad value or log density.

    Args:
        elbo: draws the traces; a random state restored before gives those of the loss.
        model: a Pyro model.
        guide: a Pyro guide.
        args: arguments of both.

    Returns:
        The name and what is wrong, as a part of a sentence; None if all is finite, or the traces
        fail for another reason.
    """
    watched = _Watch("model")(model), _Watch("guide")(guide)
    try:
        with pyro.validation_enabled(False):  # which stops at a parameter and names no site
            for _ in elbo._get_traces(*watched, args, {}):
                pass
    except _NonFiniteError as found:
        return str(found)
    except (ValueError, RuntimeError):
        return None
    return None


def nonfinite_gradient(module: torch.nn.Module) -> str | None:
    """The first parameter whose gradient is bad, as a part of a sentence, or None."""
    for name, parameter in module.named_parameters():
        if parameter.grad is not None and (bad := _bad(parameter.grad)):
            return f"the gradient of {name} is {bad}"
    return None


class _NonFiniteError(Exception):
    pass


class _Watch(Messenger):
    """Looks at each site's distribution before it is drawn from, and at the value after."""

    def __init__(self, owner: str) -> None:
        super().__init__()
        self.owner = owner

    def _pyro_sample(self, msg) -> None:
        fn = msg["fn"]
        while hasattr(fn, "base_dist"):
            fn = fn.base_dist
        for name in getattr(fn, "arg_constraints", {}):
            value = vars(fn).get(name)
            if isinstance(value, Tensor) and bool(value.isnan().any()):
                self._tell(msg["name"], name, _bad(value))

    def _pyro_post_sample(self, msg) -> None:
        value, mask = msg["value"], msg["mask"]
        if not isinstance(value, Tensor):
            return
        if mask is None and not msg["is_observed"]:
            self._tell(msg["name"], "value", _bad(value))
        log_prob = scale_and_mask(msg["fn"].log_prob(value), mask=mask)
        self._tell(msg["name"], "log density", _bad(torch.as_tensor(log_prob)))

    def _tell(self, site: str, what: str, bad: str | None) -> None:
        if bad is not None:
            raise _NonFiniteError(f"site {site} of the {self.owner} has a {what} that is {bad}")


def _bad(tensor: Tensor) -> str | None:
    """``nan`` or ``infinite`` with the number of elements, or None."""
    for name, found in (("nan", tensor.isnan()), ("infinite", tensor.isinf())):
        if count := int(found.sum()):
            return f"{name} in {count} of {tensor.numel()} elements"
    return None
