"""What the ELBO of an amortized guide is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_mixtures.diagnostics.amortized_draw import AmortizedDraw
from pyro_mixtures.diagnostics.encodings import Encodings
from pyro_mixtures.numerics.validation import check_at_least
from pyro_mixtures.numerics.weighing import mean_error

ACTIVE = 0.01
"""Units whose posterior means have a larger variance over the data are active (Burda et al.)."""


@dataclass(frozen=True)
class ELBOTerms:
    r"""Terms of the ELBO, means over data in nats; ``print`` shows them as a table.

    With the data's distribution :math:`\hat p(x)`, that of N data, and
    :math:`q(z) = \frac1N \sum_n q(z \mid x_n)`. All terms are means over the same draws, so that
    these identities hold to rounding:

    .. math::
        \text{elbo} &= -\text{distortion} - \text{rate} \\
        &= -\text{distortion} - \text{mutual\_information} - \text{marginal\_kl} \\
        &= -\text{distortion} + \text{entropy} - \text{cross\_entropy}

    Attributes:
        elbo: for a datum.
        distortion: :math:`-E \log p(x \mid z)`.
        rate: :math:`KL(q(z \mid x) \| p(z))`.
        mutual_information: :math:`I(x, z) = KL(q(z \mid x) \| q(z))`, at most :math:`\log N`.
        marginal_kl: :math:`KL(q(z) \| p(z))`, zero for the best prior.
        total_correlation: :math:`KL(q(z) \| \prod_i q(z_i))`.
        dimension_kl: :math:`KL(q(z_i) \| p(z_i))` of each coordinate, ``(D,)``, or None where the
            marginals of the prior are not known. With independent coordinates in the prior the sum
            and the total correlation are ``marginal_kl``.
        entropy: :math:`H(q(z \mid x))`.
        cross_entropy: :math:`H(q(z), p(z))`.
        activity: variances over the data of the posterior means, ``(D,)``.
        active_units: how many are above 0.01.
        errors: standard errors of the terms above ``activity`` by name, those of the draws.
        log_q_bias: what :math:`E \log q(z)` is estimated to be too low by with a minibatch, to
            first order; zero without one. By as much ``mutual_information`` is too high and
            ``marginal_kl`` too low. It is itself too near to zero where the minibatch lacks the
            posteriors that are next to a datum's.
        num_data: N, the number of data.
        num_samples: draws for each datum.
        minibatch: how many posteriors have stood for all in each draw, or None for all.
    """

    elbo: Tensor
    distortion: Tensor
    rate: Tensor
    mutual_information: Tensor
    marginal_kl: Tensor
    total_correlation: Tensor
    dimension_kl: Tensor | None
    entropy: Tensor
    cross_entropy: Tensor
    activity: Tensor
    active_units: int
    errors: dict[str, Tensor]
    log_q_bias: Tensor
    num_data: int
    num_samples: int
    minibatch: int | None

    def __str__(self) -> str:
        rows = {
            "ELBO": "elbo",
            "distortion": "distortion",
            "rate KL(q(z|x) || p(z))": "rate",
            "  mutual information": "mutual_information",
            "  KL(q(z) || p(z))": "marginal_kl",
            "    total correlation": "total_correlation",
            "entropy of q(z|x)": "entropy",
            "cross entropy of q(z), p(z)": "cross_entropy",
        }
        lines = [f"means over {self.num_data} data, {self.num_samples} samples of each"]
        for title, name in rows.items():
            lines.append(f"{title:<28}{getattr(self, name):.3f} ± {self.errors[name]:.3f}")
            if name == "total_correlation" and self.dimension_kl is not None:
                title = "    of coordinates, sum"
                lines.append(f"{title:<28}{self.dimension_kl.sum():.3f}")
        lines.append(f"{'active units':<28}{self.active_units} of {len(self.activity)}")
        if self.minibatch is not None:
            lines.append(f"{f'log q(z) by {self.minibatch}, bias':<28}{self.log_q_bias:.3f}")
        return "\n".join(lines)


@torch.no_grad()
def elbo_terms(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    plate: str,
    num_samples: int = 10,
    minibatch: int | None = None,
    **kwargs: Any,
) -> ELBOTerms:
    r"""Forms of the ELBO of an amortized guide: how much of z says something of x, and how.

    .. math::
        \text{ELBO} &= E[\log p(x \mid z)] - KL(q(z \mid x) \| p(z)) \\
        &= E[\log p(x \mid z)] - I(x, z) - KL(q(z) \| p(z)) \\
        &= E[\log p(x \mid z)] + H(q(z \mid x)) - H(q(z), p(z)) \\
        KL(q(z) \| p(z)) &= KL(q(z) \| {\textstyle \prod_i} q(z_i))
        + \sum_i KL(q(z_i) \| p(z_i))

    The aggregate posterior :math:`q(z) = \frac1N \sum_n q(z \mid x_n)` is the mixture of the
    posteriors of all data that are handed over, and its density is evaluated as that, in chunks:
    :math:`S N^2 K` densities of Normals in D dimensions. With ``minibatch`` it is
    estimated from the datum's own posterior and as many others, drawn anew for each sample. Such
    an estimate is unbiased for :math:`q(z)` and too low for :math:`\log q(z)`: mutual
    information is overestimated, and :math:`KL(q(z) \| p(z))` underestimated, by what
    ``log_q_bias`` tells.

    Model and guide are run as they are: modules with dropout have to be in the mode ``eval()``.

    Args:
        model: a Pyro model whose sites are all in the plate, with a prior that is the same for all
            data. Two levels are one site of a
            :class:`~pyro_mixtures.nn.HierarchicalPrior`.
        guide: a Pyro guide in whose plate each latent site has a Normal or a mixture of Normals,
            that depends on the data, not on other latents. Several sites are one vector.
        args: arguments of both; data to be run at once.
        plate: name of the plate of the data.
        num_samples: S, draws of the guide for each datum, at least 2.
        minibatch: posteriors that stand for all in each draw, at least 3 and below N; by default
            all.
        kwargs: keyword arguments of both.

    Returns:
        The terms, with standard errors.

    Raises:
        ValueError: for fewer than 2 samples or data, a minibatch that is not between, sites
            outside of the plate or with a scale or mask, a prior that differs between the data,
            and a guide that differs between runs.
        NotImplementedError: for posteriors that are no Normals or mixtures of them.

    References:
        Stratos, *Useful facts about latent-variable generative models*, section 2. Hoffman and
        Johnson, *ELBO surgery* (2016). Chen, Li, Grosse and Duvenaud, *Isolating sources of
        disentanglement in variational autoencoders* (2018), https://arxiv.org/abs/1802.04942.
        Burda, Grosse and Salakhutdinov, *Importance weighted autoencoders* (2016), for active
        units.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> pyro.set_rng_seed(0)
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z[..., 0], 0.5), obs=x)
        >>> def guide(x):  # the posterior, which leaves the second coordinate alone
        ...     loc = torch.stack([0.8 * x, 0 * x], -1)
        ...     scale = torch.tensor([0.2**0.5, 1.0])
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(loc, scale).to_event(1))
        >>> found = elbo_terms(model, guide, 1.25**0.5 * torch.randn(500), plate="data")
        >>> print(found)
        means over 500 data, 10 samples of each
        ELBO                        -1.545 ± 0.000
        distortion                  0.717 ± 0.010
        rate KL(q(z|x) || p(z))     0.828 ± 0.010
          mutual information        0.819 ± 0.010
          KL(q(z) || p(z))          0.008 ± 0.001
            total correlation       0.000 ± 0.000
            of coordinates, sum     0.008
        entropy of q(z|x)           2.029 ± 0.010
        cross entropy of q(z), p(z) 2.856 ± 0.005
        active units                1 of 2
    """
    check_at_least(2, num_samples=num_samples)
    draws = []
    for draw in range(num_samples):
        run = AmortizedDraw.of(model, guide, args, kwargs, plate)
        if not draw:
            first, index = run.encodings, _all_data(run.encodings, minibatch)
        run.check_encodings(first)
        if minibatch is not None:
            index = torch.randperm(len(first[0]), device=index.device)[:minibatch]
        draws.append(run.terms(index))
    total = {name: torch.stack([each[name] for each in draws]) for name in draws[0]}
    bias = total.pop("log_q_bias").mean()
    mean = {name: values.mean(0) for name, values in total.items()}
    errors = {name: mean_error(values) for name, values in total.items()}
    activity = torch.cat([each.mean for each in first], -1).var(0, unbiased=False)
    return ELBOTerms(
        dimension_kl=mean.pop("dimension_kl", None),
        **mean,
        activity=activity,
        active_units=int((activity > ACTIVE).sum()),
        errors=errors,
        log_q_bias=bias,
        num_data=len(first[0]),
        num_samples=num_samples,
        minibatch=minibatch,
    )


def _all_data(encodings: list[Encodings], minibatch: int | None) -> Tensor:
    total = len(encodings[0])
    if total < 2:
        raise ValueError(
            f"Expected at least 2 data, for q(z) to be their mixture, but got {total}"
        )
    if minibatch is not None:
        check_at_least(3, minibatch=minibatch)
        if minibatch >= total:
            raise ValueError(
                f"Expected minibatch below the number of data, {total}, or None for all of them,"
                f" but got {minibatch}"
            )
    return torch.arange(total, device=encodings[0].locs.device)
