"""How good a guide is: bounds on the evidence, and how far to trust them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_mixtures.diagnostics.log_weights import Draws
from pyro_mixtures.numerics.pareto import (
    FEWEST_SAMPLES,
    check_log_weights,
    largest_khat,
    pareto_smoothed,
    tail_length,
)
from pyro_mixtures.numerics.precision import double
from pyro_mixtures.numerics.validation import check_at_least
from pyro_mixtures.numerics.weighing import mean_error


@dataclass(frozen=True)
class Evaluation:
    r"""Bounds on the evidence with their standard errors; ``print`` shows them as a table.

    All but the last are tensors of shape ``()``, or ``(N,)`` for the elements of a plate. The
    errors are those of the draws: what other draws would change, not other data. They are
    asymptotic, and too small where few weights prevail, of which :math:`\hat k` tells. The table
    of a plate has means over its elements with two errors: that of the draws, and that over data
    (``elbo_data_error``, ``iw_bound_data_error``).

    Attributes:
        elbo: :math:`\frac1S \sum_s \log w_s`. It is ``-inf``, with an error of NaN, where a draw
            has no density in the model.
        elbo_error: its standard error, that of a mean.
        iw_bound: :math:`\log \frac1S \sum_s w_s`, whose mean is between those of the ELBO and of
            the log evidence.
        iw_bound_error: its standard error, by the delta method.
        khat: :math:`\hat k`, as that of :class:`~pyro_mixtures.diagnostics.PSIS`.
        khat_error: its standard error, :math:`(1 + \hat k) \sqrt M / (M + 10)` for a tail of M
            weights; NaN where there is none.
        effective_sample_size: :math:`(\sum_s w_s)^2 / \sum_s w_s^2`, from 1 to S, of the weights
            as they are, not smoothed.
        effective_sample_size_error: its standard error, by the delta method.
        num_samples: S, the number of draws.
    """

    elbo: Tensor
    elbo_error: Tensor
    iw_bound: Tensor
    iw_bound_error: Tensor
    khat: Tensor
    khat_error: Tensor
    effective_sample_size: Tensor
    effective_sample_size_error: Tensor
    num_samples: int

    @property
    def threshold(self) -> float:
        r"""The largest :math:`\hat k` that S draws can bear, ``min(1 - 1 / log10(S), 0.7)``."""
        return largest_khat(self.num_samples)

    @property
    def elbo_data_error(self) -> Tensor:
        """The standard error over data of the mean ELBO, ``()``; NaN of fewer than two.

        What other data would change, with draws of their own, whose noise is part of it.
        """
        return _error_over_data(self.elbo)

    @property
    def iw_bound_data_error(self) -> Tensor:
        """The standard error over data of the mean bound, as ``elbo_data_error``."""
        return _error_over_data(self.iw_bound)

    def __str__(self) -> str:
        count = self.khat.numel()
        figures = {
            "ELBO": _mean(self.elbo, self.elbo_error, 3),
            "importance-weighted bound": _mean(self.iw_bound, self.iw_bound_error, 3),
        }
        if count > 1:
            over = zip(figures, (self.elbo_data_error, self.iw_bound_data_error), strict=True)
            figures = {name: f"{figures[name]}, over data {error:.3f}" for name, error in over}
        khat, size = "PSIS k-hat", "effective sample size"
        if self.khat.dim():
            above = int((self.khat > self.threshold).sum())
            figures[khat] = f"{_range(self.khat, 2)}, {above} above {self.threshold:.2f}"
            figures[size] = _range(self.effective_sample_size, 1)
            title = f"means over {count} data, {self.num_samples} samples of each"
        else:
            told = "not above" if self.khat <= self.threshold else "above"
            error = _mean(self.khat, self.khat_error, 2)
            figures[khat] = f"{error}, {told} {self.threshold:.2f}"
            figures[size] = _mean(self.effective_sample_size, self.effective_sample_size_error, 1)
            title = f"{self.num_samples} samples"
        return "\n".join([title, *(f"{name:<26}{told}" for name, told in figures.items())])

    @classmethod
    def from_log_weights(cls, log_weights: Tensor) -> Evaluation:
        r"""Of weights that were drawn by other means.

        Args:
            log_weights: :math:`\log p(z_s, y) - \log q(z_s)` of independent draws, ``(S, *B)``,
                for each of ``*B`` its own.

        Returns:
            Figures of shape ``*B``.

        Raises:
            ValueError: for fewer than 25 draws, an empty batch, another type, weights that are
                NaN or infinite, or all zero.

        Example:
            >>> _ = torch.manual_seed(0)
            >>> log_weights = torch.randn(1000, 3)  # whose weights have the mean exp(1 / 2)
            >>> found = Evaluation.from_log_weights(log_weights)
            >>> bool(((found.iw_bound - 0.5).abs() < 4 * found.iw_bound_error).all())
            True
        """
        _check_batch(log_weights)
        (log_weights,) = double(log_weights.detach())
        count, shape = len(log_weights), log_weights.shape[1:]
        columns = log_weights.reshape(count, -1).unbind(1)
        khats = [pareto_smoothed(column)[1] for column in columns]
        khat = log_weights.new_tensor(khats).reshape(shape)
        iw_bound = log_weights.logsumexp(0) - math.log(count)
        ratios = (log_weights - iw_bound).exp()  # of mean 1
        squares = ratios.square()
        size = count / squares.mean(0)
        return cls(
            elbo=log_weights.mean(0),
            elbo_error=mean_error(log_weights),
            iw_bound=iw_bound,
            iw_bound_error=mean_error(ratios),
            khat=khat,
            khat_error=_khat_error(khat, count),
            effective_sample_size=size,
            effective_sample_size_error=size * mean_error(2 * ratios - squares * (size / count)),
            num_samples=count,
        )


@torch.no_grad()
def evaluate(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 1000,
    plate: str | None = None,
    vectorize: bool | None = None,
    chunk_size: int | None = None,
    **kwargs: Any,
) -> Evaluation:
    r"""Two lower bounds on the log evidence by draws of a guide, and what they can be trusted for.

    .. math::
        \frac{1}{S} \sum_s \log w_s \qquad \text{and} \qquad \log \frac{1}{S} \sum_s w_s, \qquad
        w_s = \frac{p(z_s, y)}{q(z_s)}, \quad z_s \sim q

    The first is the ELBO, the second the importance-weighted bound of S samples, which is closer.
    Model and guide are run as they are: modules that dropout or relaxed samples are trained with
    have to be in the mode ``eval()``. Log densities count with their masks and scales; where a
    plate takes a subsample, all draws see the same one.

    With ``plate`` each of its elements gets figures of its own, as :math:`\log p(y_n)` of each
    datum by an amortized guide. Then all sites have to be in that plate, in model and guide: a
    latent that the data share leaves them no evidence of their own. :func:`evaluate_data` takes
    more data than fit in a run.

    Args:
        model: a Pyro model.
        guide: a Pyro guide that samples each latent site of the model. Auxiliary sites must be
            functions of the others and the reverse, as those of Pyro's autoguides are.
        args: arguments of model and guide.
        num_samples: S, at least 25.
        plate: name of a plate of model and guide.
        vectorize: draw samples as batches, which is much faster, for models and guides that allow
            ``vectorize_particles``; or False for one after another. By default as batches where a
            few draws weigh the same in both ways, and otherwise one after another, with a warning.
        chunk_size: samples of a batch; by default so many that the values and
            log densities of all sites stay within a memory budget of 64 MB. Layers of a network
            may need more.
        kwargs: keyword arguments of model and guide.

    Returns:
        The bounds, :math:`\hat k` and the effective sample size, with standard errors.

    Raises:
        ValueError: for ``num_samples < 25``, ``chunk_size < 1``, a ``chunk_size`` with
            ``vectorize = False``, sites outside of ``plate`` or a subsample or loop of it, and as
            for :func:`~pyro_mixtures.diagnostics.psis`.

    References:
        Burda, Grosse and Salakhutdinov, *Importance weighted autoencoders* (2016),
        https://arxiv.org/abs/1509.00519, for the second bound. Vehtari, Simpson, Gelman, Yao and
        Gabry, *Pareto smoothed importance sampling*, JMLR 25(72), 2024,
        https://arxiv.org/abs/1507.02646, for the diagnosis.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> pyro.set_rng_seed(0)
        >>> def model(y):
        ...     with pyro.plate("data", len(y)):
        ...         x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...         pyro.sample("y", dist.Normal(x, 1.0), obs=y)
        >>> def guide(y):
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("x", dist.Normal(y / 2, 0.8))  # the posterior has the scale 0.71
        >>> y = torch.tensor([2.0, -1.0, 0.0])
        >>> found = evaluate(model, guide, y, plate="data")
        >>> exact = dist.Normal(0.0, 2**0.5).log_prob(y)
        >>> bool(((found.iw_bound - exact).abs() < 4 * found.iw_bound_error).all())
        True
        >>> print(found)
        means over 3 data, 1000 samples of each
        ELBO                      -1.697 ± 0.004, over data 0.299
        importance-weighted bound -1.680 ± 0.003, over data 0.299
        PSIS k-hat                -1.92 to -1.74, 0 above 0.67
        effective sample size     974.9 to 977.1
    """
    check_at_least(FEWEST_SAMPLES, num_samples=num_samples)
    check_chunk_size(chunk_size, vectorize)
    draws = Draws(model, guide, args, kwargs, vectorize=vectorize, within=plate)
    chunks = draws.chunks(num_samples, chunk_size)
    return Evaluation.from_log_weights(torch.cat([log_weights for log_weights, _ in chunks]))


def check_chunk_size(chunk_size: int | None, vectorize: bool | None) -> None:
    """Raise a ``ValueError`` for samples of a batch where there are none."""
    if chunk_size is None:
        return
    check_at_least(1, chunk_size=chunk_size)
    if vectorize is False:
        raise ValueError(f"Expected no chunk_size with vectorize = False, but got {chunk_size}")


def _check_batch(log_weights: Tensor) -> None:
    """Raise a ``ValueError`` for what are no weights ``(S, *B)``."""
    check_log_weights(log_weights)
    check_at_least(FEWEST_SAMPLES, num_samples=len(log_weights) if log_weights.dim() else 0)
    if not log_weights.numel():
        raise ValueError(
            "Expected log_weights (S, *B) of at least one element, but got shape"
            f" {tuple(log_weights.shape)}"
        )
    is_zero = (log_weights == -math.inf).all(0)
    if is_zero.dim() and bool(is_zero.any()):
        raise ValueError(
            "Expected a guide with draws where the model has a positive density, but all"
            f" {len(log_weights)} weights are zero of element {is_zero.nonzero()[0].tolist()}"
        )


def _khat_error(khat: Tensor, count: int) -> Tensor:
    """Of maximum likelihood, ``(1 + k) / sqrt(M)``, shrunk as the prior shrinks the estimate."""
    tail = tail_length(count)
    error = (1 + khat.clamp_min(-0.5)) * math.sqrt(tail) / (tail + 10)
    return error.where(khat.isfinite(), math.nan)


def _error_over_data(values: Tensor) -> Tensor:
    several = values.numel() > 1
    return mean_error(values.flatten()) if several else values.new_tensor(math.nan)


def _mean(values: Tensor, errors: Tensor, digits: int) -> str:
    """Mean over independent estimates, and its standard error."""
    error = float(errors.square().sum().sqrt()) / values.numel()
    return f"{float(values.mean()):.{digits}f} ± {error:.{digits}f}"


def _range(values: Tensor, digits: int) -> str:
    return f"{float(values.amin()):.{digits}f} to {float(values.amax()):.{digits}f}"
