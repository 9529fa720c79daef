"""Pareto smoothing against ArviZ's numbers, and for tails that leave little to fit."""

import math

import pytest
import torch

from pyro_mixtures.numerics import pareto
from pyro_mixtures.numerics.pareto import pareto_smoothed

SHARE = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
NORMAL = torch.special.ndtri(SHARE)


# ArviZ 0.23.4: k-hat, the largest smoothed logarithm and the 50th, of the given logarithms
ARVIZ = [
    (0.5, 0.10819042268751643, 1.6452633657459628, 0.8240681714755896),
    (2.0, 0.6664972902740948, 6.581053462983851, 3.2992330444443803),
    (300.0, 91.16182184918699, 916.881320773291, 497.981823619659),
    (1000.0, 87.86351747204513, 2815.836379965277, 1649.721063683362),
]


@pytest.mark.parametrize(("scale", "khat", "largest", "fiftieth"), ARVIZ)
def test_weights_that_are_log_normal(scale, khat, largest, fiftieth):
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    smoothed, found = pareto_smoothed(scale * NORMAL[order])
    assert found == pytest.approx(khat, rel=1e-10)
    smoothed = smoothed[order.argsort()]
    assert smoothed[-1].item() == pytest.approx(largest, rel=1e-10)
    assert smoothed[-50].item() == pytest.approx(fiftieth, rel=1e-10)
    torch.testing.assert_close(smoothed[:900], scale * NORMAL[:900], rtol=0, atol=0)
    assert bool((smoothed.diff() >= 0).all())


