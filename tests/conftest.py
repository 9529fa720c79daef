"""Settings that every test shares."""

from collections.abc import Iterator

import hypothesis
import pytest
import torch
from pyro.distributions import TorchDistribution
from torch.distributions import Distribution

hypothesis.settings.register_profile(
    "repeatable", deadline=None, derandomize=True, max_examples=25, database=None
)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def seed() -> None:
    """Each test draws the same random numbers, alone or after others."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def validation() -> Iterator[None]:
    """On again after each test: ``torch.compile`` turns it off for the whole process."""
    classes = (Distribution, TorchDistribution)
    before = [cls._validate_args for cls in classes]
    yield
    for cls, value in zip(classes, before, strict=True):
        cls._validate_args = value
