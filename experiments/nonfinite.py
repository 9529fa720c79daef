"""Where a NaN or an infinity in a loss comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor


@torch.no_grad()
def nonfinite_site(
    elbo: ELBO, model: Callable[..., Any], guide: Callable[..., Any], *args: Any
) -> str | None:
    """The first sample site, the guide's before the model's, whose value or log density is bad.

    Args:
        elbo: draws the traces; a random state restored before gives those of the loss.
        model: a Pyro model.
        guide: a Pyro guide.
        args: arguments of both.

    Returns:
        The name and what is wrong, as a part of a sentence, or None.
    """
    with pyro.validation_enabled(False):  # which stops at a parameter without naming a site
        for model_trace, guide_trace in elbo._get_traces(model, guide, args, {}):
            for kind, trace in (("guide", guide_trace), ("model", model_trace)):
                for name, site in trace.nodes.items():
                    if site["type"] != "sample":
                        continue
                    for what, tensor in (
                        ("value", site["value"]),
                        ("log density", site["fn"].log_prob(site["value"])),
                    ):
                        if bad := _bad(tensor):
                            return f"site {name} of the {kind} has a {what} that is {bad}"
    return None


def nonfinite_gradient(module: torch.nn.Module) -> str | None:
    """The first parameter whose gradient is bad, as a part of a sentence, or None."""
    for name, parameter in module.named_parameters():
        if parameter.grad is not None and (bad := _bad(parameter.grad)):
            return f"the gradient of {name} is {bad}"
    return None


def _bad(tensor: Tensor) -> str | None:
    """``nan`` or ``inf`` with its share of the elements, or None."""
    for name, found in (("nan", tensor.isnan()), ("infinite", tensor.isinf())):
        if count := int(found.sum()):
            return f"{name} in {count} of {tensor.numel()} elements"
    return None
