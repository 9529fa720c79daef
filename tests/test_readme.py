"""The examples of the README and of the pages run as they stand."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *ROOT.glob("docs/**/*.md")]


def examples(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


EXAMPLES = examples(README)


def run(example, page=README):
    pyro.clear_param_store()
    names = {}
    exec(compile(example, str(page), "exec"), names)
    return names


def test_the_guide_finds_both_modes():
    low, high = run(EXAMPLES[0])["guide"].quantiles([0.25, 0.75])["x"]
    assert low.item() == pytest.approx(-3, abs=0.3)
    assert high.item() == pytest.approx(3, abs=0.3)


def test_the_distribution_has_gradients():
    assert run(EXAMPLES[1])["logits"].grad.abs().min() > 0


def test_any_family_has_gradients():
    names = run(EXAMPLES[2])
    assert names["weights"].grad.abs().min() > 0
    assert names["shapes"].grad.abs().min() > 0


def test_a_fit_is_looked_at(monkeypatch):
    plt.switch_backend("Agg")
    monkeypatch.setattr(plt, "show", lambda: plt.gcf().canvas.draw())
    names = run(EXAMPLES[3])
    plt.close("all")
    assert names["found"].khat < names["found"].threshold
    assert names["nearer"].shape == (500, 2)


@pytest.mark.parametrize("index", range(4, len(EXAMPLES)))
def test_the_other_examples_run(index):
    assert len(run(EXAMPLES[index])["loss"]) == 100


def test_a_family_of_your_own():
    page = ROOT / "docs" / "add_your_own_family.md"
    definition, *rest = examples(page)
    names = run("\n".join([definition, *rest]), page)
    rule = definition[definition.index("@register_velocity") :].splitlines()
    assert len(rule) < 20
    assert names["logits"].grad.abs().min() > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_to_files_hold(page):
    links = re.findall(r"\]\((?!http|project:)([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert links or page != README