@pytest.mark.parametrize("size", [25, 200, 10_000])
@pytest.mark.parametrize("shape", [0.2, 0.5, 1.0])
def test_a_pareto_tail_has_its_shape_with_the_prior(shape, size):
    """Quantiles of the distribution itself; ten more values are believed to have k = 1/2."""
    share = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    _, found = pareto_smoothed(-shape * torch.log1p(-share))
    count = math.ceil(min(size / 5, 3 * math.sqrt(size)))
    assert found == pytest.approx((count * shape + 5) / (count + 10), abs=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_shift_is_kept(dtype):
    plain, khat = pareto_smoothed(NORMAL.to(dtype))
    shifted, same = pareto_smoothed(NORMAL.to(dtype) - 700)
    assert plain.dtype == dtype
    assert same == pytest.approx(khat, abs=1e-3 if dtype == torch.float32 else 1e-10)
    torch.testing.assert_close(shifted + 700, plain, rtol=0, atol=2e-4)


def test_weights_that_are_zero_are_not_of_the_tail():
    """Those of half the tail, here: the others alone are fitted. (The number is ArviZ's.)"""
    log_weights = torch.full((1000,), -math.inf, dtype=torch.float64)
    log_weights[::20] = torch.special.ndtri((torch.arange(50, dtype=torch.float64) + 0.5) / 50)
    smoothed, khat = pareto_smoothed(log_weights)
    assert khat == pytest.approx(0.20558120817281725, rel=1e-10)
    torch.testing.assert_close(smoothed == -math.inf, log_weights == -math.inf)
    assert not smoothed.isnan().any()


@pytest.mark.parametrize("few", [1, 4])
def test_few_large_weights_leave_nothing_to_fit(few):
    """As of the worst guides: the ratio of all others to the largest is zero."""
    log_weights = torch.full((1000,), -1000.0)
    log_weights[:few] = torch.arange(few).float()
    smoothed, khat = pareto_smoothed(log_weights)
    assert khat == math.inf
    torch.testing.assert_close(smoothed, log_weights, rtol=0, atol=0)


def test_equal_weights_have_no_tail():
    log_weights = torch.where(SHARE < 0.5, -3.0, 1.0)
    smoothed, khat = pareto_smoothed(log_weights)
    assert khat == -math.inf
    torch.testing.assert_close(smoothed, log_weights, rtol=0, atol=0)


@pytest.mark.parametrize("size", [25, 100, 1000])
def test_what_single_precision_leaves_of_equal_weights_is_no_tail(size):
    """As those of the exact posterior: a few steps of rounding, and ties."""
    steps = torch.randn(size, generator=torch.Generator().manual_seed(0)).mul(2).round()
    for level in (0.0, -3.0, 500.0):
        rounded = level + 2.0**-23 * max(1.0, abs(level)) * steps
        smoothed, khat = pareto_smoothed(rounded.double())
        assert khat == -math.inf
        torch.testing.assert_close(smoothed, rounded.double(), rtol=0, atol=0)


def nearly_constant(kind):
    """Weights that rounding does not explain, of which a few are larger by a little."""
    torch.manual_seed(0)
    noise = 1e-3 * torch.randn(4000, dtype=torch.float64)
    if kind == "a small mode":  # that the guide has a third of
        return noise + (torch.arange(4000) < 16)
    if kind == "spread over decades":
        return 1e-6 * torch.rand(4000, dtype=torch.float64).pow(-1.5)
    return (5e-4 * torch.empty(4000, dtype=torch.float64).cauchy_()).clamp(-0.6, 0.6)


@pytest.mark.parametrize("kind", ["a small mode", "spread over decades", "Cauchy"])
@pytest.mark.parametrize("copies", [1, 4])
def test_a_tail_of_weights_that_are_nearly_constant_cannot_matter(kind, copies):
    """The fit of its shape alone is far above 0.7."""
    log_weights = nearly_constant(kind).repeat(copies)
    relative = (log_weights - log_weights.max()).exp().sort().values
    excess = relative - relative[-pareto.tail_length(len(relative)) - 1]
    assert pareto.fitted(excess[excess > 0])[0] > 0.9
    assert log_weights.exp().sum() ** 2 / log_weights.mul(2).exp().sum() > 3950 * copies
    smoothed, khat = pareto_smoothed(log_weights)
    assert khat == -math.inf
    torch.testing.assert_close(smoothed, log_weights, rtol=0, atol=0)


def test_a_tail_matters_where_draws_may_find_more():
    """Of the same shape, but so large that those of other draws are a part of the evidence."""
    for share in (0.008, 0.012):
        log_weights = nearly_constant("Cauchy")
        log_weights[0] = math.log1p(share * 4000 / 19)
        _, khat = pareto_smoothed(log_weights)
        assert (khat == -math.inf) == (share < pareto.NEGLIGIBLE)
        assert khat == -math.inf or khat > 0.7


def test_few_weights_above_ties_cannot_matter_either():
    for largest, khat in ((1.0, -math.inf), (3.0, math.inf)):
        log_weights = torch.zeros(4000)
        log_weights[:3] = torch.tensor([0.3, 0.5, largest])
        assert pareto_smoothed(log_weights)[1] == khat


@pytest.mark.parametrize("size", [1000, 10_000])
def test_heavy_tails_are_seen_whatever_their_share(size):
    """Quantiles of Pareto weights: at the shape where trust ends none is excused."""
    share = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    for shape in (0.75, 0.9, 1.5):
        assert pareto_smoothed(-shape * torch.log1p(-share))[1] > pareto.largest_khat(size)


def test_the_largest_excess_of_more_draws():
    """Of the heaviest tail that weights may have: it is below 19 times that of these in 95 %."""
    torch.manual_seed(0)
    first, second = torch.rand(2, 20_000, 500).pow(-1).amax(-1)
    share = float((second > pareto.FURTHER * first).float().mean())
    assert share == pytest.approx(0.05, abs=5 * math.sqrt(0.05 * 0.95 / 20_000))


def test_the_level_of_the_weights_does_not_hide_a_tail():
    """A million data, say: what differs is as it was."""
    share = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    log_weights = -torch.log1p(-share)  # of shape 1
    _, khat = pareto_smoothed(log_weights)
    _, found = pareto_smoothed(log_weights - 1e7)
    assert found == pytest.approx(khat, abs=1e-6)


@pytest.mark.parametrize(
    ("log_weights", "told"),
    [
        ([0.0] * 30, "log_weights to be a tensor, but got list"),
        (torch.arange(30), "floating point dtype, but got torch.int64"),
        (torch.zeros(()), r"log_weights of shape \(S,\), but got \(\)"),
        (torch.zeros(30, 2), r"log_weights of shape \(S,\), but got \(30, 2\)"),
        (torch.tensor([0.0, math.nan]), "finite or -inf, but got NaN or inf"),
        (torch.tensor([0.0, math.inf]), "finite or -inf, but got NaN or inf"),
        (torch.full((30,), -math.inf), "all 30 weights are zero"),
    ],
)
def test_what_are_no_weights(log_weights, told):
    with pytest.raises(ValueError, match=told):
        pareto_smoothed(log_weights)
