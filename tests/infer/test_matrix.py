"""Every guide with every objective: the right gradient, or a clear error; none is silently wrong.

What is expected of a cell stands in the table of ``docs/objectives.md``, which
``python -m tests.infer.matrix`` prints.
"""

import itertools
import math
from pathlib import Path

import pyro
import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal

from tests.infer.matrix import SYMBOLS, outcome, reference_gradients, shown
from tests.infer.matrix_guides import GUIDES, LOCS, LOGITS, OBSERVED, SCALES
from tests.infer.matrix_objectives import LOOPS, OBJECTIVES
from tests.pairwise import in_turn

COMPILED = [name for name in OBJECTIVES if name.startswith("Jit")]
PAGE = Path(__file__).parents[2] / "docs" / "objectives.md"

# Samples that carry the whole gradient do so point by point, as the reference does. With a score
# term only the integral is the same, over 4000 quantiles; a missing part of a cost makes 0.03.
EXACT, INTEGRATED = 1e-8, 0.005
# 300 quantiles, in a loop, pairs of 100 or those of heavy tails miss more, and costs without a
# baseline vary
COARSE = 0.06
WITH_TAILS = (
    "AutoMixture of another family",
    "by hand, MixtureSameFamily of others",
    "the same, hybrid",
    '`estimator="score"`',
)


def expected_states() -> dict[tuple[str, str], str]:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = lines.index(next(line for line in lines if line.startswith("| guide |")))
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines[start:]]
    states = {symbol: state for state, symbol in SYMBOLS.items()}
    rows = [row for row in itertools.takewhile(lambda row: len(row) > 1, rows) if row[1] in states]
    return {
        (row[0], objective): states[cell]
        for row in rows
        for objective, cell in zip(shown(), row[1:], strict=True)
    }


EXPECTED = expected_states()


def check(guide, objective, **options):
    found = outcome(guide, objective, **options)
    few = "loop" in options or objective.startswith("ImportanceWeighted")
    tolerance = COARSE if few or guide in WITH_TAILS else INTEGRATED
    if few and guide in WITH_TAILS:
        tolerance = 2 * COARSE
    same_way = found.state == "samples" and not objective.startswith("Baselined")
    if same_way and options.get("dtype") != torch.float32:
        tolerance = EXACT
    assert found.state == EXPECTED[guide, objective.removeprefix("Jit")], found
    assert found.error < tolerance, found
    assert (found.state == "refused") == (len(found.message) > 30), found


def test_the_page_has_every_cell():
    assert list(EXPECTED) == list(itertools.product(GUIDES, shown()))


@pytest.mark.parametrize("objective", shown())
@pytest.mark.parametrize("guide", GUIDES)
def test_gradients(guide, objective):
    check(guide, objective)


@pytest.mark.parametrize("objective", shown())
@pytest.mark.parametrize("guide", GUIDES)
def test_gradients_by_torch_alone(guide, objective):
    with pyro.settings.context(compiled_mixtures=False):
        check(guide, objective)


@in_turn
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("objective", COMPILED)
@pytest.mark.parametrize("guide", GUIDES)
def test_compiled(guide, objective):
    check(guide, objective)


@in_turn
@pytest.mark.parametrize("objective", shown())
@pytest.mark.parametrize("guide", GUIDES)
def test_single_precision(guide, objective):
    check(guide, objective, dtype=torch.float32)


@in_turn
@pytest.mark.parametrize("objective", LOOPS)
@pytest.mark.parametrize("guide", list(GUIDES)[::4])
def test_one_particle_after_the_other(guide, objective):
    check(guide, objective, loop=True)


@pytest.mark.filterwarnings("ignore:Found .*auxiliary vars")
@pytest.mark.parametrize(
    "objective", ["Trace_ELBO", "BaselinedTrace_ELBO", "TraceEnum_ELBO", "RenyiELBO"]
)
@pytest.mark.parametrize("guide", ["auxiliary by name alone", "auxiliary by flag alone"])
def test_what_counts_as_auxiliary(guide, objective):
    """Sites that the model does not have, whatever their flag says."""
    assert outcome(guide, objective).error < INTEGRATED


def test_a_cost_outside_of_the_plate():
    """Which ``TraceEnum_ELBO`` does not multiply score terms in the plate by."""
    found = outcome("a cost outside of the plate", "TraceEnum_ELBO")
    assert found.state == "samples"
    assert found.error < EXACT
    assert outcome("a cost outside of the plate", "Trace_ELBO").state == "score"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("guide", GUIDES)
def test_all_of_them_in_single_precision(guide, objective):
    check(guide, objective, dtype=torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("objective", LOOPS)
@pytest.mark.parametrize("guide", GUIDES)
def test_all_of_them_one_particle_after_the_other(guide, objective):
    check(guide, objective, loop=True)


@pytest.mark.parametrize("objective", ["Trace_ELBO", "ReweightedWakeSleep", "RenyiELBO"])
def test_the_reference_is_right(objective):
    """Against the integral on a grid of what the objective estimates with many particles."""
    locs, scales, logits = (
        x.double().clone().requires_grad_() for x in (LOCS.squeeze(-1), SCALES.squeeze(-1), LOGITS)
    )
    x = torch.linspace(-12, 12, 8001, dtype=torch.float64)
    log_q = MixtureSameFamily(Categorical(logits=logits), Normal(locs, scales)).log_prob(x)
    center = x.square() / 2 + x / 4
    log_p = Normal(0.0, 3.0).log_prob(x) + Normal(center, 1.0).log_prob(OBSERVED[0].double())
    dx = x[1] - x[0]
    if objective == "Trace_ELBO":
        loss = (log_q.exp() * (log_q - log_p)).sum() * dx
    elif objective == "RenyiELBO":
        power = 0.3
        loss = -((power * log_q + (1 - power) * log_p).exp().sum() * dx).log() / (1 - power)
    else:  # of the wake phase: the posterior's cross entropy
        posterior = (log_p - (log_p.logsumexp(0) + math.log(dx))).exp()
        loss = -(posterior * log_q).sum() * dx
    exact = torch.autograd.grad(loss, (locs, scales, logits))
    found = reference_gradients("by hand", objective, torch.float64, False)
    by_size = {name: x for name, x in zip(("locs", "logits", "log scales"), found, strict=True)}
    scale = max(float(x.abs().max()) for x in exact)
    tolerance = 0.01 * scale
    torch.testing.assert_close(by_size["locs"].flatten(), exact[0], atol=tolerance, rtol=0)
    torch.testing.assert_close(by_size["logits"], exact[2], atol=tolerance, rtol=0)
    in_logs = exact[1] * scales.detach()
    torch.testing.assert_close(by_size["log scales"].flatten(), in_logs, atol=tolerance, rtol=0)
