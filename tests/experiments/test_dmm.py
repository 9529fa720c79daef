"""The experiment with chorales: the quick run, resuming it, its data and its tables."""

import csv
import json
import math

import pytest
import torch

from experiments.dmm import DMM, chorales, figures, fits, studies, tables
from experiments.lab.comparison import by_row
from experiments.lab.sweep import Diverged

STUDIES = tuple(studies.STUDIES)


def summary(folder, study):
    return json.loads((folder / "dmm-quick" / study / "summary.json").read_text())


def test_a_quick_run_writes_everything(tmp_path, cluster):
    DMM(quick=True, out=tmp_path, scheduler=cluster).run()
    for name in STUDIES:
        folder = tmp_path / "dmm-quick" / name
        files = {path.name for path in folder.iterdir() if path.is_file()}
        assert files >= {"config.json", "metrics.csv", "summary.json", "table.md"}
        assert files >= {f"{figure}.png" for figure in figures.FIGURES[name]}
        rows = summary(tmp_path, name)["table"]
        assert [row["row"] for row in rows] == [job.name for job in studies.STUDIES[name].jobs(1)]
        for row in rows:
            assert row["fits"] == 1
            assert row["iw_bound_per_step"] > row["elbo_per_step"]
        with (folder / "metrics.csv").open() as file:
            metrics = list(csv.DictReader(file))
        for row in rows:
            curve = [float(x["validation_elbo"]) for x in metrics if x["row"] == row["row"]]
            assert len(curve) == 3
            assert max(curve[1:]) > curve[0], row["row"]


def test_a_run_that_was_stopped_comes_to_the_same_numbers(tmp_path, cluster, monkeypatch):
    def dmm(folder, **arguments):
        return DMM(("gradients",), quick=True, out=folder, scheduler=cluster, **arguments)

    dmm(tmp_path / "whole").run()
    variances, calls = fits.logit_variances, []

    def stopped_at_the_third(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyError("stopped")  # in the second epoch
        return variances(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(fits, "logit_variances", stopped_at_the_third)
        with pytest.raises(KeyError, match="stopped"):
            dmm(tmp_path / "broken").run()
    dmm(tmp_path / "broken", resume=True).run()

    def figures_of(folder):
        rows = summary(folder, "gradients")["table"]
        return [{k: v for k, v in row.items() if k != "seconds_per_step"} for row in rows]

    def equal(one, other):
        return one == other or (math.isnan(one) and math.isnan(other))

    (whole,), (broken,) = figures_of(tmp_path / "whole"), figures_of(tmp_path / "broken")
    for name, value in whole.items():
        assert value == broken[name] or equal(value, broken[name]), name


def some(*lengths):
    return chorales.piano_rolls([[[60]] * length for length in lengths], "train")


@pytest.mark.parametrize(
    ("sequences", "told"),
    [
        ([], "at least one sequence in train"),
        ([[[60]], []], "sequence 1 of train has length 0"),
        ([[[60], [20]]], "21 to 108, but got 20 at step 1 of sequence 0 of train"),
        ([[[109]]], "21 to 108, but got 109 at step 0 of sequence 0 of train"),
        ([[[60.5]]], "21 to 108, but got 60.5"),
    ],
)
def test_sequences_that_are_none(sequences, told):
    with pytest.raises(ValueError, match=told):
        chorales.piano_rolls(sequences, "train")


def test_a_file_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PYRO_MIXTURES_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"jsb_chorales\.json.*no\s+such file"):
        DMM(("best",), out=tmp_path).run()
    assert not (tmp_path / "dmm").exists()


def test_the_file_of_chorales(tmp_path, monkeypatch):
    monkeypatch.setenv("PYRO_MIXTURES_DATA", str(tmp_path))
    split = {"train": [[[21, 108]], [[60], []]], "valid": [[[60]], [[60]] * 3], "test": [[[60]]]}
    (tmp_path / "jsb_chorales.json").write_text(json.dumps(split))
    data = chorales.load()
    assert data.train.rolls.shape == (2, 2, 88)
    assert data.train.lengths.tolist() == [1, 2]
    assert data.train.rolls[0, 0].nonzero().flatten().tolist() == [0, 87]
    assert data.validation.lengths.tolist() == [3, 1]


@pytest.mark.parametrize(
    ("shape", "lengths", "told"),
    [
        ((2, 3, 88), [3, 0], "from 1 to 3, but got 0 to 3"),
        ((2, 3, 88), [3, 4], "from 1 to 3, but got 3 to 4"),
        ((2, 3, 88), [3], "rolls .N, T, notes. and lengths .N,."),
        ((3, 88), [3, 3, 3], "rolls .N, T, notes. and lengths .N,."),
    ],
)
def test_lengths_that_do_not_fit(shape, lengths, told):
    with pytest.raises(ValueError, match=told):
        chorales.there(torch.zeros(shape), torch.tensor(lengths))


def test_batches_have_each_sequence_once_a_pass_and_little_padding():
    lengths = torch.arange(30, 129).tolist()
    batches = chorales.Batches(some(*lengths), 20, passes=3, seed=0)
    assert len(batches) == 15
    seen = [batches[[place]] for place in range(len(batches))]
    for place in range(0, 15, 5):
        found = torch.cat([each[1] for each in seen[place : place + 5]])
        assert found.sort().values.tolist() == lengths
    firsts = [seen[place][1].sort().values.tolist() for place in (0, 5, 10)]
    assert firsts[0] != firsts[1] != firsts[2]
    for rolls, each in seen:
        assert rolls.shape[1] == each.max()
    padded = sum(rolls.shape[0] * rolls.shape[1] for rolls, _ in seen)
    assert padded < 1.2 * 3 * sum(lengths)
    with pytest.raises(ValueError, match="batch_size and passes >= 1, but got 0 and 1"):
        chorales.Batches(some(1), 0, 1, 0)


def test_averages_of_bounds():
    found = fits.per_step(torch.tensor([-10.0, -10.0]), torch.tensor([1, 4]))
    assert found == {"per_step": -4.0, "ratios": -6.25, "per_sequence": -10.0}


def test_options_that_are_none():
    with pytest.raises(ValueError, match="seeds >= 1"):
        DMM(seeds=0)
    with pytest.raises(ValueError, match="studies"):
        DMM(studies=("none",))


def test_the_table_tells_fits_that_diverged_or_were_truncated():
    job = studies.table1(1)[0]

    def result(elbo, epoch):
        bounds = torch.tensor(elbo)
        lengths = torch.tensor([1, 2])
        return {"rows": [{"epoch": epoch}], "elbo": bounds, "iw_bound": bounds, "lengths": lengths}

    last = job.training.epochs
    results = by_row(
        [
            (job, result([-3.0, -6.0], last)),
            (job, result([-6.0, -12.0], last - 1)),
            (job, Diverged("NaN")),
        ]
    )
    (row,) = tables.rows(results, {job.name: 0.25})
    assert (row["fits"], row["diverged"], row["truncated"]) == (2, 1, 1)
    assert row["elbo_per_step"] == -4.5
    assert row["elbo_per_step_se"] == pytest.approx(1.5)
    line = tables.table("Title", [row]).splitlines()[-1]
    assert line.startswith(f"| K = 1 | 2, 1 | {last}, truncated | -4.500 ± 1.500 |")
    assert line.endswith("| 250 |")
