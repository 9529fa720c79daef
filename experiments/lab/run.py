"""The folder of a run: settings, metrics, checkpoints and summary, all written atomically."""

from __future__ import annotations

import csv
import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import torch


class Run:
    """``OUT/NAME`` with ``config.json``, ``metrics.csv``, ``summary.json`` and checkpoints.

    Args:
        out: parent folder.
        name: of the experiment.
        settings: everything that the numbers depend on.
        resume: go on from the checkpoints of an unfinished run.

    Raises:
        ValueError: when the folder holds an unfinished run and ``resume`` is false, or one of
            other settings and ``resume`` is true.
    """

    def __init__(
        self, out: Path, name: str, settings: Mapping[str, Any], *, resume: bool = False
    ) -> None:
        self.folder = out / name
        self.checkpoints = self.folder / "checkpoints"
        self.settings = json.loads(json.dumps(dict(settings)))
        unfinished = self.checkpoints.exists() and any(self.checkpoints.iterdir())
        if unfinished and not resume:
            raise ValueError(
                f"{self.folder} holds an unfinished run: add --resume to go on with it, give"
                f" another folder with --out, or delete {self.checkpoints}"
            )
        if unfinished:
            stored = json.loads((self.folder / "config.json").read_text())["settings"]
            check_same_settings(self.folder, stored, self.settings)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self._rows: list[dict[str, Any]] = []
        self.write_json("config.json", {"settings": self.settings, **environment()})

    def checkpoint(self, name: str) -> Path:
        """The file of a stage's checkpoint."""
        return self.checkpoints / f"{name}.pt"

    def load(self, name: str) -> Any | None:
        """The last checkpoint of a stage, or None."""
        path = self.checkpoint(name)
        return load_checkpoint(path) if path.exists() else None

    def save(self, name: str, state: Any) -> None:
        """Write the checkpoint of a stage."""
        save_checkpoint(self.checkpoint(name), state)

    def stage(self, name: str, compute: Callable[[], Any]) -> Any:
        """The result of ``compute``, or that of an earlier run which got this far."""
        result = self.load(name)
        if result is None:
            result = compute()
            self.save(name, result)
        return result

    def log(self, rows: list[dict[str, Any]]) -> None:
        """Add rows to ``metrics.csv``."""
        self._rows += rows
        write_csv(self.folder / "metrics.csv", self._rows)

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file of the run."""
        text = json.dumps(content, indent=2, default=float) + "\n"
        atomic_write(self.folder / name, lambda file: file.write(text.encode()))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json`` and drop the checkpoints: the run is complete."""
        self.write_json("summary.json", {**summary, **environment()})
        for path in self.checkpoints.iterdir():
            path.unlink()


def atomic_write(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file so that a kill at any moment leaves the old one or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def save_checkpoint(path: Path, state: Any) -> None:
    """Write tensors, plain values, and lists, tuples and dicts of such.

    Another class has to be named by ``torch.serialization.add_safe_globals`` to be read again.
    """
    atomic_write(path, lambda file: torch.save(state, file))


def load_checkpoint(path: Path) -> Any:
    """What :func:`save_checkpoint` wrote, on the CPU; a file that holds code is refused."""
    return torch.load(path, map_location="cpu", weights_only=True)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table whose columns are the rows' keys, atomically."""
    fields = list(dict.fromkeys(key for row in rows for key in row))

    def write(file: BinaryIO) -> None:
        with open(file.fileno(), "w", newline="", closefd=False) as text:
            writer = csv.DictWriter(text, fields)
            writer.writeheader()
            writer.writerows(rows)

    atomic_write(path, write)


def check_same_settings(
    place: Path, stored: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Raise a ``ValueError`` that names the settings in which what is stored there differs."""
    differing = {
        key: (stored.get(key), settings.get(key))
        for key in stored.keys() | settings.keys()
        if stored.get(key) != settings.get(key)
    }
    if differing:
        told = ", ".join(f"{key}: {a!r} there, {b!r} now" for key, (a, b) in differing.items())
        raise ValueError(f"{place} holds a run with other settings ({told})")


def on_device(name: str) -> AbstractContextManager:
    """A context in which new tensors are on the device ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ValueError: when ``cuda`` is asked for and torch finds none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("Expected a CUDA device for device = cuda, but torch finds none")
    if name == "cpu" or not torch.cuda.is_available():
        return nullcontext()  # torch's own context costs time with each operation
    return torch.device("cuda")


def environment() -> dict[str, Any]:
    """Versions and hardware that a result names."""
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("pyro_mixtures", "torch", "pyro-ppl", "numpy")},
        },
        "hardware": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        },
    }
