"""Run folders and the training loop: resuming, refusing, and stopping at a NaN."""

import csv
import json
import pickle
import random

import numpy
import pyro
import pytest
import torch

from experiments.lab.full_batch import Schedule, train
from experiments.lab.random_state import get_rng_state, set_rng_state
from experiments.lab.run import Run, atomic_write, load_checkpoint, save_checkpoint

SCHEDULE = Schedule(40, learning_rate=0.1, final_fraction=0.1, log_every=10)


class Stopped(Exception):
    """What a kill is to the process that it meets."""


def fit(run, stop_at=None, nan_at=None):
    """A noisy quadratic; the loss also changes a tensor of its own."""
    torch.manual_seed(0)
    x, average = torch.zeros(3, requires_grad=True), torch.zeros(())
    calls = 0

    def loss():
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise Stopped
        value = (x - 1 + 0.1 * torch.randn(3) + average).square().sum()
        average.mul_(0.9).add_(0.01 * value.detach())
        return value * (float("nan") if calls == nan_at else 1.0)

    def evaluate():
        torch.randn(5)  # must not disturb the training
        return {"elbo": -x.square().sum().item()}

    rows = train(run, "fit", [x], loss, evaluate, SCHEDULE, {"average": average})
    return x.detach(), rows


@pytest.mark.parametrize("stop_at", [3, 9, 25, 40])
def test_an_interrupted_fit_resumes_to_the_same_numbers(tmp_path, stop_at):
    expected, expected_rows = fit(Run(tmp_path, "whole", {}))
    with pytest.raises(Stopped):
        fit(Run(tmp_path, "broken", {}), stop_at=stop_at)
    x, rows = fit(Run(tmp_path, "broken", {}, resume=True))
    assert torch.equal(x, expected)
    assert rows == expected_rows
    metrics = [(tmp_path / name / "metrics.csv").read_text() for name in ("whole", "broken")]
    assert metrics[0] == metrics[1]


def fit_groups(run, stop_at=None):
    """Two groups; all of the gradients are one, so that Adam's steps are its learning rates."""
    x, y = torch.zeros(3, requires_grad=True), torch.zeros(2, requires_grad=True)
    calls = 0

    def loss():
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise Stopped
        return x.sum() + y.sum()

    groups = [{"params": [x]}, {"params": [y], "lr": 0.3, "betas": (0.5, 0.99)}]
    schedule = Schedule(10, learning_rate=0.1, log_every=4)
    rows = train(run, "fit", groups, loss, lambda: {"elbo": 0.0}, schedule)
    return torch.cat([x.detach(), y.detach()]), rows


def test_groups_have_learning_rates_of_their_own(tmp_path):
    whole, rows = fit_groups(Run(tmp_path, "whole", {}))
    assert torch.allclose(whole, torch.tensor([-1.0] * 3 + [-3.0] * 2), rtol=1e-5)
    with pytest.raises(Stopped):
        fit_groups(Run(tmp_path, "broken", {}), stop_at=7)
    assert torch.equal(fit_groups(Run(tmp_path, "broken", {}, resume=True))[0], whole)
    alone, its_rows = fit_groups(None)  # a job of a sweep
    assert torch.equal(alone, whole)
    assert its_rows == rows


def test_metrics_hold_a_row_for_each_logged_step(tmp_path):
    fit(Run(tmp_path, "run", {}))
    with open(tmp_path / "run" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [0, 10, 20, 30, 40]
    assert {row["stage"] for row in rows} == {"fit"}


def test_a_nan_loss_stops_the_fit_and_keeps_the_last_checkpoint(tmp_path):
    run = Run(tmp_path, "run", {})
    told = r"fit stopped at step 19: the loss is nan; the last good checkpoint, of step 10, is .*"
    with pytest.raises(FloatingPointError, match=told + r"fit\.pt"):
        fit(run, nan_at=20)
    checkpoint = run.load("fit")
    assert checkpoint["step"] == 10
    assert all(tensor.isfinite().all() for tensor in checkpoint["tensors"])


def test_a_nan_gradient_does_not_get_into_a_checkpoint(tmp_path):
    """Of a loss that is finite still, at the step before a row."""
    x = torch.zeros(3, requires_grad=True)
    calls = 0

    def loss():
        nonlocal calls
        calls += 1
        kink = (x - x.detach()).abs().sqrt().sum()  # zero, with a gradient of 0 / 0
        return (x - 1).square().sum() + (kink if calls == 20 else 0)

    run = Run(tmp_path, "run", {})
    told = r"fit stopped at step 19: the gradient of tensor 0 of shape \(3,\) is not finite; "
    with pytest.raises(FloatingPointError, match=told):
        train(run, "fit", [x], loss, lambda: {}, SCHEDULE)
    checkpoint = run.load("fit")
    assert checkpoint["step"] == 10
    assert all(tensor.isfinite().all() for tensor in checkpoint["tensors"])


def test_a_nan_of_a_job_tells_of_no_checkpoint():
    with pytest.raises(FloatingPointError, match=r"^fit stopped at step 19: the loss is nan$"):
        fit(None, nan_at=20)


class Code:
    """What a pickle runs when it is loaded."""

    def __reduce__(self):
        return print, ("run",)


def test_a_checkpoint_with_code_is_refused(tmp_path, capsys):
    run = Run(tmp_path, "run", {})
    run.save("stage", {"step": Code()})
    with pytest.raises(pickle.UnpicklingError, match="print"):
        run.load("stage")
    with pytest.raises(pickle.UnpicklingError, match="print"):
        run.stage("stage", lambda: 1)
    assert capsys.readouterr().out == ""


def test_random_states_are_kept_in_checkpoints(tmp_path):
    def draws():
        return torch.rand(3).tolist(), random.random(), numpy.random.rand(3).tolist()

    pyro.set_rng_seed(0)
    draws()
    numpy.random.randn()  # keeps a second number for the next call
    path = tmp_path / "state.pt"
    save_checkpoint(path, get_rng_state())
    expected = draws(), numpy.random.randn()
    pyro.set_rng_seed(1)
    set_rng_state(load_checkpoint(path))
    assert (draws(), numpy.random.randn()) == expected


def test_an_unfinished_run_is_not_overwritten(tmp_path):
    run = Run(tmp_path, "run", {"steps": 10})
    run.save("stage", 1)
    with pytest.raises(ValueError, match="--resume"):
        Run(tmp_path, "run", {"steps": 10})
    with pytest.raises(ValueError, match="steps: 10 there, 20 now"):
        Run(tmp_path, "run", {"steps": 20}, resume=True)
    assert Run(tmp_path, "run", {"steps": 10}, resume=True).load("stage") == 1


def test_a_finished_run_has_settings_versions_and_no_checkpoints(tmp_path):
    run = Run(tmp_path, "run", {"steps": 10})
    run.save("stage", 1)
    run.finish({"answer": 42})
    assert json.loads((run.folder / "summary.json").read_text())["answer"] == 42
    config = json.loads((run.folder / "config.json").read_text())
    assert config["settings"] == {"steps": 10}
    assert {"torch", "pyro-ppl"} <= config["versions"].keys()
    Run(tmp_path, "run", {"steps": 20})  # the folder is free again


def test_a_stage_is_computed_once(tmp_path):
    run = Run(tmp_path, "run", {})
    assert run.stage("stage", lambda: 1) == 1
    assert run.stage("stage", lambda: 2) == 1


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    atomic_write(path, lambda file: file.write(b"old"))

    def fails(file):
        file.write(b"ne")
        raise Stopped

    with pytest.raises(Stopped):
        atomic_write(path, fails)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
