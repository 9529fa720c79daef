"""Options are keyword-only, ``validate_args`` is the last of them, and values are few."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest
from torch.distributions import Distribution

ROOT = Path(__file__).parents[1]
PACKAGES = ("distributions", "infer", "estimators", "nn")
OPTIONS = {"validate_args", "transport", "weight_gradient", "estimator", "planes"}
POSITIONAL = {
    *("probs", "logits"),  # as in torch
    *("num_particles", "init_loc_fn", "init_scale"),  # as in Pyro
    *("args", "kwargs"),  # those of a model
    *("num_rotations", "locs"),  # the size of a guide, and a parameter of a law
}
"""Arguments that have defaults and places."""


def signatures():
    """Of all that packages export, and of the distributions in their modules, by name."""
    found = {}
    for name in PACKAGES:
        package = importlib.import_module(f"pyro_mixtures.{name}")
        found.update({f"{name}.{each}": getattr(package, each) for each in package.__all__})
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            for each, value in vars(importlib.import_module(module.name)).items():
                if inspect.isclass(value) and value.__module__ == module.name and each[0] != "_":
                    if issubclass(value, Distribution):
                        found.setdefault(f"{name}.{each}", value)
    return {name: inspect.signature(value) for name, value in found.items() if is_own(value)}


def is_own(value):
    """Whether its signature is, and no constructor that a class inherits from elsewhere."""
    function = value.__init__ if inspect.isclass(value) else value
    return callable(value) and getattr(function, "__module__", "").startswith("pyro_mixtures.")


SIGNATURES = signatures()


def test_all_packages_are_met():
    assert {name.split(".")[0] for name in SIGNATURES} == set(PACKAGES)
    assert {option for each in SIGNATURES.values() for option in each.parameters} > OPTIONS


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_options_are_keyword_only(name):
    *_, last = parameters = SIGNATURES[name].parameters.values()
    in_place = {each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD}
    optional = {each.name for each in parameters if each.default is not each.empty}
    assert in_place.isdisjoint(OPTIONS)
    assert in_place & optional <= POSITIONAL
    assert last.name == "validate_args" or "validate_args" not in SIGNATURES[name].parameters


def functions():
    """Of all modules, those that they define at any depth."""
    for path in sorted((ROOT / "pyro_mixtures").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def test_no_function_takes_more_than_seven_values_by_place():
    """What belongs together is a record; options have names.

    Compiled loops take addresses and sizes, which they could not name.
    """
    too_many = {}
    for place, node in functions():
        names = [each.arg for each in (*node.args.posonlyargs, *node.args.args)]
        values = [name for name in names if name not in ("self", "cls")]
        if len(values) > 7 and not place.split(":")[0].endswith("_loops.py"):
            too_many[place] = (node.name, values)
    assert too_many == {}
