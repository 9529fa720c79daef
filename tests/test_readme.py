"""The examples of the README and of the pages run as they stand."""

import re
import sys
import types
from pathlib import Path

import pyro
import pytest
import torch

from experiments.weight_gradient_bias import WeightGradientBias

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *ROOT.glob("docs/**/*.md")]


def examples(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


EXAMPLES = examples(README)


def run(example, page=README):
    pyro.clear_param_store()
    module = types.ModuleType(page.stem)
    sys.modules[page.stem] = module  # where pickle finds its classes
    try:
        exec(compile(example, str(page), "exec"), vars(module))
    finally:
        del sys.modules[page.stem]
    return vars(module)


@pytest.fixture(scope="module")
def names():
    """After all examples of the README, from top to bottom."""
    pyro.set_rng_seed(0)
    return run("\n".join(EXAMPLES))


def test_fit_finds_what_the_readme_shows(names):
    summary = names["result"].summary()
    assert summary.passed_checks
    (shown,) = re.findall(r"```text\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    figures = re.findall(r"^(ELBO|log evidence) +(\S+)", shown, re.MULTILINE)
    assert [name for name, _ in figures] == ["ELBO", "log evidence"]
    actual = [summary.elbo, summary.log_evidence]
    assert [float(value) for _, value in figures] == pytest.approx(actual, abs=0.02)
    told = re.findall(r"^  \d  (\S+) .* ship \[(\S+) .*, (\S+) ±", shown, re.MULTILINE)
    for mode, (weight, *place) in zip(summary.modes, told, strict=True):
        assert mode.weight == pytest.approx(float(weight), abs=0.02)
        expected = [float(number) for number in place]
        assert mode.location["ship"].tolist() == pytest.approx(expected, abs=0.1)


def test_the_guide_finds_both_modes(names):
    low, high = names["guide"].quantiles([0.1, 0.9])["ship"][:, 1]
    assert low.item() == pytest.approx(-1.9, abs=0.3)
    assert high.item() == pytest.approx(1.9, abs=0.3)


def test_any_family_has_gradients(names):
    assert names["weights"].grad.abs().min() > 0
    assert names["shapes"].grad.abs().min() > 0


def test_the_readme_is_short_and_its_examples_are_those_above():
    assert len(README.read_text("utf-8").splitlines()) <= 120
    assert len(EXAMPLES) == 3


def test_the_bias_of_pyros_mixture_is_the_one_that_the_readme_shows(capsys):
    """By the command that it names."""
    WeightGradientBias().run()
    torch.set_default_dtype(torch.float32)
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if "e-" in line]
    text = README.read_text("utf-8")
    assert len(rows) == 5
    for cost, *ours, theirs in rows:
        value = float(theirs.rstrip(" |"))
        shown = "below 1e-14" if value < 1e-14 else f"{value:.2g}"
        assert f"{cost} | below 1e-14 | {shown} |" in text
        assert max(map(float, ours)) < 1e-14


def test_a_family_of_your_own():
    page = ROOT / "docs" / "add_your_own_family.md"
    definition, use, *_ = examples(page)
    names = run(f"{definition}\n{use}", page)
    rule = definition[definition.index("@register_velocity") :].splitlines()
    assert len(rule) < 20
    assert names["logits"].grad.abs().min() > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_to_files_hold(page):
    links = re.findall(r"\]\((?!http|project:)([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert links or page != README
