"""The experiment `modes`: judgement, contenders, failures and the quick run."""

import csv
import json
import math
from dataclasses import replace

import pytest
import torch

import pyro_mixtures as pm
from experiments.lab.datasets import VARIABLE
from experiments.lab.sweep import Diverged
from experiments.modes import Modes, contenders, experiment, figures, fits
from experiments.modes.contenders import CONTENDERS, schedule
from experiments.modes.judgement import State, judge
from experiments.modes.targets import TARGETS, mixtures

FILES = {"config.json", "metrics.csv", "summary.json", "table.md", "modes.png", "gaps.png"}
PICTURES = {f"found_{name}.png" for name in experiment.QUICK_TARGETS}
NORMALS = torch.distributions.MultivariateNormal


@pytest.fixture
def pair():
    """Two Normals that are apart, of weights .9 and .1, and a sampler of any weights."""
    weights = torch.tensor([0.9, 0.1], dtype=torch.float64)
    locs = torch.tensor([[-5.0, 0.0], [5.0, 0.0]], dtype=torch.float64)
    eyes = torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    target = mixtures.normal_mixture("pair", weights, locs, eyes, spread=5.0)

    def state(*shares, scale=1.0):
        shares = torch.tensor(shares, dtype=torch.float64)
        mixture = torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(shares),
            NORMALS(locs, covariance_matrix=scale**2 * eyes),
        )
        return State(7, lambda count: mixture.sample((count,)), mixture.log_prob)

    return target, state


def test_the_truth_is_judged_as_such(pair):
    target, state = pair
    row = judge(target, state(0.9, 0.1), draws=2000)
    assert (row["modes"], row["of"], row["evaluations"]) == (2, 2, 7)
    assert row["weight_distance"] < 0.03
    assert row["gap"] == pytest.approx(0.0, abs=1e-9)
    assert row["evidence"] == pytest.approx(0.0, abs=1e-9)


def test_a_mode_is_found_from_a_fifth_of_its_mass(pair):
    target, state = pair
    assert judge(target, state(0.96, 0.04), draws=4000)["modes"] == 2
    assert judge(target, state(0.99, 0.01), draws=4000)["modes"] == 1
    row = judge(target, state(1.0, 0.0), draws=4000)
    assert row["modes"] == 1
    assert row["weight_distance"] == pytest.approx(0.1, abs=0.01)
    assert row["gap"] == pytest.approx(-math.log(0.9), abs=1e-6)


def test_points_far_from_both_find_neither(pair):
    target, _ = pair
    away = torch.tensor([0.0, 8.0], dtype=torch.float64)
    normal = NORMALS(away, torch.eye(2, dtype=torch.float64))
    row = judge(target, State(1, lambda n: normal.sample((n,)), normal.log_prob), draws=500)
    assert row["modes"] == 0
    assert row["weight_distance"] == pytest.approx(1.0, abs=0.01)


def test_importance_weights_mend_the_masses_of_modes(pair):
    target, state = pair
    row = judge(target, state(0.5, 0.5), draws=4000)
    assert row["weight_distance"] == pytest.approx(0.4, abs=0.03)
    assert row["mended_distance"] < 0.02


def test_draws_alone_have_no_bound(pair):
    target, state = pair
    row = judge(target, State(7, state(0.9, 0.1).draw, None), draws=500)
    assert row["modes"] == 2
    assert "elbo" not in row


def test_draws_without_mass_are_counted(pair):
    target, state = pair
    whole = target.log_density

    def hard(z):
        return torch.where(z[:, 0] > -7.0, whole(z), -math.inf)

    row = judge(replace(target, log_density=hard), state(0.9, 0.1), draws=2000)
    assert 10 < row["without_mass"] < 100
    assert "elbo" not in row


def test_looks_are_in_order_and_the_last_is_the_end():
    assert schedule(1) == [1]
    assert schedule(100) == sorted(set(schedule(100)))
    assert schedule(100)[-1] == 100


