"""Which arithmetic the densities are computed in."""

import pytest
import torch
from torch.func import vmap

from pyro_mixtures.numerics import chunks, precision
from pyro_mixtures.numerics.precision import at_least_single, in_enough_precision, keeps_digits

SMALL, LARGE, LARGER = 1.0, 1e5, 1e12
"""Terms that float32 can sum, those that float64 can, and others."""


class Recorder:
    """Stands for a family's densities: what was asked for, in which dtype, of how many samples."""

    def __init__(self, size):
        self.size, self.calls = size, []

    def products(self, z, log_weights, locs):
        assert z.dtype == log_weights.dtype == locs.dtype
        self.calls.append(("products", z.dtype, z.shape[-2]))
        log_prob = z @ locs.mT
        return log_prob, torch.full_like(log_prob, self.size)

    def differences(self, z, locs):
        assert z.dtype == locs.dtype
        self.calls.append(("differences", z.dtype, z.shape[-2]))
        return z @ locs.mT

    def densities(self, z, log_weights, locs):
        return in_enough_precision(self.products, self.differences, z, log_weights, locs)


def tensors(S=6, K=3, D=2, dtype=torch.float32):
    return (
        torch.randn(S, D, dtype=dtype),
        torch.zeros(K, dtype=dtype),
        torch.ones(K, D, dtype=dtype),
    )


SINGLE, DOUBLE = torch.float32, torch.float64


@pytest.mark.parametrize(
    ("size", "dtype", "expected"),
    [
        (SMALL, SINGLE, [("products", SINGLE, 6)]),
        (SMALL, DOUBLE, [("products", DOUBLE, 6)]),
        (LARGE, SINGLE, [("products", SINGLE, 6), ("products", DOUBLE, 6)]),
        (LARGE, DOUBLE, [("products", DOUBLE, 6)]),
        (
            LARGER,
            SINGLE,
            [("products", SINGLE, 6), ("products", DOUBLE, 6), ("differences", DOUBLE, 6)],
        ),
    ],
)
def test_several_samples(size, dtype, expected):
    """Expanded squares while they keep digits, in float64 if need be; then differences."""
    recorder = Recorder(size)
    result = recorder.densities(*tensors(dtype=dtype))
    assert recorder.calls == expected
    assert result.shape == (6, 3)
    assert result.dtype == expected[-1][1]


@pytest.mark.parametrize("size", [SMALL, LARGER])
@pytest.mark.parametrize(
    ("D", "dtype"),
    [(2, SINGLE), (precision.LONGEST_SUM, SINGLE), (precision.LONGEST_SUM + 1, DOUBLE)],
)
def test_one_sample(size, D, dtype):
    """Differences at once, in float64 where the sum is long."""
    recorder = Recorder(size)
    recorder.densities(*tensors(S=1, D=D))
    assert recorder.calls == [("differences", dtype, 1)]


def test_differences_in_slices(monkeypatch):
    monkeypatch.setattr(chunks, "MEMORY_BUDGET", 2 * 3 * 2 * 8)  # two samples of K D doubles
    recorder = Recorder(LARGER)
    recorder.densities(*tensors())
    assert recorder.calls[2:] == [("differences", DOUBLE, 2)] * 3


def test_components_without_weight_do_not_count():
    terms = torch.tensor([[SMALL, LARGER], [SMALL, torch.inf]])
    assert not keeps_digits(terms, torch.tensor([0.0, 0.0]))
    assert not keeps_digits(terms, torch.tensor([0.0, -1e4]))
    assert keeps_digits(terms[:1], torch.tensor([0.0, -torch.inf]))


def test_nothing_to_lose():
    assert keeps_digits(torch.zeros(0, 3), torch.zeros(3))


@pytest.mark.parametrize("size", [SMALL, LARGER])
def test_under_vmap(size):
    """Values cannot be looked at: float64 has to do."""
    recorder = Recorder(size)
    z, log_weights, locs = tensors()
    result = vmap(lambda z: recorder.densities(z, log_weights, locs))(z.expand(4, 6, 2))
    assert recorder.calls == [("products", SINGLE, 6), ("products", DOUBLE, 6)]
    assert result.dtype == DOUBLE


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ((torch.bfloat16, torch.bfloat16), SINGLE),
        ((torch.float16, SINGLE), SINGLE),
        ((SINGLE, DOUBLE), DOUBLE),
        ((torch.int64, SINGLE), SINGLE),
    ],
)
def test_at_least_single(dtypes, expected):
    results = at_least_single(*(torch.ones(2, dtype=dtype) for dtype in dtypes))
    assert {x.dtype for x in results} == {expected}
