"""The benchmarks in their quick form: files come out, and what is counted is what is there."""

import json
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import elliptical, growth, limits, speed, svi_step
from benchmarks.__main__ import main
from benchmarks.cases import DIAGONAL, Case
from benchmarks.contenders import DISPLACEMENT, GROUPS, NOT_MEASURED, PYRO, TORCH_ALONE
from benchmarks.growth import exponent
from benchmarks.limits import least_work, nodes
from benchmarks.report import fill, table
from benchmarks.settings import Settings
from benchmarks.steps import elbo_step, without_validation


@pytest.fixture
def one_process(monkeypatch):
    """New processes, which take seconds to start, for memory only."""

    def here(function, *arguments, allocator):
        return function(*arguments)

    for part in (speed, growth, limits, elliptical):
        monkeypatch.setattr(part, "in_fresh_process", here)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_process")
def test_quick_run_writes_json_and_tables(tmp_path):
    main(Settings(out=tmp_path, quick=True, threads=(1,)))
    page = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    for part in ("speed", "memory", "growth", "limits", "elliptical"):
        content = json.loads((tmp_path / f"{part}.json").read_text())
        assert content["versions"]["torch"] == torch.__version__
        assert content["settings"]["quick"]
        section = page.split(f"<!-- begin {part} -->")[1].split(f"<!-- end {part} -->")[0]
        assert "| --- |" in section or not content["rows"]
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert len(rows) == sum(len(group.quick_cases) for group in GROUPS)
    for row in rows:
        assert row["contenders"]
        for result in row["contenders"].values():
            assert 0 < result["median_floors"] < math.inf


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_contenders_take_part_or_say_why_not(group):
    for case in group.cases:
        for contender in group.contenders:
            reason = contender.absent(case)
            assert reason in (None, NOT_MEASURED, "too large")
    assert PYRO.absent(Case(1000, 50, 100)) == "too large"
    assert DISPLACEMENT.absent(Case(1000, 50, 100)) is None


def test_every_parameter_gets_a_gradient_in_a_step():
    seen = []

    def family(*parameters):
        seen.extend(parameters)
        return DISPLACEMENT.distribution(*parameters)

    case = Case(1, 2, 3, batch=4)
    arguments = DISPLACEMENT.arguments(DISPLACEMENT.setting(case))
    elbo_step(family, arguments, case.sample_shape)()
    assert [parameter.grad.shape for parameter in seen] == [(4, 2, 3), (4, 2, 3), (4, 2)]


def test_validation_is_on_again_after_a_compiled_step():
    before = torch.distributions.Distribution._validate_args
    with without_validation():
        assert not torch.distributions.Normal(0.0, 1.0)._validate_args
    assert torch.distributions.Distribution._validate_args == before


@pytest.mark.parametrize("case", [DIAGONAL[1], DIAGONAL[3]], ids=str)
def test_a_step_takes_the_products_counted_as_the_least(case):
    step = TORCH_ALONE.step(case)
    with FlopCounterMode(display=False) as counter:
        step()
    assert least_work(case, nodes(step), operations=0).flops <= counter.get_total_flops()


def test_exponent_of_a_power():
    assert exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)


def test_tables_stand_between_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n")
    fill(page, "x", table(["n"], [["1"]]))
    assert page.read_text() == "a\n<!-- begin x -->\n| n |\n| --- |\n| 1 |\n<!-- end x -->\nb\n"
    with pytest.raises(ValueError, match="begin y"):
        fill(page, "y", "")


def test_svi_steps(capsys):
    svi_step.main(svi_step.Settings(repeats=1, threads=torch.get_num_threads()))
    printed = capsys.readouterr().out
    for what in ("baseball, K = D = 20", "amortized, 100 data", "amortized, one Normal"):
        assert printed.count(f"| {what}") == 2  # with one particle and with several