@pytest.mark.parametrize("name", sorted(CONTENDERS.keys() - {"pyvbmc"}))
def test_contenders(name):
    result = fits.fit("star", name, 0, 240, draws=200)
    assert "error" not in result["rows"][-1]
    assert result["points"].shape == (fits.SHOWN, 2)
    counts = [row["evaluations"] for row in result["rows"]]
    assert counts == sorted(counts)
    seconds = [row["seconds"] for row in result["rows"]]
    assert seconds == sorted(seconds)
    assert torch.get_default_dtype() == torch.float32
    if name != "fit":  # whose last steps need some hundred
        assert counts[-1] == 240 or name == "nuts"
    if name != "nuts":
        # the bound is that of the density that was drawn from
        assert result["rows"][-1]["gap"] > -0.5
        assert math.isfinite(result["rows"][-1]["khat"])


def test_a_chain_whose_warmup_takes_the_budget_gives_its_end():
    states = list(CONTENDERS["nuts"](TARGETS["slcp"](), 0, 60))
    assert len(states) == 4
    assert states[-1].draw(20).shape == (20, 5)
    assert states[-1].draw(20).isfinite().all()


@pytest.mark.parametrize("name", ["fit", "diagonal-mixture"])
def test_contenders_are_repeatable(name):
    keys = ("modes", "elbo", "weight_distance")
    rows = [fits.fit("star", name, 3, 100, draws=100)["rows"][-1] for _ in range(2)]
    assert [rows[0][key] for key in keys] == [rows[1][key] for key in keys]


def test_fit_is_the_search_of_the_package():
    target = TARGETS["radial_velocity"]()
    states = list(CONTENDERS["fit"](target, 0, 100_000))
    counts = [state.evaluations for state in states]
    assert counts == sorted(set(counts))
    assert len(counts) > 2
    posterior = pm.fit(target.model, progress=False).posterior
    torch.manual_seed(0)
    theirs = State(0, lambda count: posterior.sample((count,)), posterior.log_prob)
    rows = [judge(target, state, draws=4000) for state in (states[-1], theirs)]
    assert [row["modes"] for row in rows] == [6, 6]
    assert rows[0]["gap"] < 0.1
    assert rows[0]["gap"] == pytest.approx(rows[1]["gap"], abs=0.05)


@pytest.mark.parametrize("name", ["star", "many_well", "gmm100"])
def test_the_budget_of_fit_is_the_default_of_the_search(name, monkeypatch):
    made = []

    def make(*args, **kwargs):
        search = pm.infer.ModeSearch(*args, **kwargs)
        search.settling = 0
        made.append(search)
        return search

    monkeypatch.setattr(contenders, "ModeSearch", make)
    target = TARGETS[name]()
    assert list(contenders.fit(target, 0, Modes.budget)) == []
    default = pm.infer.ModeSearch(target.log_density, made[0].starts)
    assert made[0].max_evaluations == default.max_evaluations
    assert len(made[0].starts) == contenders.STARTS


def test_even_draws_give_each_component_its_share(pair):
    target, _ = pair
    state = list(CONTENDERS["fit"](target, 0, 4000))[-1]
    row = judge(target, state, draws=1000)
    assert row["modes"] == 2
    assert row["gap"] == pytest.approx(0.0, abs=1e-3)
    assert row["weight_distance"] < 0.006  # independent draws: .009 on average
    assert state.draw(1000).std(0)[1].item() == pytest.approx(1.0, abs=0.1)


def test_a_run_that_has_ended_stays_on_its_curve():
    row = {"target": "star", "contender": "fit"}
    rows = [
        {**row, "seed": seed, "evaluations": count, "modes": modes}
        for seed, count, modes in [(0, 10, 1), (0, 20, 4), (1, 10, 1), (1, 40, 2), (1, 80, 5)]
    ]
    curve = figures._medians(rows, "star", "fit", "evaluations", "modes")
    assert curve == [(10.0, 1.0), (30.0, 3.0), (50.0, 4.5)]


def test_pyvbmc_is_for_few_dimensions():
    row = fits.fit("ten_normals_10", "pyvbmc", 0, 100, draws=100)["rows"][-1]
    assert row["error"].startswith("NotImplementedError: Expected at most 6 dimensions")


