"""The site builds without a warning, lacks no public name, and the examples of its pages run."""

import contextlib
import importlib
import io
import pkgutil
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pyro
import pytest
from sphinx.util.inventory import InventoryFile

import pyro_mixtures

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [page for page in sorted(DOCS.glob("**/*.md")) if "```python" in page.read_text("utf-8")]
EXAMPLE = re.compile(r"```python\n(.*?)```(?:\n+```text\n(.*?)```)?", re.DOTALL)
INNER = ("numerics", "samples", "velocity")  # modules of functions, without __all__
PACKAGES = [
    package.name
    for package in pkgutil.iter_modules(pyro_mixtures.__path__)
    if package.ispkg and package.name not in INNER
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_examples_run(page, monkeypatch):
    """From top to bottom, as a module that pickle can name, and print what stands below them."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    module = types.ModuleType(page.stem)
    monkeypatch.setitem(sys.modules, page.stem, module)
    names = vars(module)
    text = page.read_text("utf-8")
    for example in EXAMPLE.finditer(text):
        code, output = example.groups()
        before = "\n" * text.count("\n", 0, example.start(1))  # tracebacks name the page's lines
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(before + code, str(page), "exec"), names)
        if output:
            assert printed.getvalue() == output


def test_no_description_is_a_lone_letter():
    """Sphinx takes ``K.`` for the first entry of a list."""
    lone = re.compile(r"^ +\w+: [A-Z]\.$", re.MULTILINE)
    sources = (ROOT / "pyro_mixtures").rglob("*.py")
    assert [path.name for path in sources if lone.search(path.read_text("utf-8"))] == []


def build(copy):
    """The site, made from a copy of the pages: what Sphinx generates stays out of the sources."""
    generated = shutil.ignore_patterns("_build", "generated")
    shutil.copytree(DOCS, copy / "docs", ignore=generated)
    shutil.copytree(ROOT / "tutorials", copy / "tutorials", ignore=generated)
    for page in ROOT.glob("*.md"):
        shutil.copy(page, copy)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-D", "plot_gallery=0"]
    command += ["-t", "without_sources"]  # a page for each module, which takes half of the time
    result = subprocess.run(
        [*command, copy / "docs", copy / "html"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return copy / "html"


def test_the_site_is_whole(tmp_path):
    """Built without a warning, and with every public name. (One test, for one build.)"""
    site = build(tmp_path)
    with (site / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda uri, path: path)
    documented = {name for kind in inventory.values() for name in kind}
    packages = [f"pyro_mixtures.{name}" for name in PACKAGES]
    public = {f"{name}.{x}" for name in packages for x in importlib.import_module(name).__all__}
    assert sorted(public - documented) == []
    names = {name.rsplit(".")[-1] for name in public}
    assert sorted(set(pyro_mixtures.__all__) - names - set(PACKAGES)) == []

    mathematics = (site / "mathematics.html").read_text("utf-8")
    assert mathematics.count('class="math') > 50
    assert "tex-mml-chtml.js" in mathematics
    assert "<img" in (site / "experiments" / "baseball.html").read_text("utf-8")
    tutorials = [path.stem for path in (ROOT / "tutorials").glob("plot_*.py")]
    assert tutorials
    assert [name for name in tutorials if not (site / "tutorials" / f"{name}.html").exists()] == []
