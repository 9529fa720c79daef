"""Imports point downward: the way of a sample, from a guide to the arithmetic, has no circle."""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = (
    "numerics",
    "velocity",
    "families",
    "components",
    "normals",
    "samples",
    "distributions",
    "testing",
    "estimators",
    "nn",
    "infer",
    "diagnostics",
    "plotting",
)
"""From the bottom to the top."""


def modules():
    paths = (ROOT / "pyro_mixtures").rglob("*.py")
    named = {path.relative_to(ROOT).with_suffix("").parts: path for path in paths}
    return {".".join(parts).removesuffix(".__init__"): path for parts, path in named.items()}


def imported(path, known):
    """Modules of the package that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pyro_mixtures"):
            for name in node.names:
                full = f"{node.module}.{name.name}"
                yield full if full in known else node.module


GRAPH = {name: set(imported(path, modules())) - {name} for name, path in modules().items()}


def place(module):
    return module.split(".")[1]


def test_every_folder_has_its_layer():
    assert {place(name) for name in GRAPH if name != "pyro_mixtures"} == set(LAYERS)


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_downward(layer):
    below = LAYERS[: LAYERS.index(layer) + 1]
    upward = {
        (name, other)
        for name, others in GRAPH.items()
        for other in others
        if name != "pyro_mixtures" and place(name) == layer and place(other) not in below
    }
    assert upward == set()


def test_guides_and_objectives_know_nothing_of_each_other():
    prefix = "pyro_mixtures.infer."
    for here, there in (("guides", "objectives"), ("objectives", "guides")):
        for name, others in GRAPH.items():
            if name.startswith(prefix + here):
                assert not [other for other in others if other.startswith(prefix + there)]


def test_there_is_no_circle():
    left = {name: set(others) for name, others in GRAPH.items()}
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}


def test_no_two_files_have_one_name():
    names = Counter(path.name for path in modules().values() if path.name != "__init__.py")
    assert [name for name, count in names.items() if count > 1] == []


def test_every_folder_tells_what_belongs_there():
    for path in (ROOT / "pyro_mixtures").rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path
