"""Experiments of which each study is a table: named rows, each of fits with several seeds."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch

from experiments.lab.run import Run, atomic_write
from experiments.lab.sweep import Diverged, sweep, workers
from experiments.lab.timing import medians
from experiments.lab.trainer_settings import Training
from pyro_mixtures.numerics.validation import check_choice


@dataclass(frozen=True)
class Job:
    """A fit of a study.

    Attributes:
        name: of its row, the same for all seeds.
        candidate: what is fitted, a dataclass.
        training: settings.
    """

    name: str
    candidate: Any
    training: Training


Result = dict[str, Any] | Diverged
Results = Mapping[str, Sequence[tuple[Job, Result]]]
"""Fits of each row, by its name."""
Rows = list[dict[str, Any]]


class Column(NamedTuple):
    """Of a table.

    Args:
        figure: its key in the rows; where they have ``FIGURE_se`` besides, that is the error.
        title: its head.
        form: of the number.
    """

    figure: str
    title: str
    form: str = ".2f"


def good(fits: Sequence[tuple[Job, Result]]) -> list[dict[str, Any]]:
    """Results of the fits that did not diverge."""
    return [result for _, result in fits if not isinstance(result, Diverged)]


def means(results: Results) -> Rows:
    """Of each row: the means of its fits' figures, with standard errors of several fits."""
    rows: Rows = []
    for name, fits in results.items():
        each = good(fits)
        row: dict[str, Any] = {"row": name, "fits": len(each), "diverged": len(fits) - len(each)}
        figures = [key for key, value in (each[0] if each else {}).items() if _number(value)]
        for figure in figures:
            values = [float(result[figure]) for result in each]
            row[figure] = statistics.mean(values)
            if len(values) > 1:
                row[f"{figure}_se"] = statistics.stdev(values) / math.sqrt(len(values))
        rows.append(row)
    return rows


@dataclass(frozen=True)
class Study:
    """A table of fits.

    Attributes:
        title: of the table.
        jobs: of a number of seeds, in the order of the rows.
        fit: ``fit(folder, candidate, training, few=..., resume=...)`` of a job to its figures:
            numbers for the table, and whatever ``figure`` draws; ``few`` asks for a small one.
        columns: of the table.
        small: a small version of a job, for a quick run.
        rows: of the table, from all results.
        step: from a candidate and settings to a step that is timed; None for no column of it.
        figures: to draw, by their names.
        seeds: by default.
    """

    title: str
    jobs: Callable[[int], list[Job]]
    fit: Callable[..., dict[str, Any]]
    columns: Sequence[Column]
    small: Callable[[Job], Job]
    rows: Callable[[Results], Rows] = means
    step: Callable[[Any, Training], Callable[[], None]] | None = None
    figures: Mapping[str, Callable[[Path, Results, Rows], None]] = dataclasses.field(
        default_factory=dict
    )
    seeds: int = 1


@dataclass
class Comparison:
    """Fits of all rows of some studies, their tables and figures."""

    name: ClassVar[str]
    all_studies: ClassVar[Mapping[str, Study]]

    studies: tuple[str, ...] = ()
    """Which tables to make, in this order; by default all."""
    seeds: int | None = None
    """Fits of each row; by default those of the study."""
    scheduler: str | None = None
    """Address of a dask scheduler; by default all cores of this machine."""
    quick: bool = False
    """A few steps of everything on small images: seconds, no result."""
    out: Path = Path("results")
    """Folder for the results."""
    resume: bool = False
    """Go on with an unfinished run of the same settings."""

    def __post_init__(self) -> None:
        if self.seeds is not None and self.seeds < 1:
            raise ValueError(f"Expected seeds >= 1, but got {self.seeds}")
        for name in self.studies:
            check_choice("studies", name, tuple(self.all_studies))

    def run(self) -> None:
        """Run the studies, or what an unfinished run has left of them."""
        torch.set_num_threads(1)
        with workers(self.scheduler) as address:  # one cluster for all
            for name in self.studies or self.all_studies:
                self._study(name, self.all_studies[name], address)

    def _study(self, name: str, study: Study, scheduler: str) -> None:
        """Fit all rows of a study, and write its table and figures."""
        jobs = study.jobs(self.seeds or (1 if self.quick else study.seeds))
        if self.quick:
            jobs = [study.small(job) for job in jobs]
        told = {"jobs": [dataclasses.asdict(job) for job in jobs]}
        run = Run(self.out / (self.name + "-quick" * self.quick), name, told, resume=self.resume)
        names = {f"{place:02d}-{job.training.seed}": job for place, job in enumerate(jobs)}
        arguments = {
            key: {
                "folder": run.folder / "fits" / key,
                "candidate": job.candidate,
                "training": job.training,
                "few": self.quick,
                "resume": self.resume,
            }
            for key, job in names.items()
        }
        found = sweep(run, study.fit, arguments, scheduler=scheduler)
        results = by_row((job, found[key]) for key, job in names.items())
        run.log(training_rows(results))
        rows = study.rows(results)
        columns = study.columns
        if study.step is not None:
            seconds = run.stage("seconds", lambda: self._seconds(study, results))
            rows = [{**row, "milliseconds": 1e3 * seconds[row["row"]]} for row in rows]
            columns = [*columns, Column("milliseconds", "ms a step", ".1f")]
        text = table(study.title, columns, rows)
        print(text)
        atomic_write(run.folder / "table.md", lambda file: file.write(text.encode() + b"\n"))
        for figure, plot in study.figures.items():
            plot(run.folder / f"{figure}.png", results, rows)
        run.finish({"table": rows})

    def _seconds(self, study: Study, results: Results) -> dict[str, float]:
        """Of a step of each row, all in turn on one core."""
        assert study.step is not None
        steps = {
            name: study.step(fits[0][0].candidate, fits[0][0].training)
            for name, fits in results.items()
        }
        return medians(steps, 1 if self.quick else 11)


def by_row(fits: Iterable[tuple[Job, Result]]) -> Results:
    """The fits, those of a row together."""
    found: dict[str, list[tuple[Job, Result]]] = {}
    for job, result in fits:
        found.setdefault(job.name, []).append((job, result))
    return found


def mean(values: Sequence[float]) -> float:
    """NaN of none."""
    return statistics.mean(values) if values else math.nan


def standard_error(values: Sequence[float]) -> float:
    """Of the mean, NaN for a single value."""
    if len(values) < 2:
        return math.nan
    return statistics.stdev(values) / math.sqrt(len(values))


def training_rows(results: Results) -> Rows:
    """Figures of all fits while training, those that have any."""
    return [
        {"row": name, "seed": job.training.seed, **row}
        for name, fits in results.items()
        for job, result in fits
        if not isinstance(result, Diverged)
        for row in result.get("rows", ())
    ]


def table(title: str, columns: Sequence[Column], rows: Rows) -> str:
    """The rows as a Markdown table."""
    lines = [
        f"| {' | '.join([title, *(column.title for column in columns)])} |",
        "| --- " * (len(columns) + 1) + "|",
    ]
    for row in rows:
        cells = [row["row"], *(_cell(row, column) for column in columns)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: Mapping[str, Any], column: Column) -> str:
    value = row.get(column.figure)
    if value is None:
        return "-"
    error = row.get(f"{column.figure}_se")
    told = format(value, column.form)
    return told if error is None else f"{told} ± {format(error, column.form)}"


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
