"""The baseball experiment in its quick form, and its pieces."""

import csv
import json
import os
from pathlib import Path

import pyro
import pytest
import torch
from torch.nn.functional import logsigmoid

from experiments.baseball import Baseball, experiment, reference
from experiments.baseball.curves import ESTIMATORS, Fits
from experiments.baseball.fits import K5, MEAN_FIELD, PEER_K5, log_weights, start
from experiments.baseball.model import AT_BATS, COORDINATES, HITS, log_joint, model

FILES = {
    "config.json",
    "metrics.csv",
    "summary.json",
    "reference.npz",
    "sections.png",
    "elbo.png",
    "estimators.png",
    "table.md",
}


def test_log_joint_is_the_model_in_the_unconstrained_space():
    torch.manual_seed(0)
    z = torch.randn(len(COORDINATES), dtype=torch.float64)
    values = {"phi": z[0].sigmoid(), "kappa": 1 + z[1].exp(), "theta": z[2:].sigmoid()}
    constrained = pyro.poutine.trace(pyro.condition(model, values)).get_trace().log_prob_sum()
    jacobian = z[1] + sum((logsigmoid(x) + logsigmoid(-x)).sum() for x in (z[0], z[2:]))
    assert log_joint(z).item() == pytest.approx((constrained + jacobian).item(), rel=1e-5)
    assert torch.allclose(log_joint(z.expand(2, 3, -1)), log_joint(z).expand(2, 3))


@pytest.mark.parametrize("candidate", [MEAN_FIELD, K5, PEER_K5], ids=lambda row: row.name)
def test_guides_weights_average_to_minus_the_loss(candidate):
    """The guide seen by the objective and the density that is judged are one and the same."""
    guide, elbo = start(candidate, particles=4000, seed=0)
    with torch.no_grad():
        guide.get_parameter("locs" if candidate != MEAN_FIELD else "loc").fill_(-1.0)
        loss = elbo.loss(model, guide)
        weights = log_weights(guide, 4000)
    standard_error = weights.std().item() * (2 / 4000) ** 0.5
    assert weights.mean().item() == pytest.approx(-loss, abs=5 * standard_error)


@pytest.mark.parametrize("estimator", [name for name in ESTIMATORS if name != "pathwise"])
def test_estimators_agree_in_the_mean(estimator):
    """All estimators of Fig. 3b have the gradient of the pathwise one, to the noise."""

    def mean_gradient(name, samples=4000):
        fits = Fits(name, seeds=samples, num_components=3)
        with torch.no_grad():  # seeds become samples of one mixture of well-scaled components
            torch.manual_seed(0)
            fits.locs.copy_(torch.tensor([-1.0, 4.0] + [-1.0] * 18) + 0.1 * torch.randn(3, 20))
            fits.raw_scale.fill_(-1.5)
        fits.loss().backward()
        per_sample = torch.cat([p.grad.reshape(samples, -1) for p in fits.parameters], 1)
        return per_sample.mean(0), per_sample.std(0) / samples**0.5

    mean, error = mean_gradient(estimator)
    exact, exact_error = mean_gradient("pathwise")
    scores = (mean - exact) / (error.square() + exact_error.square()).sqrt()
    assert scores.abs().max() < 5  # 123 entries: false alarm about 123 * 6e-7


def whole(folder):
    Baseball(quick=True, out=folder / "whole").run()
    return folder / "whole" / "baseball-quick"


def test_quick_run_writes_everything(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = whole(Path())
    printed = capsys.readouterr().out
    assert "| mixture, K = 20 |" in printed
    assert printed.splitlines()[-1].endswith(f": {folder}")  # relative, as it was given
    assert FILES <= {path.name for path in folder.iterdir()}
    assert json.loads((folder / "summary.json").read_text())["table"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["curve", "plot_sections"])
def test_quick_run_resumes(tmp_path, monkeypatch, stage):
    """A run broken in a stage ends with the numbers of an unbroken one."""
    folder = whole(tmp_path)
    module = experiment.curves if stage == "curve" else experiment.figures
    with monkeypatch.context() as patch:
        patch.setattr(module, stage, _stop)
        with pytest.raises(KeyboardInterrupt):
            Baseball(quick=True, out=tmp_path / stage).run()
    Baseball(quick=True, out=tmp_path / stage, resume=True).run()
    found = tmp_path / stage / "baseball-quick"
    assert (folder / "metrics.csv").read_text() == (found / "metrics.csv").read_text()
    expected, summary = (
        json.loads((each / "summary.json").read_text()) for each in (folder, found)
    )
    for row in expected["table"] + summary["table"]:
        row.pop("steps_per_second", None)
    assert summary["table"] == expected["table"]


def _stop(*args, **kwargs):
    raise KeyboardInterrupt


def test_bad_settings_are_told():
    with pytest.raises(ValueError, match="steps >= 1"):
        Baseball(steps=0)
    with pytest.raises(ValueError, match="quick or demo"):
        Baseball(quick=True, demo=True)
    with pytest.raises(ValueError, match="no steps of your own"):
        Baseball(demo=True, steps=7)


def test_the_demo_says_what_was_found_and_where_to_look():
    single = {"guide": "mean field", "elbo": -478.90, "std_error": 0.15}
    mixture = {"guide": "mixture, K = 20", "elbo": -477.95, "std_error": 0.06}
    found, next_step = experiment.conclusion(Path("results") / "x", single, mixture).splitlines()
    assert "0.95 nats above that of mean field" in found
    assert "40% as much" in found
    assert "results/x/sections.png" in next_step


def test_shipped_reference():
    shipped = reference.read()
    assert shipped["draws"].shape[-1] == len(COORDINATES)
    assert shipped["rhat"].max() < 1.01
    assert shipped["ess"].min() > 400
    errors = (shipped["draws"].mean(0) - shipped["mean"]) / shipped["std"]
    assert abs(errors).max() < 0.2


def test_table_of_hits_is_that_of_efron_and_morris():
    folder = os.environ.get("PYRO_MIXTURES_DATA")
    if folder is None:
        assert sum(HITS.values()) == 215
        return
    with open(Path(folder) / "baseball.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["hits"]) for row in rows] == list(HITS.values())
    assert {int(row["at_bats"]) for row in rows} == {AT_BATS}


def test_nuts_is_cached(tmp_path, monkeypatch):
    settings = Baseball(quick=True, out=tmp_path)
    first = settings._reference(experiment.Run(tmp_path, "run", {}, resume=True))
    monkeypatch.setattr(experiment.reference, "reference", _stop)
    again = settings._reference(experiment.Run(tmp_path, "run", {}, resume=True))
    assert (first["draws"] == again["draws"]).all()
    with pytest.raises(KeyboardInterrupt):
        Baseball(quick=True, seed=1, out=tmp_path)._reference(
            experiment.Run(tmp_path, "run", {}, resume=True)
        )


@pytest.mark.slow
def test_twenty_components_reach_their_elbo(tmp_path):
    """The demo's fit: -478.05 at least, where mean field stays at -478.90."""
    Baseball(demo=True, out=tmp_path).run()
    summary = json.loads((tmp_path / "baseball-demo" / "summary.json").read_text())
    mean_field, mixture = (row["elbo"] for row in summary["table"])
    assert mean_field == pytest.approx(-478.9, abs=0.02)
    assert mixture > -478.05
