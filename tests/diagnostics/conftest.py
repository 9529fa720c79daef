"""What the tests of the diagnostics share."""

import pyro
import pytest


@pytest.fixture(autouse=True)
def _no_parameters():
    """Of other tests in these, nor of these in others."""
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()
