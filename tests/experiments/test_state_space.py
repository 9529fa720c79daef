"""The state space experiment: the quick run, resuming it, and its table."""

import dataclasses
import json
import math
import os
import subprocess
import sys

import pytest
import torch

from experiments.lab.run import load_checkpoint
from experiments.lab.sweep import Diverged
from experiments.state_space import StateSpace, experiment, fits

FILES = {"config.json", "metrics.csv", "summary.json", "table.md", "elbo.png", "marginals.png"}


def quick(folder, cluster, **arguments):
    return StateSpace(quick=True, out=folder, scheduler=cluster, **arguments)


def results(folder):
    summary = json.loads((folder / "state_space-quick" / "summary.json").read_text())
    return [
        {key: row[key] for key in row if key != "seconds_per_step"} for row in summary["table"]
    ]


def test_a_quick_run_writes_everything(tmp_path, cluster):
    quick(tmp_path, cluster).run()
    folder = tmp_path / "state_space-quick"
    assert {path.name for path in folder.iterdir() if path.is_file()} >= FILES
    rows = results(tmp_path)
    assert [row["guide"] for row in rows] == [candidate.name for candidate in fits.CANDIDATES]
    assert all(row["fits"] == 2 and row["iw_bound"] > row["elbo"] for row in rows)


@pytest.mark.slow
def test_a_quick_run_that_was_stopped_comes_to_the_same_numbers(tmp_path, cluster, monkeypatch):
    quick(tmp_path / "whole", cluster).run()
    rows = results(tmp_path / "whole")
    fit, calls = fits.fit, []

    def stopped_at_the_fifth(**arguments):
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return fit(**arguments)

    def in_turn(run, function, jobs, *, scheduler):
        return {
            name: run.stage(name, lambda job=job: function(**job)) for name, job in jobs.items()
        }

    monkeypatch.setattr(experiment, "sweep", in_turn)
    monkeypatch.setattr(fits, "fit", stopped_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        quick(tmp_path / "broken", None).run()
    with pytest.raises(ValueError, match="unfinished run"):
        quick(tmp_path / "broken", None).run()
    calls.clear()
    monkeypatch.setattr(fits, "fit", fit)
    quick(tmp_path / "broken", None, resume=True).run()
    assert results(tmp_path / "broken") == rows


@pytest.mark.slow
def test_processes_share_each_fit(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [
        "-m",
        "experiments",
        "state-space",
        "--quick",
        "--device",
        "cpu",
        "--out",
        tmp_path,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(results(tmp_path)) == len(fits.CANDIDATES)
    assert done.stdout.count("| K = 1 |") == 1  # told by one of them
    stored = tmp_path / "state_space-quick" / "fits" / "2-clustered-1" / "checkpoint.pt"
    assert load_checkpoint(stored)["settings"]["processes"] == 2


def test_fits_that_diverged_are_counted(tmp_path, monkeypatch):
    message = "2-clustered-0 stopped at step 3: site z_2 of the guide has a value that is nan"

    def diverged(run, function, jobs, *, scheduler):
        return dict.fromkeys(jobs, Diverged(message))

    chosen = {}

    def some_diverged(run, function, jobs, *, scheduler):
        chosen.update({name: jobs[name] for name in ("1-pathwise-1", "2-clustered-1")})
        return diverged(run, function, jobs, scheduler=scheduler) | {
            name: function(**job) for name, job in chosen.items()
        }

    monkeypatch.setattr(experiment, "sweep", some_diverged)
    quick(tmp_path, None).run()
    folder = tmp_path / "state_space-quick"
    table = (folder / "table.md").read_text()
    assert "| K = 1 | 1, 1 |" in table
    assert "| K = 2, score | 0, 2 | nan ± nan |" in table
    assert FILES <= {path.name for path in folder.iterdir()}


def test_table():
    results = [{"bounds": {"elbo": elbo, "iw_bound": -2.0}} for elbo in (-3.0, -5.0)]
    found = {"K = 1": [*results, Diverged("a NaN")]}
    rows = experiment.table_rows(found, -1.5, {"K = 1": 0.01})
    assert rows[0]["elbo"] == -4
    assert rows[0]["elbo_se"] == pytest.approx(1)
    assert rows[0]["divergence"] == 2.5
    expected = "| K = 1 | 2, 1 | -4.000 ± 1.000 | -2.000 ± 0.000 | 2.500 | 10.0 |"
    assert expected in experiment.table(rows)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"seeds": 0}, "Expected seeds >= 1, but got 0"),
        ({"epochs": 0}, "Expected epochs >= 1, but got 0"),
        ({"epochs": 7, "quick": True}, "Expected no epochs of your own with quick"),
        ({"device": "cuda"}, "Expected a CUDA device"),
    ],
)
def test_bad_arguments(arguments, told):
    if arguments.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match=told):
        StateSpace(**arguments)


def test_seeds_and_decay():
    training = StateSpace(seed=3).training(2)
    assert training.seed == 5
    assert math.isclose(training.final_fraction, 0.03)
    assert dataclasses.asdict(training)["epochs"] == 300
