"""The linters find private attributes of other objects."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "private_attributes.py"


@pytest.fixture(scope="module")
def lint():
    specification = importlib.util.spec_from_file_location("private_attributes", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "found",
    ["x._name", "self.core._name", "x._name.y", "f(x)._name", "type(self)._name", "x.__name"],
)
def test_planted(lint, tmp_path, found):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "module.py").write_text(f"import x\n\nprint({found})\n")
    (complaint,) = lint.complaints(tmp_path, ("folder",), {})
    assert complaint.startswith("folder/module.py:3: ")
    assert "public name" in complaint


def test_planted_import(lint, tmp_path):
    (tmp_path / "module.py").write_text("from __future__ import annotations\nfrom x.y import _z\n")
    (complaint,) = lint.complaints(tmp_path, ("module.py",), {})
    assert complaint.startswith("module.py:2: x.y._z ")


@pytest.mark.parametrize(
    "own", ["self._name", "cls._name", "super()._name", "x.__name__", "x.name_", "_name.x"]
)
def test_own(lint, tmp_path, own):
    (tmp_path / "module.py").write_text(f"print({own})\n")
    assert list(lint.complaints(tmp_path, ("module.py",), {})) == []


def test_allowed(lint, tmp_path):
    """Of this owner alone, and as long as it is read."""
    (tmp_path / "module.py").write_text("third._name, other._name\n")
    allowed = {"third._name": "no choice", "third._gone": "no longer"}
    strange, unused = lint.complaints(tmp_path, ("module.py",), allowed)
    assert "module.py:1: other._name" in strange
    assert "third._gone is read nowhere" in unused


def test_no_private_attributes_of_other_objects(lint):
    assert list(lint.complaints(lint.ROOT, lint.PLACES, lint.ALLOWED)) == []
