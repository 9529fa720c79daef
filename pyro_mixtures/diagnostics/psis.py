"""How far to trust a guide: Pareto-smoothed importance sampling of it against its model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_mixtures.diagnostics.log_weights import Draws
from pyro_mixtures.numerics.pareto import FEWEST_SAMPLES, largest_khat
from pyro_mixtures.numerics.validation import check_at_least
from pyro_mixtures.numerics.weighing import verdict, weigh


@dataclass(frozen=True)
class PSIS:
    r"""Draws of a guide, with weights that make them draws of the posterior.

    The shape :math:`\hat k` of the Pareto distribution of the largest weights shows how heavy
    their tail is: they have :math:`1 / \hat k` moments. Below 0.5 weighted means can be relied on;
    up to 0.7, or :attr:`threshold` if that is lower, the smoothed weights are still of use; above,
    neither guide nor weights are to be trusted. It does not show modes that no draw has reached,
    nor how many draws count: for that there is ``effective_sample_size``. ``print`` shows the
    figures with their errors, and ``verdict``.

    Attributes:
        khat: :math:`\hat k`. It is ``-inf`` where the largest weights are all equal but for
            rounding, or exceed the others by so little that their tail cannot matter
            (:func:`~pyro_mixtures.diagnostics.pareto_smoothed` has the rule), and ``inf`` where
            too few are large for a fit.
        effective_sample_size: :math:`1 / \sum_s w_s^2`, from 1 to S.
        elbo: the mean of the logarithms of the weights as they are drawn, a lower bound of the log
            evidence. It is ``-inf``, with an error of NaN, where a draw has no density in the
            model.
        elbo_error: its standard error.
        log_evidence: the estimate :math:`\log \frac1S \sum_s \tilde w_s` of the logarithm of the
            evidence, of the smoothed weights :math:`\tilde w` before they are normalized.
        log_evidence_error: its standard error, by the delta method: that of the draws, and too
            small where few weights prevail, of which :math:`\hat k` tells.
        log_weights: logarithms of the smoothed weights w, which sum to one, ``(S,)``.
        samples: draws of the guide, from the name of each latent site of the model to
            ``(S, *shape)``.
    """

    khat: float
    effective_sample_size: float
    elbo: float
    elbo_error: float = field(repr=False)
    log_evidence: float
    log_evidence_error: float = field(repr=False)
    log_weights: Tensor = field(repr=False)
    samples: dict[str, Tensor] = field(repr=False)

    @property
    def threshold(self) -> float:
        r"""The largest :math:`\hat k` that S draws can bear, ``min(1 - 1 / log10(S), 0.7)``."""
        return largest_khat(len(self.log_weights))

    @property
    def verdict(self) -> str:
        """How far to trust guide and weights, in words; what draws cannot tell is said, too."""
        return verdict(self.khat, self.effective_sample_size, len(self.log_weights))

    def __str__(self) -> str:
        count = len(self.log_weights)
        figures = {
            "ELBO": f"{self.elbo:.3f} ± {self.elbo_error:.3f}",
            "log evidence": f"{self.log_evidence:.3f} ± {self.log_evidence_error:.3f}",
            "effective sample size": f"{self.effective_sample_size:.1f}",
        }
        table = [f"{name:<26}{told}" for name, told in figures.items()]
        return "\n".join([f"{count} samples", *table, self.verdict])

    def resample(self, num_samples: int) -> dict[str, Tensor]:
        """Draws nearer to the posterior: from the samples, with replacement, by their weights.

        The resampling is multinomial, so that the draws are independent given the samples. Many
        more than the effective sample size are mostly repetitions.

        Args:
            num_samples: how many, at least 1.

        Returns:
            From the name of each site to ``(num_samples, *shape)``.

        Raises:
            ValueError: for ``num_samples < 1``.
        """
        check_at_least(1, num_samples=num_samples)
        index = torch.multinomial(self.log_weights.exp(), num_samples, replacement=True)
        return {name: value[index.to(value.device)] for name, value in self.samples.items()}


@torch.no_grad()
def psis(
    model: Callable,
    guide: Callable,
    *args: Any,
    num_samples: int = 1000,
    vectorize: bool | None = None,
    **kwargs: Any,
) -> PSIS:
    r"""Pareto-smoothed importance sampling of a guide against its model.

    .. math:: w_s \propto \frac{p(z_s, y)}{q(z_s)}, \qquad z_s \sim q

    The largest weights, :math:`\min(S / 5, 3 \sqrt S)` of them, are replaced by quantiles of a
    Pareto distribution that is fitted to them, whose shape is the diagnosis
    (:class:`~pyro_mixtures.diagnostics.PSIS` tells how to read it). A guide that has missed a
    whole mode is not found out: none of its draws shows that there is more.

    Log densities count with their masks and scales. Where a plate takes a subsample, all draws see
    the same one, and are judged by the posterior that it makes with its scale; for that of all
    data the model must not subsample.

    Args:
        model: a Pyro model.
        guide: a Pyro guide that samples each latent site of the model. Auxiliary sites must be
            functions of the others and the reverse, as those of Pyro's autoguides are.
        args: arguments of model and guide.
        num_samples: S, at least 25.
        vectorize: draw samples as batches, which is much faster, for models and guides that allow
            ``vectorize_particles``; or False for one after another. By default as batches where a
            few draws weigh the same in both ways, and otherwise one after another, with a warning.
        kwargs: keyword arguments of model and guide.

    Returns:
        Diagnosis, weights and draws.

    Raises:
        ValueError: for ``num_samples < 25``, sites that only the guide has, or only the model
            and no data, samples of another shape than the model's site has, log densities that
            are not finite (a model's may be ``-inf``), weights that are all zero, or
            ``vectorize`` where it does not apply.

    References:
        Vehtari, Simpson, Gelman, Yao and Gabry, *Pareto smoothed importance sampling*, JMLR
        25(72), 2024, https://arxiv.org/abs/1507.02646, for the weights and the threshold. Yao,
        Vehtari, Simpson and Gelman, *Yes, but did it work?: Evaluating variational inference*
        (ICML 2018), https://arxiv.org/abs/1802.02538, Algorithm 1.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> pyro.set_rng_seed(0)
        >>> def model():
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(2.0))
        >>> def guide():
        ...     pyro.sample("x", dist.Normal(1.0, 0.8))  # the posterior is Normal(1, 0.71)
        >>> found = psis(model, guide, num_samples=4000)
        >>> found.khat < 0.5
        True
        >>> exact = dist.Normal(0.0, 2**0.5).log_prob(torch.tensor(2.0))
        >>> abs(found.log_evidence - exact.item()) < 0.05
        True
        >>> print(found)
        4000 samples
        ELBO                      -2.281 ± 0.003
        log evidence              -2.265 ± 0.002
        effective sample size     3904.3
        k-hat -1.75: importance weights mend it; it cannot see modes that no draw has visited
        >>> found.resample(500)["x"].shape
        torch.Size([500])
    """
    check_at_least(FEWEST_SAMPLES, num_samples=num_samples)
    draws = Draws(model, guide, args, kwargs, vectorize=vectorize)
    chunks = list(draws.chunks(num_samples, None))
    log_weights = torch.cat([each for each, _ in chunks])
    samples = {name: torch.cat([values[name] for _, values in chunks]) for name in chunks[0][1]}
    found = weigh(log_weights)
    return PSIS(samples=samples, **vars(found))
