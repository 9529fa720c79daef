"""Installation by make: a line if it works, and all that pip has said if it does not."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def install(folder, status):
    """``make demo`` with a Python that answers to everything, and ends pip with this status."""
    for name in ("Makefile", "setup.cfg", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "said by $*"\n[ "$2" != pip ] || exit {status}\n')
    python.chmod(0o755)
    (folder / ".venv" / ".created-with-python3").touch()
    os.utime(folder / ".venv" / ".created-with-python3", (0, 0))
    return subprocess.run(
        ["make", "demo"], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_pip_is_heard_only_if_it_fails(tmp_path):
    for status in (0, 1):
        folder = tmp_path / str(status)
        folder.mkdir()
        result = install(folder, status)
        assert (result.returncode == 0) == (status == 0)
        assert ("said by -m pip install" in result.stdout + result.stderr) == (status == 1)
        for name in ("baseball", "exoplanet"):
            assert (f"said by -m experiments {name}" in result.stdout) == (status == 0)
        assert "said by -m pip install" in (folder / ".venv" / "install.log").read_text()
        assert (folder / ".venv" / ".installed-demo").exists() == (status == 0)
