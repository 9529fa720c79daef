"""Measurements in processes of their own, so that none meets the memory that another left."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from unittest import mock

KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "8000000000"}
"""Tells glibc's allocator to keep freed arrays for the next ones. By default it hands large ones
back to the system, and the next step pays for fetching them page by page: how many depends on what
ran before, and can double a time."""

RETURN = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
"""Tells it to hand freed arrays back at once: resident memory is that of living ones."""


def in_fresh_process(
    function: Callable[..., Any], *arguments: Any, allocator: Mapping[str, str]
) -> Any:
    """What the function returns in a new interpreter with these settings of the allocator."""
    context = multiprocessing.get_context("spawn")
    with mock.patch.dict(os.environ, allocator):
        with ProcessPoolExecutor(1, context) as pool:
            return pool.submit(function, *arguments).result()
