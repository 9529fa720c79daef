"""Files that are whole at any time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


def check_folder(path: Path) -> None:
    """Raise a ``ValueError`` for a checkpoint in a folder that does not exist."""
    if not path.parent.is_dir():
        raise ValueError(f"Expected checkpoint in a folder that exists, but got {path}")


def save_whole(state: Any, path: Path) -> None:
    """Write by ``torch.save`` to a file beside ``path``, which then takes its place."""
    partial = path.with_name(f"{path.name}.partial")
    torch.save(state, partial)
    os.replace(partial, path)
