"""Tests of some combinations in place of all: those in which every pair of values meets.

A product of four lists of a test's arguments grows with each of them; what goes wrong nearly
always depends on one of the values, or on two together.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

Pair = tuple[tuple[int, int], tuple[int, int]]


def covering(sizes: Sequence[int], strength: int = 2) -> list[tuple[int, ...]]:
    """Rows of one index for each factor in which every pair of indices of two factors appears.

    Args:
        sizes: the number of values of each factor.
        strength: 2 for every pair; 1 for every value, in turn.
    """
    if strength == 1:
        return [tuple(row % size for size in sizes) for row in range(max(sizes))]
    missing = dict.fromkeys(_pairs([range(size) for size in sizes]))  # in a fixed order
    rows = []
    while missing:
        row = dict(next(iter(missing)))
        for factor in sorted(range(len(sizes)), key=lambda factor: -sizes[factor]):
            if factor not in row:
                row[factor] = max(
                    range(sizes[factor]),
                    # of values that meet as many others anew, another one in each row
                    key=lambda value, factor=factor: (
                        sum(_pair(factor, value, *other) in missing for other in row.items()),
                        -((value - len(rows)) % sizes[factor]),
                    ),
                )
        for pair in _pairs([[row[factor]] for factor in range(len(sizes))]):
            missing.pop(pair, None)
        rows.append(tuple(row[factor] for factor in range(len(sizes))))
    return rows


def _pair(factor: int, value: int, other: int, others_value: int) -> Pair:
    first, second = sorted([(factor, value), (other, others_value)])
    return first, second


def _pairs(values: Sequence[Iterable[int]]) -> Iterable[Pair]:
    for first, second in itertools.combinations(range(len(values)), 2):
        for pair in itertools.product(values[first], values[second]):
            yield (first, pair[0]), (second, pair[1])


def in_pairs(test: Callable) -> Callable:
    """Above several ``parametrize``: every pair of two lists' values meets in some test."""
    return _combined(test, 2)


def in_turn(test: Callable) -> Callable:
    """Above several ``parametrize``: every value is in some test, as many as the longest list."""
    return _combined(test, 1)


def _combined(test: Callable, strength: int) -> Callable:
    marks = getattr(test, "pytestmark", [])
    lists = [_values(mark) for mark in marks if mark.name == "parametrize"]
    names = [name for names, _ in lists for name in names]
    if len(lists) < 2:
        raise ValueError(f"{test.__name__} has no several lists to combine, got {len(lists)}")
    test.pytestmark = [mark for mark in marks if mark.name != "parametrize"]
    rows = []
    for row in covering([len(values) for _, values in lists], strength):
        chosen = [values[index] for index, (_, values) in zip(row, lists, strict=True)]
        rows.append(
            pytest.param(
                *(value for values, *_ in chosen for value in values),
                id="-".join(label for _, label, _ in chosen),
                marks=[mark for *_, marks in chosen for mark in marks],
            )
        )
    return pytest.mark.parametrize(names, rows)(test)


def _values(mark: pytest.Mark) -> tuple[list[str], list[tuple[tuple, str, Any]]]:
    """Names of a ``parametrize`` and, for each of its values, these, their label and marks."""
    names, given = mark.args
    single = isinstance(names, str) and "," not in names
    names = [x.strip() for x in names.split(",")] if isinstance(names, str) else list(names)
    ids = mark.kwargs.get("ids")
    values = []
    for index, each in enumerate(given):
        marks, label = (), None
        if isinstance(each, type(pytest.param())):
            each, marks, label = each.values, each.marks, each.id
        elif single:
            each = (each,)
        if ids is not None and label is None:
            label = ids(each[0]) if callable(ids) else list(ids)[index]
        values.append((tuple(each), str(label or _label(names, each, index)), marks))
    return names, values


def _label(names: Sequence[str], values: Sequence[Any], index: int) -> str:
    """As pytest makes them: of what is short to tell, otherwise the argument's name."""
    short = (str, int, float, bool)
    return "-".join(
        str(x) if isinstance(x, short) else getattr(x, "__name__", f"{name}{index}")
        for name, x in zip(names, values, strict=True)
    )
