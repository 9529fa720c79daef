"""Settings of the tests of figures."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import pytest


@pytest.fixture(autouse=True)
def figures() -> Iterator[None]:
    """Closed after each test."""
    yield
    plt.close("all")
