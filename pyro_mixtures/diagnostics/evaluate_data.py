"""How good an amortized guide is for each datum of a whole data set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor
from tqdm import tqdm

from pyro_mixtures.diagnostics.evaluate import Evaluation, check_chunk_size
from pyro_mixtures.diagnostics.log_weights import Draws
from pyro_mixtures.numerics.pareto import FEWEST_SAMPLES
from pyro_mixtures.numerics.saving import check_folder, save_whole
from pyro_mixtures.numerics.validation import check_at_least

PROBES = 4
"""Draws of the first batch whose weights are compared with those of a checkpoint."""

ROUNDING = 1e-4
"""What other machines and numbers of threads may change of log weights, of their size."""

LARGEST_SEED = 2**31
"""Of a batch: NumPy, whose random numbers are seeded, too, takes no more than 32 bits."""

FIGURES = tuple(field.name for field in fields(Evaluation) if field.name != "num_samples")


@torch.no_grad()
def evaluate_data(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *data: Tensor,
    plate: str,
    batch_size: int = 100,
    num_samples: int = 5000,
    seed: int = 0,
    vectorize: bool | None = None,
    chunk_size: int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Evaluation:
    r"""Bounds on the log evidence of each datum by an amortized guide, batch by batch.

    .. math::
        \log p(x_n) \ge E \log \frac{1}{S} \sum_s \frac{p(x_n, z_s)}{q(z_s \mid x_n)}, \qquad
        z_s \sim q(z \mid x_n)

    It is :func:`evaluate` with ``plate``, ``model(*batch)`` and ``guide(*batch)`` for one batch of
    the data after another, and the same figures, ``(N,)`` on the CPU. Their table has means with
    two errors: that of the draws, and that over data, which says what other data would change.

    Each batch has a seed of its own, of those that a generator with ``seed`` gives in turn. The
    figures of a batch do not depend on the batches before it, and an evaluation that was
    interrupted and goes on has the same numbers as one that was not. Random numbers of torch,
    Python and NumPy are left as they are.

    Args:
        model: a Pyro model whose sites are all in the plate, of the size of the batch.
        guide: a Pyro guide that samples each latent site of the model in the plate. Modules have
            to be in the mode ``eval()``.
        data: tensors of the same first dimension, N. A batch has that of all of them; what is no
            tensor goes into ``functools.partial``.
        plate: name of the plate of the data.
        batch_size: data of a run; the last batch may be smaller.
        num_samples: S, at least 25, for each datum.
        seed: of the seeds of the batches.
        vectorize: as for :func:`evaluate`; by default decided by the first batch.
        chunk_size: samples of a run, as for :func:`evaluate`. By default the values and log
            densities of all sites for a batch stay within 64 MB; layers of a network may need
            more.
        checkpoint: a file in which the figures of each finished batch are kept. A call with the
            same arguments goes on from it; one of other settings or data is refused, and so are
            a model and a guide that weigh a few draws of the first batch otherwise.
        progress: show a bar with the data and the mean of the importance-weighted bound.

    Returns:
        Figures of all data, in their order; ``print`` shows their means.

    Raises:
        ValueError: for data that are no tensors of one first dimension, a batch whose plate has
            another size, sizes that are too small, a checkpoint of another evaluation or in a
            folder that does not exist, and as for :func:`evaluate`.

    Reference:
        Burda, Grosse and Salakhutdinov, *Importance weighted autoencoders* (2016),
        https://arxiv.org/abs/1509.00519, section 5.2: 5,000 samples for each datum.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(y):
        ...     with pyro.plate("data", len(y)):
        ...         x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...         pyro.sample("y", dist.Normal(x, 1.0), obs=y)
        >>> def guide(y):
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("x", dist.Normal(y / 2, 0.8))
        >>> y = torch.linspace(-3.0, 3.0, 60)
        >>> found = evaluate_data(model, guide, y, plate="data", batch_size=25, progress=False)
        >>> exact = dist.Normal(0.0, 2**0.5).log_prob(y)
        >>> bool(((found.iw_bound - exact).abs() < 5 * found.iw_bound_error).all())
        True
    """
    check_at_least(1, batch_size=batch_size)
    check_at_least(FEWEST_SAMPLES, num_samples=num_samples)
    check_at_least(0, seed=seed)
    check_chunk_size(chunk_size, vectorize)
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None:
        check_folder(path)
    batches = _batches(data, batch_size)
    generator = torch.Generator().manual_seed(seed)
    seeds = torch.randint(LARGEST_SEED, (len(batches),), generator=generator).tolist()
    settings = {
        "plate": plate,
        "batch_size": batch_size,
        "num_samples": num_samples,
        "seed": seed,
        "vectorize": vectorize,
        "chunk_size": chunk_size,
        "data": [_fingerprint(each) for each in data],
    }
    known = _known(path, settings) if path is not None and path.exists() else None
    with _seeded(seeds[0]):  # from here a warning finds the user's line
        draws = Draws(model, guide, batches[0], {}, vectorize=vectorize, within=plate)
        probe = _log_weights(draws, PROBES, None)
    found = [] if known is None else _finished(known, probe)
    count = sum(map(len, (batch[0] for batch in batches[: len(found)])))
    with tqdm(total=len(data[0]), initial=count, unit="data", disable=not progress) as bar:
        for batch, batch_seed in list(zip(batches, seeds, strict=True))[len(found) :]:
            draws = Draws(model, guide, batch, {}, vectorize=draws.vectorize, within=plate)
            try:
                with _seeded(batch_seed):
                    log_weights = _log_weights(draws, num_samples, chunk_size)
                figures = Evaluation.from_log_weights(log_weights)
            except ValueError as error:
                last = count + len(batch[0]) - 1
                raise ValueError(f"{error} (in the batch of data {count} to {last})") from error
            count += len(batch[0])
            found.append({name: getattr(figures, name) for name in FIGURES})
            if path is not None:
                save_whole({"settings": settings, "probe": probe, "finished": found}, path)
            bar.update(len(batch[0]))
            bar.set_postfix(bound=f"{_joined(found, 'iw_bound').mean():.3f}", refresh=False)
    return Evaluation(num_samples=num_samples, **{name: _joined(found, name) for name in FIGURES})


def _batches(data: tuple[Tensor, ...], batch_size: int) -> list[tuple[Tensor, ...]]:
    """Of all tensors, with a check that these have one first dimension."""
    if not (data and all(isinstance(each, Tensor) and each.dim() for each in data)):
        raise ValueError(
            "Expected data to be tensors whose first dimension is that of the data set, but got"
            f" {[tuple(d.shape) if isinstance(d, Tensor) else type(d).__name__ for d in data]}"
        )
    sizes = {len(each) for each in data}
    if len(sizes) > 1 or not min(sizes):
        raise ValueError(
            "Expected data of the same first dimension >= 1, but got shapes"
            f" {[tuple(each.shape) for each in data]}"
        )
    return list(zip(*(each.split(batch_size) for each in data), strict=True))


def _log_weights(draws: Draws, count: int, chunk_size: int | None) -> Tensor:
    """``(S, B)`` on the CPU, with a check that the plate has the size of the batch."""
    found = torch.cat([log_weights.cpu() for log_weights, _ in draws.chunks(count, chunk_size)])
    size = len(draws.args[0])
    if found.shape[1] != size:
        raise ValueError(
            f"Expected plate {draws.within!r} of the batch's size {size}, but got"
            f" {found.shape[1]}: take it from the arguments of model and guide"
        )
    return found


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers of a seed, after which all are as they were."""
    before = get_rng_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        pyro.set_rng_seed(seed)
        try:
            yield
        finally:
            set_rng_state(before)


