"""Results as files: JSON, and tables between the markers of a Markdown page."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.lab.run import atomic_write, environment


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write results with the versions and the hardware that they depend on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {**content, **environment(), "cpu": cpu_name()}
    text = json.dumps(content, indent=2, default=str) + "\n"
    atomic_write(path, lambda file: file.write(text.encode()))


def fill(page: Path, section: str, text: str) -> None:
    """Replace what stands between ``<!-- begin SECTION -->`` and ``<!-- end SECTION -->``.

    Raises:
        ValueError: when the page has no such markers.
    """
    begin, end = f"<!-- begin {section} -->", f"<!-- end {section} -->"
    pattern = re.compile(f"({re.escape(begin)}).*?({re.escape(end)})", re.DOTALL)
    before = page.read_text(encoding="utf-8")
    after, count = pattern.subn(lambda match: f"{match[1]}\n{text}\n{match[2]}", before)
    if count != 1:
        raise ValueError(f"Expected {begin} and {end} once in {page}, but found {count}")
    atomic_write(page, lambda file: file.write(after.encode()))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def milliseconds(seconds: float) -> str:
    """Three digits."""
    value = 1e3 * seconds
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def machine() -> str:
    """Hardware and versions in a sentence."""
    found = environment()
    versions = ", ".join(f"{name} {value}" for name, value in found["versions"].items())
    return f"Measured on {cpu_name()}, {found['hardware']['cores']} cores; {versions}."


def cpu_name() -> str:
    """Name of the processor, where the system tells it."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return "unknown"
    match = re.search(r"model name\s*: (.*)", path.read_text())
    return match[1] if match else "unknown"
