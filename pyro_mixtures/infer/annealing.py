"""Annealing of the KL divergence of guide and prior."""

from __future__ import annotations

import math

from pyro.poutine.messenger import Messenger


class Annealing(Messenger):
    r"""A context in which the KL divergence of guide and prior has a weight.

    .. math:: E_q[\log p(y \mid z)] - w \, KL(q(z) \,\|\, p(z))

    The log densities of all sites that are not observed are multiplied by w, in the model and in
    the guide; those of the data stay as they are. A step of any optimizer is taken within it. A
    ``pyro.factor`` counts as data, in the guide, too.

    It multiplies what ``poutine.scale`` and subsampled plates have set, or another ``Annealing``.
    Scales that differ are refused by ``SIWAE_ELBO`` and ``ImportanceWeighted_ELBO``, which take a
    logarithm over several samples, and by ``TraceEnum_ELBO`` where the model enumerates a site
    that the guide lacks. Pyro's ``RenyiELBO`` takes them without a word, and means another bound.
    Its Jit objectives keep the weight of the step that they were compiled in.

    Args:
        weight: w, at least 0; below 1 components spread before they settle.

    Raises:
        ValueError: for a weight that is negative or not finite.

    Reference:
        Bowman, Vilnis, Vinyals, Dai, Jozefowicz and Bengio, *Generating sentences from a
        continuous space* (2016), https://arxiv.org/abs/1511.06349, section 3.1.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro.infer.autoguide import AutoNormal
        >>> def model():
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(2.0))
        >>> svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        >>> for step in range(10):
        ...     with Annealing(annealing_weight(step, 5)):
        ...         loss = svi.step()
    """

    def __init__(self, weight: float) -> None:
        if not 0 <= weight < math.inf:
            raise ValueError(f"Expected a finite weight >= 0, but got {weight}")
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg) -> None:
        if not msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.weight


def annealing_weight(step: int, num_steps: int, *, start: float = 0.0) -> float:
    r"""A weight for :class:`Annealing` that grows linearly to 1, where it stays.

    .. math:: w = s + (1 - s) \min(1, t / T)

    Args:
        step: t, at least 0.
        num_steps: T, at least 0; without any the weight is 1.
        start: s, the weight at the step 0, from 0 to 1.

    Raises:
        ValueError: for negative numbers of steps and a start outside of [0, 1].

    Example:
        >>> [annealing_weight(step, 4, start=0.5) for step in (0, 2, 4, 6)]
        [0.5, 0.75, 1.0, 1.0]
    """
    for name, value in (("step", step), ("num_steps", num_steps)):
        if not value >= 0:
            raise ValueError(f"Expected {name} >= 0, but got {value}")
    if not 0 <= start <= 1:
        raise ValueError(f"Expected start in [0, 1], but got {start}")
    progress = 1.0 if step >= num_steps else step / num_steps
    return start + (1 - start) * progress