def test_failures_are_rows(monkeypatch):
    def fails(target, seed, budget):
        yield State(3, lambda count: torch.zeros(count, 2, dtype=torch.float64), None)
        raise RuntimeError("at the second look")

    monkeypatch.setitem(CONTENDERS, "fails", fails)
    rows = fits.fit("star", "fails", 0, 10, draws=10)["rows"]
    assert [row.get("error") for row in rows] == [None, "RuntimeError: at the second look"]
    monkeypatch.delenv(VARIABLE, raising=False)
    rows = fits.fit("normal_2", "normal", 0, 10, draws=10)["rows"]
    assert rows[0]["error"].startswith("ValueError: Expected posteriordb/normal_2")
    (truth,) = experiment.truths(["normal_2"])
    assert VARIABLE in truth["error"]
    job = {"target": "star", "contender": "normal", "seed": 1}
    assert experiment.failed(job, Diverged("NaN"))["rows"] == [{**job, "error": "NaN"}]


def test_the_table_has_medians_and_failures():
    row = {"target": "star", "contender": "normal", "of": 5, "evaluations": 9, "seconds": 1.0}
    rows = [
        {**row, "seed": 0, "modes": 1, "gap": 50.0},  # an earlier look
        {**row, "seed": 0, "modes": 1, "gap": 1.0},
        {**row, "seed": 1, "modes": 3, "gap": 3.0},
        {"target": "star", "contender": "normal", "seed": 2, "error": "RuntimeError: no"},
        {"target": "star", "contender": "nuts", "seed": 0, "error": "RuntimeError: none"},
    ]
    summary = experiment.summarize(rows, ["star"], ["normal", "nuts"])
    assert summary[0]["runs"] == 2
    assert (summary[0]["modes"], summary[0]["gap"]) == (2, 2.0)
    assert summary[0]["errors"] == ["RuntimeError: no"]
    text = experiment.table(summary)
    line = "| star | normal | 2 of 5 | 2.000 | 1.000 .. 3.000 | - | - | - | - | 9 | 1.0 |"
    assert line in text
    assert "| star | nuts | failed: RuntimeError: none |" in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"seeds": 0}, "seeds >= 1"),
        ({"targets": ("moon",)}, r"targets among .*two_moons.* but got \['moon'\]"),
        ({"contenders": ("best",)}, r"contenders among .* but got \['best'\]"),
        ({"quick": True, "budget": 7}, "no budget of your own with quick"),
    ],
)
def test_bad_arguments(arguments, told):
    with pytest.raises(ValueError, match=told):
        Modes(**arguments)


def test_a_quick_run_writes_everything_and_goes_on(tmp_path, monkeypatch):
    calls = []
    fit = fits.fit

    def stopped(**arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return fit(**arguments)

    monkeypatch.setattr(experiment, "sweep", in_this_process)
    monkeypatch.setattr(fits, "fit", stopped)
    with pytest.raises(KeyboardInterrupt):
        Modes(quick=True, out=tmp_path).run()
    with pytest.raises(ValueError, match="unfinished run"):
        Modes(quick=True, out=tmp_path).run()
    monkeypatch.setattr(fits, "fit", fit)
    Modes(quick=True, out=tmp_path, resume=True).run()
    folder = tmp_path / "modes-quick"
    assert {path.name for path in folder.iterdir() if path.is_file()} >= FILES | PICTURES
    summary = json.loads((folder / "summary.json").read_text())
    jobs = len(experiment.QUICK_TARGETS) * len(experiment.QUICK_CONTENDERS)
    assert len(summary["table"]) == jobs
    assert not any(row["errors"] for row in summary["table"])
    assert [row["target"] for row in summary["targets"]] == list(experiment.QUICK_TARGETS)
    with (folder / "metrics.csv").open() as file:
        assert len(list(csv.DictReader(file))) > jobs


def in_this_process(run, function, jobs, *, scheduler):
    """As ``sweep``, without processes."""
    return {name: run.stage(name, lambda job=job: function(**job)) for name, job in jobs.items()}


@pytest.mark.slow
def test_a_quick_run_on_a_cluster(tmp_path, cluster):
    Modes(quick=True, out=tmp_path, scheduler=cluster).run()
    assert (tmp_path / "modes-quick" / "summary.json").exists()
