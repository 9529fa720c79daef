"""How far to trust a guide: Pareto-smoothed importance sampling of it against its model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro import plate, poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_mixtures.numerics.precision import double

FEWEST_SAMPLES = 25
"""With fewer the largest fifth has less than the five weights that a Pareto law is fitted to."""


@dataclass(frozen=True)
class PSIS:
    r"""Draws of a guide, with weights that make them draws of the posterior.

    The shape :math:`\hat k` of the Pareto law of the largest weights tells how heavy their tail
    is: they have :math:`1 / \hat k` moments. Below 0.5 weighted means can be relied on; up to 0.7,
    or :attr:`threshold` if that is lower, the smoothed weights are still of use; above, neither
    guide nor weights are to be trusted. It does not tell of modes that no draw has reached, nor
    how many draws count: for that there is ``effective_sample_size``.

    Attributes:
        khat: :math:`\hat k`. It is ``-inf`` where the largest weights are all equal, and ``inf``
            where too few are large for a fit.
        effective_sample_size: :math:`1 / \sum_s w_s^2`, from 1 to S.
        log_evidence: the estimate :math:`\log \frac1S \sum_s \tilde w_s` of the logarithm of the
            evidence, of the smoothed weights :math:`\tilde w` before they are normalized.
        log_weights: logarithms of the smoothed weights w, which sum to one, ``(S,)``.
        samples: draws of the guide, from the name of each latent site of the model to
            ``(S, *shape)``.
    """

    khat: float
    effective_sample_size: float
    log_evidence: float
    log_weights: Tensor = field(repr=False)
    samples: dict[str, Tensor] = field(repr=False)

    @property
    def threshold(self) -> float:
        r"""The largest :math:`\hat k` that S draws can bear, ``min(1 - 1 / log10(S), 0.7)``."""
        return min(1 - 1 / math.log10(len(self.log_weights)), 0.7)

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
        if num_samples < 1:
            raise ValueError(f"Expected num_samples >= 1, but got {num_samples}")
        index = torch.multinomial(self.log_weights.exp(), num_samples, replacement=True)
        return {name: value[index.to(value.device)] for name, value in self.samples.items()}


@torch.no_grad()
def psis(
    model: Callable,
    guide: Callable,
    *args: Any,
    num_samples: int = 1000,
    vectorize: bool = False,
    **kwargs: Any,
) -> PSIS:
    r"""Pareto-smoothed importance sampling of a guide against its model.

    .. math:: w_s \propto \frac{p(z_s, y)}{q(z_s)}, \qquad z_s \sim q

    The largest weights, :math:`\min(S / 5, 3 \sqrt S)` of them, are replaced by quantiles of a
    Pareto law that is fitted to them, whose shape is the diagnosis
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
        vectorize: draw all samples as one batch, which is much faster, for models and guides that
            allow ``vectorize_particles``; otherwise one after another.
        kwargs: keyword arguments of model and guide.

    Returns:
        Diagnosis, weights and draws.

    Raises:
        ImportError: without arviz, which the extra ``plot`` installs.
        ValueError: for ``num_samples < 25``, sites that only the guide has, or only the model
            and no data, log densities that are not finite (a model's may be ``-inf``), weights
            that are all zero, or ``vectorize`` where it does not apply.

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
        >>> found = psis(model, guide, num_samples=4000, vectorize=True)
        >>> found.khat < 0.5
        True
        >>> exact = dist.Normal(0.0, 2**0.5).log_prob(torch.tensor(2.0))
        >>> abs(found.log_evidence - exact.item()) < 0.05
        True
        >>> found.resample(500)["x"].shape
        torch.Size([500])
    """
    if num_samples < FEWEST_SAMPLES:
        raise ValueError(f"Expected num_samples >= {FEWEST_SAMPLES}, but got {num_samples}")
    psislw = _imported_psislw()
    draw = _drawn_at_once if vectorize else _drawn_in_turn
    log_weights, samples = draw(model, guide, args, kwargs, num_samples)
    if not bool((log_weights > -math.inf).any()):
        raise ValueError(
            "Expected a guide with draws where the model has a positive density, but all"
            f" {num_samples} weights are zero"
        )
    smoothed, khat = psislw(log_weights.cpu().numpy(), normalize=False)
    smoothed = torch.as_tensor(smoothed).to(log_weights)
    total = smoothed.logsumexp(0)
    normalized = smoothed - total
    return PSIS(
        khat=float(khat) if _has_tail(log_weights) else -math.inf,
        effective_sample_size=float((-(2 * normalized).logsumexp(0)).exp()),
        log_evidence=float(total) - math.log(num_samples),
        log_weights=normalized,
        samples=samples,
    )


def _imported_psislw() -> Callable[..., Any]:
    try:
        from arviz import psislw
    except ImportError as error:
        raise ImportError("psis needs arviz: pip install 'pyro-mixtures[plot]'") from error
    return psislw


def _has_tail(log_weights: Tensor) -> bool:
    """Whether the largest weights differ by more than rounding; arviz has infinity if not."""
    count = len(log_weights)
    tail = math.ceil(min(count / 5, 3 * math.sqrt(count)))
    largest = log_weights.topk(tail + 1).values
    rounding = 4 * torch.finfo(largest.dtype).eps
    return not bool(largest[0] - largest[-1] <= rounding * largest[0].abs().clamp_min(1))


def _drawn_in_turn(model, guide, args, kwargs, count: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Log weights ``(count,)`` and samples of runs one after another, of the same subsamples."""
    subsamples = Trace()
    log_weights: list[Tensor] = []
    samples: dict[str, list[Tensor]] = {}
    for _ in range(count):
        traces = _traces(model, guide, args, kwargs, subsamples)
        names = _latent_sites(*traces)
        if log_weights and names != list(samples):
            raise ValueError(
                f"Expected the same latent sites in each run, but got {', '.join(samples)} and"
                f" then {', '.join(names)}"
            )
        log_weights.append(_log_weights(*traces, (1,)))
        for name in names:
            samples.setdefault(name, []).append(_value(traces[0], name))
        subsamples = subsamples if subsamples.nodes else _subsamples(*traces)
    stacked = {name: torch.stack(each) for name, each in samples.items()}
    _check_density(stacked, traces[0])
    return torch.cat(log_weights), stacked


def _drawn_at_once(model, guide, args, kwargs, count: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Log weights ``(count,)`` and samples of one run within a plate of all samples."""
    single = _traces(model, guide, args, kwargs, Trace())  # also sets up a guide never called
    sites = [site for trace in single for _, site in _sites(trace)]
    dims = [frame.dim for site in sites for frame in site["cond_indep_stack"] if frame.vectorized]
    batch = (count,) + (1,) * max((-dim for dim in dims), default=0)
    in_plate = plate("_psis_samples", count, dim=-len(batch))
    traces = _traces(in_plate(model), in_plate(guide), args, kwargs, Trace())
    samples = {}
    for name in _latent_sites(*traces):
        value, shape = _value(traces[0], name), _value(single[0], name).shape
        _check_vectorized(name, value.numel() == count * shape.numel(), value.shape)
        samples[name] = value.reshape(count, *shape)
    _check_density(samples, traces[0])
    return _log_weights(*traces, batch), samples


def _traces(model, guide, args, kwargs, fixed: Trace) -> tuple[Trace, Trace]:
    """Of the model, run on a draw of the guide, and of the guide; ``fixed`` sites keep values."""
    guide_trace = poutine.trace(poutine.replay(guide, trace=fixed)).get_trace(*args, **kwargs)
    replayed = poutine.replay(poutine.replay(model, trace=fixed), trace=guide_trace)
    return poutine.trace(replayed).get_trace(*args, **kwargs), guide_trace


def _subsamples(*traces: Trace) -> Trace:
    found = Trace()
    for trace in traces:
        found.nodes.update(
            {name: site for name, site in trace.nodes.items() if site_is_subsample(site)}
        )
    return found


def _value(trace: Trace, name: str) -> Tensor:
    value: Any = trace.nodes[name]["value"]
    return value


def _counts(site: Any) -> bool:
    return site["type"] == "sample" and not site_is_subsample(site)


def _latent_sites(model_trace: Trace, guide_trace: Trace) -> list[str]:
    """Names of the model's latent sites, with a check that the guide samples just those."""
    in_model, in_guide = (
        {name: site for name, site in trace.nodes.items() if _counts(site)}
        for trace in (model_trace, guide_trace)
    )
    latent = [name for name, site in in_model.items() if not site["is_observed"]]
    missing = [name for name in latent if name not in in_guide]
    if missing:
        raise ValueError(
            "Expected guide to sample each latent site of the model, but it does not sample"
            f" {', '.join(missing)}"
        )
    foreign = [name for name, site in in_guide.items() if _is_foreign(site, in_model.get(name))]
    if foreign:
        raise ValueError(
            "Expected guide to sample latent sites of the model and auxiliary ones (and not to be"
            f" a GuideMessenger, which runs the whole model), but got {', '.join(foreign)}"
        )
    return latent


def _check_density(samples: dict[str, Tensor], model_trace: Trace) -> None:
    """Raise a ``ValueError`` for a guide of single points, whose weights mean nothing."""
    for name, value in samples.items():
        site: Any = model_trace.nodes[name]
        if bool((value == value[0]).all()) and not site["fn"].support.is_discrete:
            raise ValueError(
                f"Expected a guide with a density, but all its draws of {name} are the same point"
            )


def _is_foreign(site: Any, of_the_model: Any | None) -> bool:
    """Whether the density of a guide's site has no place in the weights."""
    if of_the_model is None:
        return not (site["is_observed"] or site["infer"].get("is_auxiliary"))
    return of_the_model["is_observed"]


def _log_weights(model_trace: Trace, guide_trace: Trace, batch: tuple[int, ...]) -> Tensor:
    """``log p(z, y) - log q(z)``, ``(S,)``, for traces with samples in the first of the dims."""
    log_p = [_log_prob("model", *item, batch) for item in _sites(model_trace)]
    log_q = [_log_prob("guide", *item, batch) for item in _sites(guide_trace)]
    return torch.stack(log_p).sum(0) - torch.stack(log_q).sum(0)


def _sites(trace: Trace) -> list[tuple[str, Any]]:
    return [(name, site) for name, site in trace.nodes.items() if _counts(site)]


def _log_prob(owner: str, name: str, site: Any, batch: tuple[int, ...]) -> Tensor:
    """Of one site, summed over its plates, ``(S,)``."""
    try:
        log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    except ValueError as error:
        raise ValueError(f"No log_prob at site {name!r} of the {owner}: {error}") from error
    log_prob = torch.as_tensor(scale_and_mask(log_prob, site["scale"], site["mask"]))
    (log_prob,) = double(log_prob)
    if batch[0] > 1:
        as_a_batch = len(log_prob.shape) == len(batch) and log_prob.shape[0] == batch[0]
        _check_vectorized(name, as_a_batch, log_prob.shape)
    total = log_prob.reshape(batch[0], -1).sum(-1)
    allowed = total < math.inf if owner == "model" else total.isfinite()
    if not bool(allowed.all()):
        value = total[~allowed][0].item()
        raise ValueError(
            f"Expected finite log densities, but got log_prob = {value} at site {name!r} of the"
            f" {owner}"
        )
    return total


def _check_vectorized(name: str, fits: bool, shape: torch.Size) -> None:
    if not fits:
        raise ValueError(
            "Expected model and guide to allow vectorize = True, with each batch dimension in a"
            f" plate and one more on the left, but got shape {tuple(shape)} at site {name!r}"
        )
