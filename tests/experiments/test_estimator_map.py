"""The map of estimators: its mixtures, its verdicts, and the quick run."""

import csv
import json

import pytest
import torch

from experiments.estimator_map import EstimatorMap, experiment, tables, verdicts
from experiments.estimator_map.regimes import (
    Row,
    Sizes,
    look_again,
    measure_gumbel,
    measure_row,
    slices,
)
from experiments.logit_gradients import seconds
from experiments.logit_gradients.moments import THRESHOLD, Moments

FILES = {
    "config.json",
    "metrics.csv",
    "summary.json",
    "table.md",
    "winners.png",
    "winners_by_time.png",
    "blended.png",
    "estimators.png",
    "gumbel.png",
}


def cell(**ratios):
    """With these variances, all reliable, relative to a score function of one."""
    found = {name: Moments(1.0, 0.01, 0.0, 1.0) for name in verdicts.SINGLE}
    found |= {name: Moments(value, 0.01, 0.0, 1.0) for name, value in ratios.items()}
    return {"moments": found, "groups": 1, "chains": 1}


@pytest.mark.parametrize("separation", [0.0, 1.0, 12.0])
def test_separation_is_the_root_mean_square_of_distances(separation):
    row = Row(6, 3, spread=0.4)
    mixture = row.mixture(separation)
    distance = torch.pdist(mixture.locs).square().mean().sqrt().item()
    assert distance == pytest.approx(separation, abs=1e-12)
    assert torch.equal(mixture.coord_scale, row.mixture(2.0).coord_scale)


def test_slices_share_rows():
    found = slices((2, 10), (5, 10))
    assert found["D"][10] == found["K"][10] == Row(10, 10)
    assert {row.imbalance for row in found["D, uneven weights"].values()} == {2.0}
    assert {row.spread for row in found["D, uneven scales"].values()} == {0.4}


def test_cells_of_a_row():
    cells = measure_row(Row(3, 2), (1.0, 3.0), Sizes(400, 200, 2), seed=0, with_hub=True)
    assert [(c["separation"], c["cost"]) for c in cells[:5]] == [
        (1.0, "quadratic"),
        (1.0, "cosine"),
        (1.0, "ragged"),
        (1.0, "ELBO"),
        (3.0, "quadratic"),
    ]
    expected = {*verdicts.SINGLE, "learned hub", "stratified", "marginalized"}
    assert all(set(c["moments"]) == expected for c in cells)
    assert all(c["moments"]["score"].reliable for c in cells)
    assert cells[0]["chains"] <= cells[0]["groups"]


def test_the_best_is_reliable_and_simple():
    assert verdicts.winner(cell(displacement=0.5, clustered=0.49)) == "displacement"
    assert verdicts.winner(cell(displacement=0.5, clustered=0.4)) == "clustered"
    silent = cell(displacement=0.5)
    silent["moments"]["implicit"] = Moments(1e-3, 1e-4, 0.0, THRESHOLD + 1)
    assert verdicts.winner(silent) == "displacement"
    slow = dict.fromkeys(verdicts.SINGLE, 1.0) | {"displacement": 3.0}
    assert verdicts.winner(cell(displacement=0.5), slow) == "score"


def test_targets_of_blending():
    found = verdicts.excess(cell(telescoping=0.5, displacement=0.8, blended=0.75))
    assert found["best"] == "telescoping"
    assert found["of_best"] == pytest.approx(1.5)
    assert not found["meets"]
    good = cell(telescoping=0.5, blended=0.6)
    assert verdicts.excess(good)["meets"]
    assert verdicts.reason(cell(telescoping=0.5, displacement=0.8, blended=0.75)) == (
        "another field than displacement is better"
    )
    assert verdicts.missed([good]) == []
    shares = verdicts.shares([good, cell(telescoping=0.5)])
    assert shares["both"] == 0.5
    assert shares["within 1.1 of the score function"] == 1


def test_a_second_look_dismisses_what_was_luck():
    where = {"components": 3, "dim": 2, "imbalance": 0.5, "spread": 0.1, "separation": 1.0}
    lucky = {**cell(telescoping=0.1, blended=0.6), **where, "cost": "quadratic"}
    (missed,) = verdicts.missed([lucky])
    again = look_again(missed, ("score", "blended", "telescoping"), Sizes(500, 200, 1), seed=0)
    found = verdicts.verdict(missed, again)
    assert found["of best"] == pytest.approx(6)
    assert found["again: of best"] < verdicts.OF_BEST
    assert not found["stands"]
    assert verdicts.verdict(missed, lucky)["stands"]
    assert "| no |" in tables.missed([found])
    assert tables.reasons([found]).endswith("| 1 | 0 |")


def test_gumbels_bias_grows_with_the_temperature():
    rows = list(measure_gumbel(Row(4, 2), Sizes(4000, 500, 1), seed=0))
    soft = [
        row
        for row in rows
        if (row["kind"], row["cost"], row["separation"]) == ("gumbel_soft", "quadratic", 4.0)
    ]
    assert soft[0]["square_bias"] < soft[-1]["square_bias"]
    assert soft[0]["variance"] > soft[-1]["variance"]
    assert "| 4 | quadratic | gumbel_soft |" in tables.gumbel(rows)


def test_a_step_of_each_estimator_runs():
    found = seconds.seconds(3, 2, samples=4, repeats=1)
    assert set(verdicts.SINGLE) | {"learned hub", "graves"} <= set(found)
    assert all(value > 0 for value in found.values())


def whole(folder):
    EstimatorMap(quick=True, out=folder / "whole").run()
    return folder / "whole" / "estimator_map-quick"


def test_quick_run_writes_everything(tmp_path, capsys):
    folder = whole(tmp_path)
    assert "| clustered and blended |" in capsys.readouterr().out
    assert FILES <= {path.name for path in folder.iterdir()}
    with open(folder / "metrics.csv") as file:
        assert len({row["estimator"] for row in csv.DictReader(file)}) == 10


@pytest.mark.slow
def test_quick_run_resumes(tmp_path, monkeypatch):
    """A run broken between two stages ends with the numbers of an unbroken one."""
    folder = whole(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "measure_gumbel", _stopped)
        with pytest.raises(KeyboardInterrupt):
            EstimatorMap(quick=True, out=tmp_path / "broken").run()
    EstimatorMap(quick=True, out=tmp_path / "broken", resume=True).run()
    found = tmp_path / "broken" / "estimator_map-quick"
    assert (folder / "metrics.csv").read_text() == (found / "metrics.csv").read_text()
    expected, summary = (
        json.loads((each / "summary.json").read_text()) for each in (folder, found)
    )
    for key in ("targets", "missed", "gumbel"):
        assert summary[key] == expected[key]


def _stopped(*args, **kwargs):
    raise KeyboardInterrupt


def test_bad_settings_are_told():
    with pytest.raises(ValueError, match="draws >= 20, but got 3"):
        EstimatorMap(draws=3)
    with pytest.raises(ValueError, match="components of 2 and more"):
        EstimatorMap(components=(1, 2))
    with pytest.raises(ValueError, match="no pilot of your own"):
        EstimatorMap(quick=True, pilot=7)
