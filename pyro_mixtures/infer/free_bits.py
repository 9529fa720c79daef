"""Free bits: the divergence of guide and prior costs nothing up to a number of nats."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from pyro.distributions.util import scale_and_mask
from pyro.ops.provenance import detach_provenance
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

COMPONENT_LOG_WEIGHTS = "component_log_weights"
"""In a site's ``infer``, those of draws of each component that stand for one of the mixture."""

FREE_BITS = "free_bits"
"""In a site's ``infer``, that its scale changes from step to step."""


class _Drawn(NamedTuple):
    """A sample of the guide, and its log density there."""

    value: Tensor
    log_prob: Tensor
    component_log_weights: Tensor | None


class FreeBits(Messenger):
    r"""A context in which each latent site has some nats of divergence that cost nothing.

    .. math::
        E_q[-\log p(y \mid z)] + \sum_j \max(\lambda, R_j), \qquad
        R_j = \operatorname*{mean}_n E_q[\log q(z_{nj}) - \log p(z_{nj})]

    A latent whose rate :math:`R_j` is below :math:`\lambda` is trained by the data alone, and is
    not driven to the prior before the model has a use for it (posterior collapse). A step of any
    optimizer is taken within the context, which is the same for all steps: it keeps the rates.

    The rate is that of one sample of the site: the mean over all elements of its plates, the data
    of a minibatch among them, and over particles. It is estimated by a decaying average over
    earlier steps, of :math:`\log q - \log p` at their draws, so that mixtures, whose divergence
    has no closed form, are treated as all others. Where it is at most :math:`\lambda`, the log
    densities of the site are multiplied by 0 in model and guide, and elsewhere by 1; in the first
    step by 0. This does not depend on the draws of the step, whose gradient is an unbiased one of
    the loss with that weight. What is biased is the aim: the loss bounds the negative ELBO from
    above, and its optimum may have a rate of :math:`\lambda` where that of the ELBO is lower. The
    loss that a step returns has no constant for what is free.

    It takes guides that sample the model's latent sites, as amortized ones do; those of automatic
    guides have no rate of their own. It multiplies scales, as ``Annealing`` does. ``SIWAE_ELBO``
    and ``ImportanceWeighted_ELBO`` refuse it, for the rate is no part of a bound that takes a
    logarithm over samples; Pyro's ``RenyiELBO`` takes it, and means another bound. Evaluations are
    made outside of it.

    Args:
        nats: :math:`\lambda`, for each latent site.
        decay: weight of the past in the average, in [0, 1); 0 for the last step alone.

    Attributes:
        rates: averages by site; those of the last step's are in.

    Raises:
        ValueError: for ``nats`` that are not positive and finite and a decay outside [0, 1); at
            the end of a step for latent sites of the guide that the model does not sample.
        NotImplementedError: for latent sites that are enumerated, and Pyro's Jit objectives.

    Reference:
        Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling, *Improving variational inference
        with inverse autoregressive flow* (2016), https://arxiv.org/abs/1606.04934, the
        objective with free bits, with the rate of the minibatch itself in place of the average.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> pyro.clear_param_store(); pyro.set_rng_seed(0)
        >>> def model(y):
        ...     with pyro.plate("data", len(y)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("y", dist.Normal(z, 5.0), obs=y)
        >>> def guide(y):
        ...     slope = pyro.param("slope", lambda: torch.tensor(0.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("z", dist.Normal(slope * y, 1.0))
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
        >>> free_bits = FreeBits(0.5)
        >>> for step in range(200):
        ...     with free_bits:
        ...         loss = svi.step(torch.tensor([-2.0, 0.0, 2.0]))
        >>> 0.3 < free_bits.rates["z"] < 0.7  # it would be 0.002
        True
    """

    def __init__(self, nats: float, *, decay: float = 0.9) -> None:
        if not 0 < nats < math.inf:
            raise ValueError(f"Expected finite nats > 0, but got {nats}")
        if not 0 <= decay < 1:
            raise ValueError(f"Expected 0 <= decay < 1, but got {decay}")
        super().__init__()
        self.nats, self.decay = nats, decay
        self.rates: dict[str, float] = {}
        self._drawn: dict[str, _Drawn] = {}
        self._found: dict[str, list[float]] = {}

    def weight(self, name: str) -> float:
        """What the log densities of a site are multiplied by in the next step."""
        return 1.0 if self.rates.get(name, 0.0) > self.nats else 0.0

    def state_dict(self) -> dict[str, Any]:
        """The rates, to be saved with a checkpoint."""
        return {"rates": dict(self.rates)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of :meth:`state_dict`."""
        self.rates = dict(state["rates"])

    def __enter__(self) -> FreeBits:
        self._drawn, self._found = {}, {}
        super().__enter__()
        return self

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        super().__exit__(exc_type, exc_value, traceback)
        drawn, found, self._drawn, self._found = self._drawn, self._found, {}, {}
        if exc_type is not None:
            return
        if missing := sorted(drawn.keys() - found.keys()):
            raise ValueError(
                "Expected a guide that samples the latent sites of the model, but got one with"
                f" {', '.join(missing)}, which have no rate: FreeBits is not for automatic guides"
            )
        for name, rates in found.items():
            rate = sum(rates) / len(rates)
            if math.isfinite(rate):
                known = self.rates.get(name, rate)
                self.rates[name] = self.decay * known + (1 - self.decay) * rate

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg):
            return
        if torch._C._get_tracing_state():
            raise NotImplementedError(
                "Expected FreeBits around an objective without Jit, whose trace keeps the weights"
                " of the first step: use Trace_ELBO in place of JitTrace_ELBO, and so on"
            )
        msg["scale"] = msg["scale"] * self.weight(msg["name"])
        msg["infer"] = {**msg["infer"], FREE_BITS: True}

    @torch.no_grad()
    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg):
            return
        # objectives wrap what the guide has drawn, to know what depends on it
        name, value = msg["name"], detach_provenance(msg["value"])
        if msg["infer"].get("_enumerate_dim") is not None:
            raise NotImplementedError(
                f"Expected latent sites with samples within FreeBits, but site {name!r} is"
                " enumerated"
            )
        log_prob = msg["fn"].log_prob(value, *msg["args"], **msg["kwargs"])
        drawn = self._drawn.get(name)
        if drawn is None or drawn.value is not value:  # the model has the very sample of the guide
            weights = msg["infer"].get(COMPONENT_LOG_WEIGHTS)
            self._drawn[name] = _Drawn(value, log_prob, weights)
            return
        self._found.setdefault(name, []).append(_mean(drawn, log_prob, msg["mask"]))


def _mean(drawn: _Drawn, log_prior: Tensor, mask: Any) -> float:
    """The rate of a site: over elements of plates and particles, components by their weights."""
    rates = drawn.log_prob - log_prior
    weights = scale_and_mask(torch.ones_like(rates), mask=mask)
    if drawn.component_log_weights is not None:
        weights = weights * drawn.component_log_weights.exp()
    rates, weights = torch.broadcast_tensors(rates, weights)
    return float((weights * rates.masked_fill(weights == 0, 0)).sum() / weights.sum())
