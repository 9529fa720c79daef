"""The Mauna Loa series: monthly means of atmospheric CO2, 1959 to 1997."""

from __future__ import annotations

import os
from pathlib import Path

import numpy
from numpy.typing import NDArray
from statsmodels.datasets import co2

from experiments.lab.datasets import VARIABLE

MONTHS = 468
FILE = "co2.csv"


def monthly_co2() -> NDArray[numpy.float64]:
    """The 468 values in ppm, ``(468,)``.

    They come from the file ``co2.csv`` with columns ``time, value`` in the folder that the
    environment variable ``PYRO_MIXTURES_DATA`` names; without the variable, from the weekly series
    that statsmodels ships, as means of the calendar months.

    Raises:
        ValueError: when the variable is set and its file missing, or not 468 finite values.
    """
    folder = os.environ.get(VARIABLE)
    return _weekly_means() if folder is None else _read(Path(folder) / FILE)


def source() -> str:
    """Where :func:`monthly_co2` takes the values from."""
    return "statsmodels" if os.environ.get(VARIABLE) is None else FILE


def _weekly_means() -> NDArray[numpy.float64]:
    weekly = co2.load_pandas().data["co2"]
    monthly = weekly.resample("MS").mean()["1959":"1997"]
    # February to April 1964 are missing; a copy, for pandas lends its own read-only
    return monthly.interpolate().to_numpy(dtype=float, copy=True)


def _read(path: Path) -> NDArray[numpy.float64]:
    source = f"{path} (folder from the environment variable {VARIABLE})"
    if not path.is_file():
        raise ValueError(
            f"Expected {source}, but there is no such file: provide it, or unset {VARIABLE} to use"
            " the series that statsmodels ships"
        )
    try:
        values = numpy.genfromtxt(path, delimiter=",", names=True)["value"]
    except (ValueError, IndexError, TypeError) as error:
        raise ValueError(f"Expected columns time,value in {source}: {error}") from error
    if values.shape != (MONTHS,) or not numpy.isfinite(values).all():
        raise ValueError(
            f"Expected {MONTHS} finite values in {source}, but got"
            f" {numpy.isfinite(values).sum()} finite ones in {values.size} rows"
        )
    return values
