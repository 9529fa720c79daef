"""Sweeps: all jobs run, in workers; a stopped one goes on; a NaN ends its own job only."""

import os
import subprocess

import pytest
import torch
from dask.distributed import LocalCluster

from experiments.lab.run import Run
from experiments.lab.sweep import Diverged, attempt, sweep

JOBS = {f"job {base}": {"base": base, "exp": 2} for base in range(4)}


def test_local_cluster_runs_the_jobs_in_its_own_processes(tmp_path, monkeypatch):
    """These keep freed memory: with dask's threshold each tensor costs a call of the system.

    Dask would set it in this process, too.
    """
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    job = {"cmd": "echo $PPID ${MALLOC_TRIM_THRESHOLD_-unset}"}
    run = Run(tmp_path, "run", {})
    results = sweep(run, subprocess.getoutput, {"first": job, "second": job})
    assert list(results) == ["first", "second"]
    for found in results.values():
        process, threshold = found.split()
        assert int(process) != os.getpid()
        assert threshold == "unset"


@pytest.fixture(scope="module")
def scheduler():
    """Address of a cluster of threads in this process."""
    with LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0") as cluster:
        yield cluster.scheduler_address


def test_stopped_sweep_goes_on_with_what_it_lacks(tmp_path, scheduler):
    run = Run(tmp_path, "run", {})
    expected = {name: job["base"] ** 2 for name, job in JOBS.items()}
    run.save("job 2", "of an earlier run")
    results = sweep(run, pow, JOBS, scheduler=scheduler)
    assert results == {**expected, "job 2": "of an earlier run"}
    again = Run(tmp_path, "run", {}, resume=True)
    assert sweep(again, pow, JOBS, scheduler="tcp://nobody:1") == results  # nothing is left to do


def test_errors_end_the_sweep_and_keep_what_was_done(tmp_path, scheduler):
    run = Run(tmp_path, "run", {})
    sweep(run, pow, JOBS, scheduler=scheduler)
    with pytest.raises(TypeError):
        sweep(run, pow, {**JOBS, "wrong": {"base": "text", "exp": 2}}, scheduler=scheduler)
    assert run.load("job 3") == 9


def diverges():
    raise FloatingPointError("the loss is nan")


def loses_its_cholesky_factor():
    return torch.linalg.cholesky(-torch.eye(2))


def test_nan_ends_its_own_job_only(tmp_path, scheduler):
    assert attempt(diverges, {}) == Diverged("the loss is nan")
    assert isinstance(attempt(loses_its_cholesky_factor, {}), Diverged)
    with pytest.raises(ZeroDivisionError):
        attempt(pow, {"base": 0, "exp": -1})
