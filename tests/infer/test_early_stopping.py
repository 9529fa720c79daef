"""When a loss does not fall any more."""

import io
import math

import pytest
import torch

from pyro_mixtures.infer import EarlyStopping


def stopped_at(losses, **options):
    is_done = EarlyStopping(**options)
    return next((step for step, loss in enumerate(losses) if is_done(float(loss))), None)


def noise(count, seed=0):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def test_windows_without_progress():
    losses = [3.0] * 10 + [1.0] * 10 + [2.0] * 100  # the mean of the second is the lowest
    assert stopped_at(losses, window=10) == 39
    assert stopped_at(losses, window=10, patience=1) == 29
    assert stopped_at([5.0] * 30, window=10, patience=1) == 19


def test_it_goes_on_while_the_loss_falls():
    assert stopped_at(range(1000, 0, -1), window=10) is None
    falling = torch.linspace(100, 0, 2000) + noise(2000)
    assert stopped_at(falling, window=100) is None


def test_noise_is_no_progress():
    """Of 20 seeds with two windows in a row that are above the lowest less an error."""
    found = [stopped_at(noise(20_000, seed), window=100) for seed in range(20)]
    assert max(found) < 3000


def test_smoothed_losses():
    is_done = EarlyStopping(window=4)
    assert math.isnan(is_done.smoothed_loss)
    for loss in (1.0, 2.0, 3.0, 4.0, 9.0):
        is_done(loss)
    assert is_done.smoothed_loss == is_done.lowest_loss == 2.5


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_losses_that_are_not_finite_are_no_progress(bad):
    assert stopped_at([bad] * 100, window=10) == 19
    assert stopped_at([bad] * 10 + [3.0] * 10 + [2.0] * 10 + [1.0] * 10, window=10) is None


def test_states():
    losses = (torch.linspace(10, 0, 300).tolist() + [0.0] * 500) * 2
    first, other = EarlyStopping(window=20), EarlyStopping(window=50)
    before = [first(loss) for loss in losses[:130]]
    assert not any(before)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    rest = [first(loss) for loss in losses[130:]]
    assert rest == [other(loss) for loss in losses[130:]]
    assert any(rest)


@pytest.mark.parametrize("options", [{"window": 1}, {"window": 10, "patience": 0}])
def test_mistakes(options):
    with pytest.raises(ValueError, match=f"Expected {list(options)[-1]}"):
        EarlyStopping(**options)
