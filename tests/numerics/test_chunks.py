"""Work in slices: the memory budget changes nothing but memory."""

import pytest
import torch

from pyro_mixtures.numerics import chunks
from pyro_mixtures.numerics.chunks import map_chunks
from pyro_mixtures.numerics.linkage import bhattacharyya_diag_normal
from tests.registry import each_transport, gradients, relative_error, sample_at


@pytest.mark.parametrize(
    ("rows", "budget", "expected"), [(7, 3 * 40, 3), (7, 1, 7), (7, 7 * 40, 1)]
)
def test_number_of_slices(monkeypatch, rows, budget, expected):
    monkeypatch.setattr(chunks, "MEMORY_BUDGET", budget)
    first, second = torch.randn(2, rows, 3), torch.randn(rows, 1)
    calls = []

    def function(x, y):
        calls.append(x.shape[-2])
        return x * y

    result = map_chunks(function, (first, second), row_elements=10)  # of 4 bytes
    assert torch.equal(result, first * second)
    assert len(calls) == expected


@each_transport
def test_fields(monkeypatch, family, transport):
    parameters = family.parameters((2,), K=3, D=3)
    mixture = family.build(parameters, transport=transport)
    points = mixture.sample((50,))
    whole = gradients(sample_at(mixture, points), parameters, points.cos())
    monkeypatch.setattr(chunks, "MEMORY_BUDGET", 20_000)
    sliced = gradients(sample_at(mixture, points), parameters, points.cos())
    assert relative_error(sliced, whole) < 1e-12


def test_distances(monkeypatch):
    locs, scales = torch.randn(2, 6, 3), torch.rand(2, 6, 3) + 0.5
    whole = bhattacharyya_diag_normal(locs, scales)
    monkeypatch.setattr(chunks, "MEMORY_BUDGET", 1)
    torch.testing.assert_close(bhattacharyya_diag_normal(locs, scales), whole)
