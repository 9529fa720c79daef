"""Independent jobs over seeds and settings, by dask on all cores or on a cluster that exists."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dask
import torch
from dask.distributed import Client, LocalCluster, as_completed
from dask.system import CPU_COUNT
from tqdm import tqdm

from experiments.lab.run import Run

ALONE = threading.Lock()
TRIM = "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_"
"""Of dask's configuration: how much free memory its workers keep.

Its 64 KiB make most tensors ask the system for their pages anew: a step of an autoencoder has
12,000 page faults and takes 1.5 times as long. None leaves it to the C library.
"""


@dataclass(frozen=True)
class Diverged:
    """The result of a job that met a NaN."""

    message: str


torch.serialization.add_safe_globals([Diverged])  # a message, which checkpoints may hold


def sweep(
    run: Run,
    function: Callable[..., Any],
    jobs: Mapping[str, Mapping[str, Any]],
    *,
    scheduler: str | None = None,
) -> dict[str, Any]:
    """``function(**arguments)`` for each job, in processes of one thread each.

    Each result is written as it comes, as the stage of ``run`` with the job's name: a sweep that
    was stopped goes on with the jobs that it lacks.

    Args:
        run: the folder of the run.
        function: of a module that the workers can import; its result is not None.
        jobs: arguments by the names of the jobs, which can stand in names of files.
        scheduler: address of a dask scheduler; by default a cluster on this machine, of a worker
            for each core.

    Returns:
        The results by the names, in the order of ``jobs``; :class:`Diverged` for a job that raised
        a ``FloatingPointError`` or a ``LinAlgError``. Other errors end the sweep.
    """
    results = {name: run.load(name) for name in jobs}
    missing = [name for name in jobs if results[name] is None]
    if not missing:
        return results
    with workers(scheduler, len(missing)) as address, Client(address) as client:
        names = {
            client.submit(attempt, function, dict(jobs[name]), pure=False): name
            for name in missing
        }
        done = as_completed(names, with_results=True)
        for future, result in tqdm(done, "sweep", len(jobs), initial=len(jobs) - len(missing)):
            name = names[future]
            run.save(name, result)
            results[name] = result
    return results


def attempt(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """The result of a job, on one thread; :class:`Diverged` where it met a NaN.

    A worker of several threads takes one job at a time: its random state is one for all.
    """
    torch.set_num_threads(1)
    try:
        with ALONE:
            return function(**arguments)
    except (FloatingPointError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
        return Diverged(str(error))


@contextmanager
def workers(scheduler: str | None, jobs: int = CPU_COUNT) -> Iterator[str]:
    """The address of a scheduler: the given one, or that of a cluster of this machine's cores."""
    if scheduler is not None:
        yield scheduler
        return
    count = min(CPU_COUNT, jobs)
    with (
        dask.config.set({TRIM: None}),
        LocalCluster(count, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
    ):
        yield cluster.scheduler_address
