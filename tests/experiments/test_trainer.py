"""The trainer of amortized fits: several processes, resuming, kills, and what errors name."""

import ast
import csv
import dataclasses
import math
import os
import signal
import subprocess
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO

from experiments.annealing import Annealing
from tests.experiments.amortized import DATA, TRAINING, VALIDATION, Guide, model, trainer


class Stopped(Exception):
    """What a kill is to the process that it meets."""


def counted(stop_at):
    """The model, stopped at a call."""
    return from_call(stop_at, stopped)


def from_call(number, other):
    """The model, and another one from a call on."""
    calls = 0

    def changing(x):
        nonlocal calls
        calls += 1
        return (model if calls < number else other)(x)

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
    command += ["-m", "tests.experiments.amortized", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("kind", ["pathwise", "score", "point"])
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
@pytest.mark.parametrize("kind", ["pathwise", "score"])
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
    kept = torch.load(tmp_path / "broken" / "checkpoint.pt", weights_only=False)
    assert kept["epoch"] == 2
    rows = trainer(tmp_path / "broken", resume=True).fit(DATA, VALIDATION)
    expected = trainer(tmp_path / "whole").fit(DATA, VALIDATION)
    assert without_times(rows) == without_times(expected)


def test_two_processes_take_the_steps_of_one(tmp_path):
    """A point has no samples: the gradients are the same, and so are the curves."""
    expected = trainer(tmp_path / "one", "point").fit(DATA, VALIDATION)
    done = run(tmp_path / "two", "point", processes=2)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "two" / "checkpoint.pt", weights_only=False)["rows"]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["step"] == theirs["step"]
        assert ours["validation_elbo"] == pytest.approx(theirs["validation_elbo"], rel=1e-5)
    told = [ast.literal_eval(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [row["step"] for row in told] == [30, 30]


def test_two_processes_go_on_where_they_were_killed(tmp_path):
    expected = run(tmp_path / "whole", "score", processes=2)
    killed = run(tmp_path / "broken", "score", 4, processes=2)
    assert killed.returncode != 0
    resumed = run(tmp_path / "broken", "score", "resume", processes=2)
    assert resumed.returncode == 0, resumed.stderr
    rows = [
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=False)["rows"]
        for name in ("whole", "broken")
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
    with pytest.raises(ValueError, match=r"kind: 'pathwise' there, 'score' now"):
        trainer(tmp_path, "score", resume=True)
    other = dataclasses.replace(TRAINING, batch_size=10)
    with pytest.raises(ValueError, match=r"checkpoint.pt.* other settings \(batch_size: 20 there"):
        trainer(tmp_path, training=other, resume=True)


def test_an_unfinished_fit_is_not_overwritten(tmp_path):
    with pytest.raises(Stopped):
        trainer(tmp_path, model=counted(14)).fit(DATA, VALIDATION)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match="is of an unfinished fit: resume it, or delete it"):
        trainer(tmp_path)
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


def bad_gradient(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z + (0 * z).sqrt(), 1.0).to_event(1), obs=x)


@pytest.mark.filterwarnings("ignore:Encountered NaN")
@pytest.mark.parametrize(
    ("bad", "cause"),
    [
        (bad_likelihood, r"site x of the model has a log density that is nan in \d+ of 20"),
        (bad_prior, r"site z of the model has a log density that is nan in \d+ of 20"),
        (bad_gradient, r"the gradient of guide.net.weight is nan in \d of 6"),
    ],
)
def test_a_nan_is_named_and_the_last_checkpoint_stays(tmp_path, bad, cause):
    training = dataclasses.replace(TRAINING, evaluate_every=2)
    # two calls evaluate the start, ten are steps to the next checkpoint, where two evaluate again
    fitted = trainer(tmp_path / "fit", training=training, model=from_call(18, bad))
    with pytest.raises(FloatingPointError, match=f"fit stopped at step 13: {cause}") as caught:
        fitted.fit(DATA, VALIDATION)
    assert f"the last good checkpoint, of step 10, is {fitted.path}" in str(caught.value)
    assert torch.load(fitted.path, weights_only=False)["step"] == 10


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_a_nan_of_the_validation_is_named(tmp_path):
    with pytest.raises(FloatingPointError, match=r"site x of the model.* is no checkpoint yet"):
        trainer(tmp_path, model=bad_likelihood).fit(DATA, VALIDATION)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_early_stopping_returns_to_the_best_parameters(tmp_path):
    training = dataclasses.replace(TRAINING, epochs=200, learning_rate=0.1, patience=5)
    fitted = trainer(tmp_path, training=training)
    rows = fitted.fit(DATA, VALIDATION)
    best = max(rows, key=lambda row: row["validation_elbo"])
    assert rows[-1]["epoch"] == best["epoch"] + 5 < 200
    stored = torch.load(fitted.path, weights_only=False)
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


def test_annealing_weighs_the_latent_sites():
    x = torch.ones(3, 1)
    guide = Guide("pathwise")
    losses = []
    for weight in (0.0, 0.25, 1.0):
        torch.manual_seed(0)
        with Annealing(weight):
            losses.append(Trace_ELBO().loss(model, guide, x))
    assert losses[1] == pytest.approx(0.75 * losses[0] + 0.25 * losses[2])
    torch.manual_seed(0)
    trace = poutine.trace(guide).get_trace(x)
    replayed = poutine.trace(poutine.replay(model, trace)).get_trace(x)
    replayed.compute_log_prob()
    assert losses[0] == pytest.approx(-replayed.nodes["x"]["log_prob_sum"].item())


def test_the_weight_of_the_latent_sites_grows_step_by_step(tmp_path, monkeypatch):
    weights = []
    monkeypatch.setattr(
        "experiments.trainer.Annealing", lambda weight: weights.append(weight) or Annealing(weight)
    )
    training = dataclasses.replace(TRAINING, annealing_epochs=2)
    trainer(tmp_path, training=training).fit(DATA, VALIDATION)
    assert weights == pytest.approx([min(1, step / 10) for step in range(1, 31)])
