"""A script that uses the public API passes ``mypy --strict``, and knows all of it."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyro_mixtures as pm

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tests" / "typing" / "user.py"
CACHE = ROOT / ".mypy_cache" / "strict"  # that of other options would not serve


def strictly(path, cache):
    """What mypy says of a script: as of any that imports an installed, typed package."""
    options = ["--strict", "--config-file=", "--follow-imports=silent", "--ignore-missing-imports"]
    options += ["--untyped-calls-exclude=pyro"]  # whose functions have few annotations
    command = [sys.executable, "-m", "mypy", *options, f"--cache-dir={cache}", str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_script_of_a_user():
    found = strictly(SCRIPT, CACHE)
    assert found.returncode == 0, found.stdout + found.stderr


def test_what_is_wrong_is_found(tmp_path):
    """Of a distribution, which has an untyped base, of a function and of a lazy module."""
    script = tmp_path / "wrong.py"
    script.write_text(
        "import pyro_mixtures as pm\n"
        "from torch import zeros\n"
        "q = pm.MixtureOfDiagNormals(zeros(1, 1), zeros(1, 1), zeros(1), transport=3)\n"
        "name: str = q.rsample((2,))\n"
        "pm.kl_bounds(q)\n"
        "pm.plotting.plot_nothing(q)\n"
    )
    found = strictly(script, CACHE).stdout
    assert re.findall(r"wrong.py:(\d)", found) == ["3", "4", "5", "6"], found


@pytest.mark.parametrize(
    "package", [pm, pm.diagnostics, pm.estimators, pm.nn, pm.plotting, pm.testing]
)
def test_the_script_knows_the_public_api(package):
    text = SCRIPT.read_text()
    names = {*package.__all__} - {"components"}  # what mixtures are made of
    assert [name for name in names if not re.search(rf"\b{name}\b", text)] == []


def public(package):
    """Functions, and methods and properties of classes, that a package exports, by name."""
    for name in package.__all__:
        value = getattr(package, name)
        if inspect.isfunction(value):
            yield name, value
        for kind in value.__mro__ if inspect.isclass(value) else ():
            for each, method in vars(kind).items():
                if each == "__init__" or each[0] != "_":
                    method = getattr(method, "fget", None) or getattr(method, "__func__", method)
                    if inspect.isfunction(method):
                        yield f"{kind.__name__}.{each}", method


@pytest.mark.parametrize(
    "package", [pm.distributions, pm.diagnostics, pm.estimators, pm.nn, pm.plotting, pm.infer]
)
def test_public_signatures_are_annotated(package):
    """But for objectives, which pass on what Pyro calls them with."""
    missing = []
    for name, value in public(package):
        module = value.__module__
        if not module.startswith("pyro_mixtures.") or ".objectives." in module:
            continue
        signature = inspect.signature(value)
        given = [each for each in signature.parameters.values() if each.name != "self"]
        bare = [
            each.name for each in given if each.annotation is each.empty and each.name != "cls"
        ]
        if bare or signature.return_annotation is signature.empty:
            missing.append((name, bare))
    assert missing == []
