"""Settings that every test shares."""

import gc
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pyro
import pytest
import torch
from pyro.distributions import TorchDistribution
from torch.distributions import Distribution

hypothesis.settings.register_profile(
    "repeatable", deadline=None, derandomize=True, max_examples=25, database=None
)
hypothesis.settings.load_profile("repeatable")


LONG = ("test_docs", "test_tutorials", "test_trainer", "test_compile")


BOTH_WAYS = ("distributions", "samples")
"""Folders whose tests of a family run by compiled loops and, once more, by torch alone."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Both ways for each test of the registry's families."""
    folder = Path(metafunc.module.__file__).parent.name
    if "family" in metafunc.fixturenames and folder in BOTH_WAYS:
        metafunc.parametrize("loops", ["compiled", "torch"], indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests come first, so that no process ends with one while the others wait.

    Families without compiled loops have one way.
    """
    items[:] = [item for item in items if not _is_twice(item)]
    items.sort(key=lambda item: item.path.stem not in LONG)


def _is_twice(item: pytest.Item) -> bool:
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    if parameters.get("loops") != "torch":
        return False
    return not getattr(parameters["family"], "has_loops", False)


@pytest.fixture(autouse=True)
def loops(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compiled ones, unless a test asks for torch's operations."""
    with pyro.settings.context(compiled_mixtures=getattr(request, "param", "compiled") != "torch"):
        yield


def pytest_collection_finish() -> None:
    """What was collected stays: Python's collector need not look through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seed() -> None:
    """Each test draws the same random numbers, alone or after others."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def validation() -> Iterator[None]:
    """On again after each test: ``torch.compile`` turns it off for the whole process."""
    classes = (Distribution, TorchDistribution)
    before = [vars(cls).get("_validate_args") for cls in classes]
    yield
    for cls, value in zip(classes, before, strict=True):
        if value is not None:
            cls._validate_args = value
        elif "_validate_args" in vars(cls):  # which would hide that of the class above
            del cls._validate_args
