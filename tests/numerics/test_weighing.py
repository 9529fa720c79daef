"""What importance weights tell: calibrated errors, and verdicts that claim no more."""

import math

import pytest
import torch

from pyro_mixtures.numerics.pareto import largest_khat
from pyro_mixtures.numerics.weighing import FEW, verdict, weigh


def test_errors_are_calibrated():
    """Lognormal weights, of which all is known: 400 z-scores, 4 standard errors of their size."""
    torch.manual_seed(0)
    scale = 0.3
    columns = scale * torch.randn(400, 1000, dtype=torch.float64)
    found = [weigh(column) for column in columns]
    for scores in (
        [each.elbo / each.elbo_error for each in found],
        [(each.log_evidence - scale**2 / 2) / each.log_evidence_error for each in found],
    ):
        scores = torch.tensor(scores)
        assert scores.mean().abs() < 0.2
        assert 0.86 < scores.square().mean().sqrt() < 1.14


def test_weights_are_normalized_and_sizes_theirs():
    torch.manual_seed(0)
    found = weigh(2 * torch.randn(500))
    assert found.log_weights.dtype == torch.float64
    assert found.log_weights.logsumexp(0).item() == pytest.approx(0, abs=1e-12)
    size = 1 / found.log_weights.exp().square().sum().item()
    assert found.effective_sample_size == pytest.approx(size)
    error = math.sqrt(1 / size - 1 / 500)
    assert found.log_evidence_error == pytest.approx(error, rel=2e-3)  # S - 1 for S


def test_a_draw_without_density():
    log_weights = torch.zeros(100)
    log_weights[0] = -math.inf
    found = weigh(log_weights)
    assert found.elbo == -math.inf
    assert math.isnan(found.elbo_error)
    assert found.log_evidence == pytest.approx(math.log(0.99))
    assert found.log_evidence_error == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize("count", [25, 100, 4000])
@pytest.mark.parametrize("khat", [-math.inf, -1.2, 0.1, 0.45, 0.6, 0.71, 2.0, math.inf, math.nan])
@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_a_verdict_claims_what_weights_can_show(khat, count, share):
    size = max(1.0, share * count)
    told = verdict(khat, size, count)
    good = khat <= largest_khat(count)
    assert told.startswith(f"k-hat {khat:.2f}")
    assert ("cannot see modes that no draw has visited" in told) == good
    assert ("to be trusted" in told or "say nothing" in told) == (not good)
    assert ("with more draws" in told) == (good and size < FEW)
    assert ("constant" in told) == (khat == -math.inf and share == 1)
