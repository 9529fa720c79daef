"""The README's examples run as they stand."""

import re
from pathlib import Path

import pyro
import pytest

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def run(example):
    pyro.clear_param_store()
    names = {}
    exec(compile(example, str(README), "exec"), names)
    return names


def test_the_guide_finds_both_modes():
    low, high = run(EXAMPLES[0])["guide"].quantiles([0.25, 0.75])["x"]
    assert low.item() == pytest.approx(-3, abs=0.3)
    assert high.item() == pytest.approx(3, abs=0.3)


def test_the_distribution_has_gradients():
    assert run(EXAMPLES[1])["logits"].grad.abs().min() > 0


def test_links_to_files_hold():
    links = re.findall(r"\]\((?!http)([^)]+)\)", README.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (README.parent / link).exists()] == []
