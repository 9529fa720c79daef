"""Pyro's reparameterizer for relaxed categorical sites, for those of this package as well."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.reparam import softmax

from pyro_mixtures.distributions import (
    ExpRelaxedCategorical,
    RelaxedCategorical,
    RelaxedCategoricalStraightThrough,
)


class GumbelSoftmaxReparam(softmax.GumbelSoftmaxReparam):
    r"""Draw a relaxed categorical variable by noise that has no parameters.

    .. math:: u_k \sim \mathrm{Uniform}(0, 1), \qquad
              y = \mathrm{softmax}\big((\mathrm{logits} - \log(-\log u)) / \tau\big)

    In place of Pyro's class of this name, which takes its own ``RelaxedOneHotCategorical`` alone:
    this one takes that, too, :class:`~pyro_mixtures.distributions.RelaxedCategorical` and
    :class:`~pyro_mixtures.distributions.ExpRelaxedCategorical`.

    Raises:
        ValueError: (when applied) for a site of another distribution.
        NotImplementedError: for an observed site.

    Example:
        >>> from pyro import poutine
        >>> def model():
        ...     return pyro.sample("y", RelaxedCategorical(0.5, logits=torch.zeros(3)))
        >>> reparameterized = poutine.reparam(model, config={"y": GumbelSoftmaxReparam()})
        >>> sorted(poutine.trace(reparameterized).get_trace().stochastic_nodes)
        ['y_uniform']
    """

    def apply(self, msg: Any) -> Any:
        """Replace the message of a site, as ``poutine.reparam`` asks."""
        fn, event_dim = self._unwrap(msg["fn"])
        if isinstance(fn, dist.RelaxedOneHotCategorical):
            return super().apply(msg)
        relaxed = isinstance(fn, (RelaxedCategorical, ExpRelaxedCategorical))
        if not relaxed or isinstance(fn, RelaxedCategoricalStraightThrough):
            raise ValueError(
                f"Expected a relaxed categorical distribution at site {msg['name']!r}, but got"
                f" {type(fn).__name__}"
            )
        if msg["is_observed"]:
            raise NotImplementedError(
                f"Expected a latent site, but {msg['name']!r} is observed: its relaxed value has"
                " no noise that it was made of"
            )
        in_logs, value = isinstance(fn, ExpRelaxedCategorical), msg["value"]
        temperature = fn.temperature.unsqueeze(-1)
        noise = None
        if value is not None:  # a starting point; the noise is known up to a shift
            gumbel = temperature * (value if in_logs else value.log()) - fn.logits
            noise = (-(-gumbel).exp()).exp()
        uniform = dist.Uniform(torch.zeros_like(fn.logits), torch.ones_like(fn.logits))
        noise = pyro.sample(
            f"{msg['name']}_uniform",
            self._wrap(uniform, event_dim),
            obs=noise,
            infer={"is_observed": False},  # but where it starts
        )
        if value is None:
            x = ((fn.logits - (-noise.log()).log()) / temperature).log_softmax(-1)
            value = x if in_logs else x.exp()
        # as pyro.deterministic has it
        site = dist.Delta(value, event_dim=event_dim).mask(False)
        return {"fn": site, "value": value, "is_observed": True}
