"""What is imported when, and what is said without matplotlib."""

import subprocess
import sys

import pytest


def run(code: str) -> str:
    return subprocess.check_output([sys.executable, "-c", code], text=True).strip()


@pytest.mark.parametrize("module", ["pyro_mixtures", "pyro_mixtures.diagnostics"])
def test_matplotlib_is_imported_for_figures_only(module):
    assert run(f"import sys, {module}; print('matplotlib' in sys.modules)") == "False"


def test_without_matplotlib_the_error_names_the_extra():
    code = """
import sys
sys.modules["matplotlib"] = None
try:
    import pyro_mixtures.plotting
except ImportError as error:
    print(error)
"""
    assert run(code).endswith("needs matplotlib: pip install 'pyro-mixtures[plot]'")
