"""Contenders that alternate in one process, so that a machine's drift meets all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def times(contenders: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each contender, all in turn ``repeats`` times.

    A turn is two runs, of which the second is timed: it finds the caches as its own last step left
    them, as in a training loop, and not as another contender did.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, step in contenders.items():
            step()
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def medians(contenders: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each contender, as :func:`times` takes them."""
    seconds = times(contenders, repeats)
    return {name: statistics.median(values) for name, values in seconds.items()}
