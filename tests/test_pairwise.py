import itertools

import pytest

from tests.pairwise import covering, in_pairs, in_turn


@pytest.mark.parametrize(
    "sizes", [(3, 2), (5, 3, 2), (4, 4, 4, 4), (23, 3, 6), (2,) * 7, (1, 4, 1)]
)
def test_every_pair_meets(sizes):
    rows = covering(sizes)
    for (i, first), (j, second) in itertools.combinations(enumerate(sizes), 2):
        met = {(row[i], row[j]) for row in rows}
        assert met == set(itertools.product(range(first), range(second)))
    largest, second, *_ = sorted(sizes, reverse=True)
    assert len(rows) <= 1.5 * largest * second + 4
    assert len(set(rows)) == len(rows)
    assert covering(sizes) == rows


def test_every_value_in_turn():
    assert covering((4, 2, 3), 1) == [(0, 0, 0), (1, 1, 1), (2, 0, 2), (3, 1, 0)]


def test_a_test_in_pairs():
    def test(a, b, c, d):
        """Never run."""

    for mark in (
        pytest.mark.parametrize("a", [1, 2, 3]),
        pytest.mark.parametrize(("b", "c"), [(1, 2), pytest.param(3, 4, id="more")]),
        pytest.mark.filterwarnings("ignore"),
        pytest.mark.parametrize("d", [int, float], ids=["whole", "real"]),
    ):
        test = mark(test)
    other, marked = in_pairs(test).pytestmark
    assert other.name == "filterwarnings"
    names, rows = marked.args
    assert names == ["a", "b", "c", "d"]
    assert len(rows) == 6
    by_id = {row.id: row.values for row in rows}
    assert {id.split("-")[0] for id in by_id} == {"1", "2", "3"}
    assert all(("more" in id) == (values[1:3] == (3, 4)) for id, values in by_id.items())
    assert all(("real" in id) == (values[3] is float) for id, values in by_id.items())


def test_one_list_is_no_combination():
    @pytest.mark.parametrize("a", [1, 2, 3])
    def test(a):
        """Never run."""

    with pytest.raises(ValueError, match="several lists to combine, got 1"):
        in_turn(test)
