"""From a Pyro model to its posterior, in one call."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pyro_mixtures.infer.search.fit_result import FitResult
from pyro_mixtures.infer.search.mode_search import ModeSearch
from pyro_mixtures.infer.search.model_log_density import ModelLogDensity
from pyro_mixtures.infer.search.search_state import save
from pyro_mixtures.numerics.saving import check_folder
from pyro_mixtures.numerics.validation import check_at_least

SAVE_EVERY = 20
"""Steps between two checkpoints."""


@torch.inference_mode(False)  # in which there would be no gradients
def fit(
    model: Callable[..., Any],
    *args: Any,
    num_components: int | None = None,
    covariance: str | None = None,
    max_evaluations: int | None = None,
    num_starts: int = 300,
    seed: int = 0,
    executor: Executor | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> FitResult:
    r"""A mixture of Normals over the unconstrained latent sites, with every mode of the posterior.

    Ascents from draws of the prior find the modes, all in one batch; natural gradient steps fit a
    mixture to them, which grows where the posterior has mass that it lacks, and drops what it does
    not need (:class:`~pyro_mixtures.infer.ModeSearch`). The result says how far to trust it.

    For a model of local variables, or data in subsamples, take a guide and SVI. Ctrl-C ends the
    search with the best mixture so far, once the starts have found the first one. Random numbers
    of torch and Pyro, and Pyro's store of parameters, are left as they are.

    Args:
        model: a Pyro model with continuous latent sites; discrete ones are summed out.
        args: arguments of the model.
        num_components: K, if it shall be fixed; by default as many as are of use, up to 200.
        covariance: of the components, ``"full"`` or ``"diagonal"``; by default full up to 100
            dimensions.
        max_evaluations: of the model's log density with its gradient, at least 10 for each start;
            by default 100,000, or 5,000 for each dimension from 20 to 100, and 200 for each start
            if that is more.
        num_starts: draws of the prior from which to ascend, at least 2. A mode whose basin holds
            a share b of the prior is missed with a probability of ``(1 - b) ** num_starts``.
        seed: of the random numbers; the same seed gives the same result.
        executor: of ``concurrent.futures``, for models that take long: evaluations are spread
            over its workers, and the numbers do not depend on how many there are. Also ask for
            the ``summary`` while it is open.
        checkpoint: a file in which the search is kept now and then; a call with the same
            arguments goes on from it to the same numbers.
        progress: show a bar with the evaluations, the number of components and the ELBO.
        kwargs: keyword arguments of the model; for those with one of the names above hand over
            ``functools.partial(model, seed=...)``.

    Returns:
        :class:`~pyro_mixtures.infer.FitResult`: guide, posterior, draws, modes and summary.

    Raises:
        ValueError: for a model without continuous latent sites or with discrete ones that cannot
            be summed out, a log density that is random or nowhere finite, numbers that are too
            small, or a checkpoint of a search with other settings or of another model or data, or
            in a folder that does not exist.
        NotImplementedError: for a plate that subsamples.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyro_mixtures as pm
        >>> def model(distance):  # the data leave the sign of x open
        ...     x = pyro.sample("x", dist.Normal(0.0, 3.0))
        ...     pyro.sample("y", dist.Normal(x.abs(), 0.5), obs=distance)
        >>> result = pm.fit(model, torch.tensor(3.0), max_evaluations=10_000, progress=False)
        >>> [round(mode.weight, 2) for mode in result.modes]
        [0.5, 0.5]
    """
    began = time.perf_counter()
    check_at_least(2, num_starts=num_starts)
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None:
        check_folder(path)
    density = ModelLogDensity(model, args, kwargs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        starts = density.prior_draws(num_starts).cpu()  # where the search is
    search = ModeSearch(
        density,
        starts,
        num_components=num_components,
        covariance=covariance,
        max_evaluations=max_evaluations,
        seed=seed,
        executor=executor,
    )
    if path is not None and path.exists():
        search.load_state_dict(torch.load(path, weights_only=True))
    _run(search, path, progress)
    return FitResult(search, density, model, args, kwargs, time.perf_counter() - began)


def _run(search: ModeSearch, path: Path | None, progress: bool) -> None:
    with tqdm(total=search.max_evaluations, unit="evaluations", disable=not progress) as bar:
        try:
            while not search.done:
                search.step()
                bar.update(search.evaluations.count - bar.n)
                elbo = f"{search.elbos[-1]:.2f}" if search.elbos else "-"
                bar.set_postfix(K=len(search.parts), ELBO=elbo, refresh=False)
                if path is not None and (search.done or len(search.elbos) % SAVE_EVERY == 0):
                    save(search, path)
        except KeyboardInterrupt:
            if search.parts is None:
                raise
            search.interrupt()
