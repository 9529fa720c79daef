"""The trainer of amortized fits: several processes, resuming, kills, and what errors name."""

import csv
import dataclasses
import math
import os
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule, PyroParam

from experiments.lab.processes import launch
from experiments.lab.run import load_checkpoint
from pyro_mixtures.infer import Annealing
from tests.experiments.lab.amortized import DATA, TRAINING, VALIDATION, Guide, model, trainer

ROOT = Path(__file__).parents[3]


class Stopped(Exception):
    """What a kill is to the process that it meets."""


def counted(stop_at):
    """The model, stopped at a call."""
    return from_call(stop_at, stopped)


def from_call(number, other, first=model):
    """The model, and another one from a call on."""
    calls = 0

    def changing(x):
        nonlocal calls
        calls += 1
        return (first if calls < number else other)(x)

    return changing


def stopped(x):
    raise Stopped


def without_times(rows):
    return [{key: row[key] for key in row if key != "data_per_second"} for row in rows]


def run(*arguments, processes=1):
    """A fit in a process or several of its own."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += ["-m", "tests.experiments.lab.amortized", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("kind", ["pathwise", "hybrid", "point"])
def test_the_elbo_rises_to_the_evidence(tmp_path, kind):
    training = dataclasses.replace(TRAINING, epochs=60, learning_rate=0.05, final_fraction=0.05)
    fitted = trainer(tmp_path, kind, training)
    rows = fitted.fit(DATA, VALIDATION)
    x = VALIDATION.tensors[0]
    evidence = dist.Normal(0.0, 2**0.5).log_prob(x).mean().item()
    if kind == "point":  # the joint density at the mode
        z = x / 2
        evidence = (dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(x)).mean()
    assert rows[-1]["validation_elbo"] == pytest.approx(float(evidence), abs=0.05)


@pytest.mark.parametrize("stop_at", [3, 14, 30])
@pytest.mark.parametrize("kind", ["pathwise", "hybrid"])
def test_a_fit_that_was_stopped_comes_to_the_same_numbers(tmp_path, kind, stop_at):
    expected = trainer(tmp_path / "whole", kind)
    rows = expected.fit(DATA, VALIDATION)
    with pytest.raises(Stopped):
        trainer(tmp_path / "broken", kind, model=counted(stop_at)).fit(DATA, VALIDATION)
    found = trainer(tmp_path / "broken", kind, resume=True)
    assert without_times(found.fit(DATA, VALIDATION)) == without_times(rows)
    for name, value in expected.guide.state_dict().items():
        assert torch.equal(found.guide.state_dict()[name], value)
    with open(tmp_path / "broken" / "metrics.csv") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == [0, 5, 10, 15, 20, 25, 30]


def test_a_kill_in_a_checkpoint_leaves_the_one_before(tmp_path):
    done = run(tmp_path / "broken", "pathwise", 4)  # the first is that of the start
    assert done.returncode == -signal.SIGKILL
    kept = load_checkpoint(tmp_path / "broken" / "checkpoint.pt")
    assert kept["rows"][-1]["epoch"] == 2
    rows = trainer(tmp_path / "broken", resume=True).fit(DATA, VALIDATION)
    expected = trainer(tmp_path / "whole").fit(DATA, VALIDATION)
    assert without_times(rows) == without_times(expected)


def test_two_processes_take_the_steps_of_one(tmp_path):
    """A point has no samples: the gradients are the same, and so are the curves.

    They end while tensors are still exchanged: a thread of their group that lets go of one when
    the interpreter goes would abort the process.
    """
    expected = trainer(tmp_path / "one", "point").fit(DATA, VALIDATION)
    done = run(tmp_path / "two", "point", "leave", processes=2)
    assert done.returncode == 0, done.stderr
    found = load_checkpoint(tmp_path / "two" / "checkpoint.pt")["rows"]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["step"] == theirs["step"]
        assert ours["validation_elbo"] == pytest.approx(theirs["validation_elbo"], rel=1e-5)
    assert done.stdout.count("'step': 30,") == 2  # told by both, in one line or two


@pytest.mark.slow
def test_fabric_run_starts_processes_too(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "lightning.fabric.cli", "--accelerator", "cpu"]  # fabric run
    command += ["--devices", "2", "--main-port", port]
    command += ["tests/experiments/lab/amortized.py", str(tmp_path), "point"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    stored = load_checkpoint(tmp_path / "checkpoint.pt")
    assert stored["settings"]["processes"] == 2
    assert stored["settings"]["precision"] == "32-true"


def test_the_bar_tells_both_elbos(tmp_path, capsys):
    fitted = trainer(tmp_path)
    fitted.progress = True
    row = fitted.fit(DATA, VALIDATION)[-1]
    told = capsys.readouterr().err
    assert "30/30" in told
    for name in ("train_elbo", "validation_elbo"):
        assert f"{name}={row[name]:.5g}" in told


@pytest.mark.slow
def test_two_processes_go_on_where_they_were_killed(tmp_path):
    expected = run(tmp_path / "whole", "hybrid", processes=2)
    killed = run(tmp_path / "broken", "hybrid", 4, processes=2)
    assert killed.returncode != 0
    resumed = run(tmp_path / "broken", "hybrid", "resume", processes=2)
    assert resumed.returncode == 0, resumed.stderr
    rows = [
        load_checkpoint(tmp_path / name / "checkpoint.pt")["rows"] for name in ("whole", "broken")
    ]
    assert expected.returncode == 0
    assert without_times(rows[0]) == without_times(rows[1])


def test_a_batch_that_two_processes_cannot_share(tmp_path, monkeypatch):
    fitted = trainer(tmp_path)
    monkeypatch.setattr(type(fitted.fabric), "world_size", 3)
    with pytest.raises(ValueError, match="3 processes can share evenly, but got 20"):
        trainer(tmp_path)


def test_a_checkpoint_of_another_configuration(tmp_path):
    trainer(tmp_path).fit(DATA, VALIDATION)
    with pytest.raises(ValueError, match=r"kind: 'pathwise' there, 'hybrid' now"):
        trainer(tmp_path, "hybrid", resume=True).fit(DATA, VALIDATION)
    other = dataclasses.replace(TRAINING, batch_size=10)
    with pytest.raises(ValueError, match=r"checkpoint.pt.* other settings \(batch_size: 20 there"):
        trainer(tmp_path, training=other, resume=True).fit(DATA, VALIDATION)
    with pytest.raises(ValueError, match=r"settings \(data: 100 there, 30 now"):
        trainer(tmp_path, resume=True).fit(VALIDATION, VALIDATION)


def test_an_unfinished_fit_is_not_overwritten(tmp_path):
    with pytest.raises(Stopped):
        trainer(tmp_path, model=counted(14)).fit(DATA, VALIDATION)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match="is of an unfinished fit: resume it, or delete it"):
        trainer(tmp_path).fit(DATA, VALIDATION)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def bad_likelihood(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        mean = torch.where(x > 1, math.nan, z)
        pyro.sample("x", dist.Normal(mean, 1.0, validate_args=False).to_event(1), obs=x)


def bad_prior(x):
    with pyro.plate("data", len(x)):
        scale = torch.where(x > 1, math.nan, 1.0)  # Pyro's validation refuses it
        z = pyro.sample("z", dist.Normal(0.0, scale).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def bad_sampler(x):
    with pyro.plate("data", len(x)):
        logits = torch.where(x > 1, math.nan, torch.zeros(len(x), 3))  # the sampler refuses it
        pyro.sample("k", dist.Categorical(logits=logits, validate_args=False))
    model(x)


class GuideWithBadGradient(Guide):
    """From a step on, the second of two parameters of the last module has a NaN."""

    def __init__(self, first_bad_call):
        super().__init__("pathwise")
        self.calls, self.first_bad_call = 0, first_bad_call
        self.shift = torch.nn.Linear(1, 2)

    def forward(self, x):
        self.calls += 1
        zero = (0 * self.shift.bias[1]).square()
        if self.calls >= self.first_bad_call:
            zero = zero.sqrt()
        return super().forward(x + zero + 0 * self.shift(x).sum())


def check_nan(fitted, cause):
    with pytest.raises(FloatingPointError, match=f"fit stopped at step 13: {cause}") as caught:
        fitted.fit(DATA, VALIDATION)
    assert f"the last good checkpoint, of step 10, is {fitted.path}" in str(caught.value)
    assert load_checkpoint(fitted.path)["step"] == 10


EVERY_SECOND = dataclasses.replace(TRAINING, evaluate_every=2)
# one call checks the parameters and two evaluate the start; after ten steps two evaluate again
CALL = 1 + 2 + 10 + 2 + 4


@pytest.mark.filterwarnings("ignore:Encountered NaN")
@pytest.mark.parametrize(
    ("bad", "cause"),
    [
        (bad_likelihood, r"site x of the model has a loc that is nan in \d+ of 20"),
        (bad_prior, r"site z of the model has a scale that is nan in \d+ of 20"),
        (bad_sampler, r"site k of the model has a logits that is nan in \d+ of 60"),
    ],
)
def test_a_nan_is_named_and_the_last_checkpoint_stays(tmp_path, bad, cause):
    fitted = trainer(tmp_path / "fit", training=EVERY_SECOND, model=from_call(CALL, bad))
    if bad is bad_sampler:  # of a guide: that of the model is never drawn
        fitted.guide.forward = from_call(CALL, bad_sampler, fitted.guide.forward)
        fitted.model, cause = model, cause.replace("model", "guide")
    check_nan(fitted, cause)


def test_the_parameter_of_a_bad_gradient_is_named(tmp_path):
    fitted = trainer(tmp_path / "fit", training=EVERY_SECOND)
    fitted.guide = GuideWithBadGradient(CALL)
    check_nan(fitted, "the gradient of guide.shift.bias is nan in 1 of 2 elements")


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_a_nan_of_the_validation_is_named(tmp_path):
    with pytest.raises(FloatingPointError, match=r"site x of the model.* is no checkpoint yet"):
        trainer(tmp_path, model=bad_likelihood).fit(DATA, VALIDATION)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_parameters_that_would_not_be_trained_are_refused(tmp_path):
    def decoder(x):
        pyro.param("offset", torch.zeros(()))
        return model(x)

    pyro.clear_param_store()
    with pytest.raises(ValueError, match="but got offset besides, which would not be trained"):
        trainer(tmp_path, model=decoder).fit(DATA, VALIDATION)
    pyro.clear_param_store()


class PyroGuide(PyroModule):
    def __init__(self):
        super().__init__()
        self.net = PyroModule[torch.nn.Linear](1, 1)
        self.scale = PyroParam(torch.tensor(1.0), constraint=dist.constraints.positive)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            return pyro.sample("z", dist.Normal(self.net(x), self.scale).to_event(1))


def test_fits_of_pyro_modules_share_no_parameters(tmp_path):
    found = []
    for name in ("first", "second"):
        fitted = trainer(tmp_path / name)
        torch.manual_seed(0)
        fitted.guide = PyroGuide()
        found.append(without_times(fitted.fit(DATA, VALIDATION)))
        assert fitted.guide.scale_unconstrained.item() != 0  # where it starts
    assert found[0] == found[1]


def test_resuming_with_plates_that_are_guessed(tmp_path):
    several = partial(Trace_ELBO, num_particles=3, vectorize_particles=True)

    def fit(name, model=model, **options):
        fitted = trainer(tmp_path / name, model=model, **options)
        fitted.elbo = several()
        return fitted.fit(DATA, VALIDATION)

    expected = fit("whole")
    with pytest.raises(Stopped):
        fit("broken", counted(16))
    assert without_times(fit("broken", resume=True)) == without_times(expected)


def test_evaluations_do_not_change_the_training(tmp_path):
    weights = []
    for every in (1, 2, 3):
        training = dataclasses.replace(TRAINING, evaluate_every=every)
        fitted = trainer(tmp_path / str(every), training=training)
        fitted.guide.net.eval()  # stays so
        fitted.fit(DATA, VALIDATION)
        assert not fitted.guide.net.training
        assert fitted.guide.training
        weights.append(fitted.guide.net.weight)
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


def test_the_train_elbo_is_a_mean_over_the_data(tmp_path):
    training = dataclasses.replace(TRAINING, epochs=1, learning_rate=1e-12, batch_size=32)
    rows = trainer(tmp_path, "point", training).fit(DATA, DATA)  # batches of 32, 32, 32 and 4
    assert rows[1]["train_elbo"] == pytest.approx(rows[0]["validation_elbo"], rel=1e-5)


def test_bfloat16_where_it_is_asked_for(tmp_path):
    fitted = trainer(tmp_path)
    fitted.fabric = launch("cpu", "bf16-mixed")
    rows = fitted.fit(DATA, VALIDATION)
    assert rows[-1]["validation_elbo"] > rows[0]["validation_elbo"]
    with pytest.raises(ValueError, match="'32-true' or 'bf16-mixed', but got '64-true'"):
        launch("cpu", "64-true")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"epochs": 0}, "Expected epochs >= 1, but got 0"),
        ({"patience": 0}, "Expected patience >= 1, but got 0"),
        ({"evaluate_every": 0}, "Expected evaluate_every >= 1, but got 0"),
        ({"clip_norm": -1.0}, "Expected clip_norm > 0, but got -1.0"),
        ({"weight_decay": -0.1}, "Expected weight_decay >= 0, but got -0.1"),
    ],
)
def test_bad_settings(settings, told):
    with pytest.raises(ValueError, match=told):
        dataclasses.replace(TRAINING, **settings)


def test_no_data(tmp_path):
    with pytest.raises(ValueError, match="Expected validation for each process, but got 0"):
        trainer(tmp_path).fit(DATA, torch.utils.data.TensorDataset(torch.zeros(0, 1)))


@pytest.mark.parametrize("every", [1, 3])
def test_early_stopping_returns_to_the_best_parameters(tmp_path, every):
    training = dataclasses.replace(
        TRAINING, epochs=200, learning_rate=0.1, patience=5, evaluate_every=every
    )
    fitted = trainer(tmp_path, training=training)
    rows = fitted.fit(DATA, VALIDATION)
    best = max(rows, key=lambda row: row["validation_elbo"])
    assert rows[-1]["epoch"] == best["epoch"] + -(-5 // every) * every < 200
    stored = load_checkpoint(fitted.path)
    assert stored["finished"]
    for name, value in fitted.guide.state_dict().items():
        assert torch.equal(stored["best"]["parameters"][f"guide.{name}"], value)
        assert not torch.equal(stored["parameters"][f"guide.{name}"], value)


def test_rates_and_norms_are_as_set(tmp_path):
    training = dataclasses.replace(TRAINING, clip_norm=1e-3)
    fitted = trainer(tmp_path, training=training)
    rows = fitted.fit(DATA, VALIDATION)
    assert rows[-1]["learning_rate"] == pytest.approx(0.02 * 0.5)
    assert rows[3]["learning_rate"] == pytest.approx(0.02 * 0.5**0.5)
    norms = [parameter.grad.norm() for parameter in fitted.guide.parameters()]
    assert torch.stack(norms).norm() == pytest.approx(1e-3, rel=1e-3)


def test_weight_decay_keeps_parameters_small(tmp_path):
    norms = []
    for decay in (0.0, 1e3):
        training = dataclasses.replace(TRAINING, learning_rate=0.1, weight_decay=decay)
        fitted = trainer(tmp_path / str(decay), training=training)
        fitted.fit(DATA, VALIDATION)
        norms.append(sum(x.detach().square().sum() for x in fitted.guide.parameters()).sqrt())
    assert norms[1] < 0.3 * norms[0]


def test_the_weight_of_the_latent_sites_grows_step_by_step(tmp_path, monkeypatch):
    weights = []
    monkeypatch.setattr(
        "experiments.lab.trainer.Annealing",
        lambda weight: weights.append(weight) or Annealing(weight),
    )
    training = dataclasses.replace(TRAINING, annealing_epochs=2)
    trainer(tmp_path, training=training).fit(DATA, VALIDATION)
    assert weights == pytest.approx([min(1, step / 10) for step in range(1, 31)])
