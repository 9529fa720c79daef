"""The experiment `polish`: steps of SVI from a fit on."""

import json
import math

import pytest

from experiments.modes import polish
from experiments.modes.polish import Polish, polished, summarize, table
from tests.experiments.test_modes import in_this_process


def test_it_starts_at_the_fit_and_goes_on_from_there():
    rows = polished("radial_velocity", 0, [1, 30], rate=1e-3, draws=2000)
    names = [(row["objective"], row["steps"]) for row in rows]
    assert names == [("none", 0), ("ELBO", 1), ("ELBO", 30), ("SIWAE", 1), ("SIWAE", 30)]
    first = rows[0]
    assert first["modes"] == first["of"] == 6
    assert first["gap"] < 0.1
    for row in rows[1:]:  # a step at that rate changes next to nothing
        near = 0.01 if row["steps"] == 1 else 0.1
        assert row["gap"] == pytest.approx(first["gap"], abs=near)
        assert row["gap"] != first["gap"]
        assert 0 < row["seconds"]


def test_a_run_writes_its_table(tmp_path, monkeypatch):
    row = {"target": "star", "modes": 5, "of": 5, "khat": 0.5, "effective_sample_size": 9.0}

    def found(target, seed, steps, *, rate, draws):
        gaps = zip(("none", "SIWAE"), (0, *steps), strict=True)
        return [
            {**row, "objective": name, "steps": count, "gap": seed + count / 100, "seconds": 1.0}
            for name, count in gaps
        ]

    monkeypatch.setattr(polish, "sweep", in_this_process)
    monkeypatch.setattr(polish, "polished", found)
    Polish(targets=("star",), steps=(500,), out=tmp_path).run()
    text = (tmp_path / "polish" / "table.md").read_text()
    assert "| star | `fit` | 1.000 | 0.000 .. 2.000 | 0.50 | 9 | 5 of 5 | 1.0 |" in text
    assert "| star | 500 steps of SIWAE | 6.000 | 5.000 .. 7.000 |" in text
    assert len(json.loads((tmp_path / "polish" / "summary.json").read_text())["table"]) == 2


def test_a_gap_without_end_is_no_number():
    row = {"target": "star", "objective": "ELBO", "steps": 3, "modes": 1, "of": 5, "seconds": 1.0}
    (line,) = summarize([{**row, "seed": 0}])
    assert line["gap"] is None
    assert "| star | 3 steps of ELBO | - | - .. - | - | - | 1 of 5 | 1.0 |" in table([line])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"seeds": 0}, "seeds >= 1"),
        ({"steps": ()}, "steps of at least 1"),
        ({"rate": math.nan}, "rate > 0, but got nan"),
        ({"targets": ("moon",)}, r"targets among .*two_moons.* but got \['moon'\]"),
    ],
)
def test_bad_arguments(arguments, told):
    with pytest.raises(ValueError, match=told):
        Polish(**arguments)
