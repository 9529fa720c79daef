"""The experiment with flows: the quick run, resuming it, its tables."""

import csv
import json
import math

import pytest
import torch

from experiments.flows import Flows, experiment, toy
from experiments.flows.part import mean_and_error, table, told
from experiments.lab.sweep import Diverged

FIGURES = {
    "toy": {"densities.png", "samples.png"},
    "entropy": {"samples.png", "violations.png"},
    "reverse": {"found.png"},
    "gradients": set(),
    "inverse": {"angles.png", "coverage.png"},
}


def summary(folder, part):
    return json.loads((folder / "flows-quick" / part / "summary.json").read_text())["table"]


@pytest.mark.parametrize("part", experiment.PARTS)
def test_a_quick_run_writes_everything(part, tmp_path, cluster):
    Flows((part,), quick=True, out=tmp_path, scheduler=cluster).run()
    folder = tmp_path / "flows-quick" / part
    files = {path.name for path in folder.iterdir() if path.is_file()}
    assert files == {"config.json", "metrics.csv", "summary.json", "table.md"} | FIGURES[part]
    rows = summary(tmp_path, part)
    with (folder / "metrics.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    lines = (folder / "table.md").read_text().splitlines()
    assert len(lines) == 2 + len(rows)
    assert len({line.count("|") for line in lines}) == 1


def test_a_run_that_was_stopped_comes_to_the_same_numbers(tmp_path, cluster, monkeypatch):
    def flows(folder, **arguments):
        return Flows(("toy",), quick=True, out=folder, scheduler=cluster, **arguments)

    flows(tmp_path / "whole").run()
    judged, calls = toy.judged, []

    def stopped_in_the_third(*args):
        calls.append(args)
        if len(calls) == 5:
            raise KeyError("stopped")  # two calls a fit
        return judged(*args)

    monkeypatch.setattr(toy, "judged", stopped_in_the_third)
    with pytest.raises(KeyError, match="stopped"):
        flows(tmp_path / "broken").run()
    with pytest.raises(ValueError, match="unfinished run"):
        flows(tmp_path / "broken").run()
    flows(tmp_path / "broken", resume=True).run()

    def figures_of(folder):
        return [{k: v for k, v in row.items() if k != "seconds"} for row in summary(folder, "toy")]

    assert figures_of(tmp_path / "broken") == figures_of(tmp_path / "whole")


def test_options_that_are_none():
    with pytest.raises(ValueError, match="seeds >= 1"):
        Flows(seeds=0)
    with pytest.raises(ValueError, match="parts"):
        Flows(("none",))


def test_cells():
    assert table({"a": str, "b": lambda row: "x"}, [1, 2]).splitlines()[2:] == [
        "| 1 | x |",
        "| 2 | x |",
    ]
    assert mean_and_error([1.0, 3.0, math.nan]) == (2.0, 1.0)
    assert told(*mean_and_error([2.0])) == "2.000"
    assert told(*mean_and_error([1.0, 3.0]), 1) == "2.0 ± 1.0"
    assert told(*mean_and_error([])) == "-"


def toy_result(values):
    return {
        "log_likelihood": torch.tensor(values),
        "stray": torch.tensor([0.1, 0.3]),
        "parameters": 2000,
        "seconds": 8.0,
    }


def test_gains_are_by_seed_and_fits_that_diverged_are_told():
    bases = ("Normal", "K = 2", "K = 5", "RAD")
    jobs = {base: {"density": "ring", "base": base, "seeds": 2} for base in bases}
    results = {
        "Normal": toy_result([-2.0, -1.0]),
        "K = 2": toy_result([-1.0, 0.0]),
        "K = 5": Diverged("NaN"),
        "RAD": toy_result([-1.0, -1.0]),
    }
    rows = {row["base"]: row for row in toy.rows(jobs, results)}
    assert (rows["K = 2"]["gain"], rows["K = 2"]["gain_error"]) == (1.0, 0.0)
    assert (rows["K = 2"]["gain_over_rad"], rows["K = 2"]["gain_over_rad_error"]) == (0.5, 0.5)
    assert rows["K = 2"]["log_likelihood"] == -0.5
    assert rows["K = 2"]["seconds"] == 4.0
    assert rows["K = 5"]["diverged"] == "NaN"
    lines = table(toy.COLUMNS, list(rows.values())).splitlines()
    assert lines[3] == (
        "| ring | K = 2 | -0.500 ± 0.500 | 1.000 ± 0.000 | 0.500 ± 0.500 | 20.0 % | 2000 | 4.0 |"
    )
    assert lines[4] == "| ring | K = 5 | - | - | - | - | - | - |"


def test_stray_samples():
    torch.manual_seed(0)
    training, test = torch.randn(2, 2000, 2)
    samples = torch.randn(1000, 2, 2)
    samples[:300, 1] += 100
    found = toy.stray(samples, training, test)
    assert found[0].item() < 0.01
    assert found[1].item() == pytest.approx(0.3, abs=0.01)
