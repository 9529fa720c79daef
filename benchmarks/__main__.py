"""``python -m benchmarks [options]`` measures and writes the tables of ``docs/benchmarks.md``."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import tyro

from benchmarks import elliptical, growth, limits, memory, speed
from benchmarks.report import fill, machine, write_json
from benchmarks.settings import Settings

PARTS: dict[str, ModuleType] = {
    "speed": speed,
    "memory": memory,
    "growth": growth,
    "limits": limits,
    "elliptical": elliptical,
}
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def main(settings: Settings) -> None:
    """Measure the parts asked for, one after the other."""
    if settings.quick:
        settings = replace(settings, seconds=0.0, compiled=False)
    page = settings.page or (settings.out / PAGE.name if settings.quick else PAGE)
    settings.out.mkdir(parents=True, exist_ok=True)
    if not page.exists():
        shutil.copy(PAGE, page)  # for its prose and markers
    for name in settings.parts:
        rows = PARTS[name].measure(settings)
        write_json(settings.out / f"{name}.json", {"settings": vars(settings), "rows": rows})
        if rows:
            fill(page, name, PARTS[name].render(rows))
    fill(page, "machine", machine())
    print(f"tables in {page}, all numbers in {settings.out}")


if __name__ == "__main__":
    main(tyro.cli(Settings, prog="python -m benchmarks"))
