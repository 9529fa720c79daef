"""What ``python -m experiments estimator-map`` does."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from experiments.estimator_map import figures, tables, verdicts
from experiments.estimator_map.regimes import (
    Row,
    Sizes,
    look_again,
    measure_gumbel,
    measure_row,
    slices,
)
from experiments.lab.run import Run, atomic_write
from experiments.logit_gradients.seconds import seconds

SLICE = "D"
"""The slice in which hubs are learned as well, and which is shown estimator by estimator."""

SAMPLES = 10
"""Of a step that is timed."""

Times = dict[tuple[int, int], dict[str, float]]


@dataclass
class EstimatorMap:
    """Which estimator of the weights' gradient has the least variance, and where."""

    draws: int = 4000
    """Single-sample gradients in each cell."""
    pilot: int = 2000
    """Samples of their own for the baseline and for what blending learns."""
    hub_steps: int = 100
    """Steps of learning a hub, of 100 samples each."""
    repeats: int = 60
    """Of the timings."""
    dims: tuple[int, ...] = (1, 2, 5, 10, 30, 100, 200)
    """D, with K = 10."""
    components: tuple[int, ...] = (2, 5, 10, 20, 50)
    """K, with D = 10."""
    separations: tuple[float, ...] = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
    """Root mean square of the distances between means, in standard deviations."""
    seed: int = 0
    """Random seed."""
    quick: bool = False
    """A few draws of everything: seconds, no result."""
    out: Path = Path("results")
    """Folder for the results."""
    resume: bool = False
    """Go on with an unfinished run of the same settings."""

    def __post_init__(self) -> None:
        least = {"draws": 20, "pilot": 2, "hub_steps": 1, "repeats": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"Expected {name} >= {bound}, but got {getattr(self, name)}")
        lists = {"dims": 1, "components": 2, "separations": 0}
        for name, bound in lists.items():
            values = getattr(self, name)
            if not values or min(values) < bound:
                raise ValueError(f"Expected {name} of {bound} and more, but got {values}")
        if self.quick:
            for name in (*least, *lists):
                if getattr(self, name) != getattr(EstimatorMap, name):
                    raise ValueError(f"Expected no {name} of your own with quick")
            self.draws, self.pilot, self.hub_steps, self.repeats = 200, 100, 2, 2
            self.dims, self.components, self.separations = (2, 10), (2, 10), (1.0, 6.0)

    def run(self) -> None:
        """Run all stages, or those that an unfinished run has left."""
        torch.set_num_threads(1)
        settings = dataclasses.asdict(self)
        settings = {key: settings[key] for key in settings.keys() - {"out", "resume"}}
        name = f"estimator_map{'-quick' if self.quick else ''}"
        run = Run(self.out, name, settings, resume=self.resume)
        found = self._cells(run)
        rows = run.stage("gumbel", lambda: list(self._gumbel()))
        times = self._times(run)
        cells = _distinct(found)
        missed = self._second_looks(run, cells)
        run.log([row for cell in cells for row in _metrics(cell)])
        text = "\n\n".join(
            [
                tables.winners(cells, times),
                tables.targets(cells),
                tables.reasons(missed),
                tables.missed(missed),
                tables.by_separation(cells),
                tables.seconds(times),
                tables.gumbel(rows),
            ]
        )
        print(text)
        atomic_write(run.folder / "table.md", lambda file: file.write(text.encode() + b"\n"))
        figures.plot_winners(run.folder / "winners.png", found)
        figures.plot_winners(run.folder / "winners_by_time.png", found, times)
        figures.plot_excess(run.folder / "blended.png", found)
        figures.plot_estimators(run.folder / "estimators.png", found[SLICE])
        figures.plot_gumbel(run.folder / "gumbel.png", rows)
        run.finish(
            {
                "targets": verdicts.shares(cells),
                "missed": missed,
                "standing": sum(row["stands"] for row in missed),
                "gumbel": rows,
                "seconds": [{"K": k, "D": d, **each} for (k, d), each in times.items()],
            }
        )
        print(f"Tables, figures (PNG), metrics and settings: {run.folder}")

    @property
    def _sizes(self) -> Sizes:
        return Sizes(self.draws, self.pilot, self.hub_steps)

    def _cells(self, run: Run) -> dict[str, dict[int, list[dict[str, Any]]]]:
        """The cells of each row of each slice; a row of two slices is measured once."""
        planned = slices(self.dims, self.components)
        hubs = set(planned[SLICE].values())
        rows = list(dict.fromkeys(row for each in planned.values() for row in each.values()))
        found = {}
        progress = tqdm(rows, "map")
        for number, row in enumerate(progress):
            progress.set_postfix(dataclasses.asdict(row))
            compute = partial(
                measure_row,
                row,
                self.separations,
                self._sizes,
                100 * self.seed + number,
                with_hub=row in hubs,
            )
            found[row] = run.stage(f"row {number}", compute)
        return {
            name: {key: found[row] for key, row in each.items()} for name, each in planned.items()
        }

    def _second_looks(self, run: Run, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Of the cells in which blending misses a target."""
        rows = []
        for number, cell in enumerate(tqdm(verdicts.missed(cells), "second look")):
            names = ("score", "blended", verdicts.excess(cell)["best"])
            seed = 10_000 + 100 * self.seed + number
            compute = partial(look_again, cell, names, self._sizes, seed)
            rows.append(verdicts.verdict(cell, run.stage(f"look {number}", compute)))
        return rows

    def _gumbel(self) -> Any:
        row = Row(10, 10)
        return tqdm(measure_gumbel(row, self._sizes, 100 * self.seed), "gumbel")

    def _times(self, run: Run) -> Times:
        """Seconds of a step of 10 samples for each size on the map."""
        sizes = dict.fromkeys(
            (row.components, row.dim)
            for each in slices(self.dims, self.components).values()
            for row in each.values()
        )
        return {
            (count, dim): run.stage(
                f"times, {count}, {dim}",
                partial(seconds, count, dim, samples=SAMPLES, repeats=self.repeats),
            )
            for count, dim in tqdm(sizes, "timing")
        }


def _distinct(found: dict[str, dict[int, list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """The cells of all slices, each once."""
    rows = {id(row): row for each in found.values() for row in each.values()}
    return [cell for row in rows.values() for cell in row]


def _metrics(cell: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each estimator of a cell."""
    where = {name: value for name, value in cell.items() if name != "moments"}
    score = cell["moments"]["score"].variance
    return [
        {
            **where,
            "estimator": name,
            "ratio": found.variance / score,
            "ratio_error": found.error / score,
            "rms_z": found.rms_z,
            "reliable": found.reliable,
        }
        for name, found in cell["moments"].items()
    ]