def _fingerprint(data: Tensor) -> list[Any]:
    """What another tensor does not share."""
    raw = data.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return [str(data.dtype), list(data.shape), hashlib.sha256(raw).hexdigest()]


def _known(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint has, with a check that it is of the same settings and data."""
    state: Any = torch.load(path, weights_only=True)
    if not isinstance(state, dict) or state.keys() != {"settings", "probe", "finished"}:
        raise ValueError(
            f"Expected checkpoint to be that of evaluate_data, but got another file: {path}"
        )
    for name, own in settings.items():
        given = state["settings"][name]
        if given != own:
            told = "" if name == "data" else f": {given!r} for {own!r}"
            raise ValueError(f"Expected the checkpoint of the same {name}, but got another{told}")
    return state


def _finished(state: dict[str, Any], probe: Tensor) -> list[dict[str, Tensor]]:
    """Figures of the batches in a checkpoint, with a check that model and guide weigh the same."""
    given, finished = state["probe"], state["finished"]
    close = probe.isclose(given, rtol=ROUNDING, atol=ROUNDING)
    if not bool(close.all()):
        raise ValueError(
            "Expected the checkpoint of the same model and guide, but got that of others, as of"
            f" other parameters: a log weight of {given[~close][0]:.6g} for {probe[~close][0]:.6g}"
        )
    return list(finished)


def _joined(found: list[dict[str, Tensor]], name: str) -> Tensor:
    return torch.cat([each[name] for each in found])
