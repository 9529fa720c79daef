"""Expectations under constraints: unbiased costs, the schedule, a known optimum, no way out."""

import math

import pytest
import torch
from torch.distributions import ExpTransform, Normal

from pyro_mixtures.distributions import MixtureFlow, MixtureOfDiagNormals
from pyro_mixtures.infer import AugmentedLagrangian, train_constrained
from pyro_mixtures.infer.constrained import Violation

# ------------------------------------------------------------------------------------- costs


@pytest.mark.parametrize("size", [2, 5])
def test_costs_are_unbiased(size):
    """Of the square of an expectation, by few samples, where the square of their mean is not."""
    torch.manual_seed(0)
    count = 20_000  # of replications, each with two constraints of its own
    given = torch.tensor([0.3, -0.2], dtype=torch.float64)
    loc = given.expand(count, 2).clone().requires_grad_()
    multipliers = torch.tensor([0.6, -0.6], dtype=torch.float64)

    def violations(squares, product):
        return torch.stack([squares - 2.5, product - 0.5], -1)

    def loss(mean):
        return (multipliers * mean).sum() + 1.5 * mean.square().sum()

    lagrangian = AugmentedLagrangian(penalty=3.0)
    lagrangian.update((multipliers / 3).repeat(2, count))
    z = loc + torch.randn(size, count, 2, dtype=torch.float64)
    v = violations(z.square().sum(-1), z.prod(-1))  # (S, N, 2)
    (found,) = torch.autograd.grad(lagrangian.costs(v.flatten(1)).mean(), loc, retain_graph=True)
    (naive,) = torch.autograd.grad(loss(v.mean(0)), loc)
    exact = given.requires_grad_()
    mean = violations(exact.square().sum() + 2, exact.prod())
    (expected,) = torch.autograd.grad(loss(mean), exact)
    scores = []
    for draws in (found, naive):
        error = draws.std(0) / count**0.5
        scores.append(float(((draws.mean(0) - expected) / error).abs().max()))
    assert scores[0] < 4.5  # a false alarm in 70,000 runs
    assert scores[1] > 10


def test_multipliers_and_penalties():
    """These grow where a violation stays on its side and hardly falls, and only there."""
    lagrangian = AugmentedLagrangian(penalty=2.0, growth=3.0, decrease=0.5, patience=100)

    def update(mean, spread=1e-3):
        noise = torch.tensor([[spread, -spread]]) * torch.tensor([[1.0], [-1.0]])
        return lagrangian.update(torch.tensor([mean]) + noise)

    assert lagrangian.multipliers is None
    first = update([1.0, -2.0])
    assert (first.multipliers.tolist(), first.penalty) == ([2.0, -4.0], 2.0)
    assert update([0.4, -0.8]).penalty == 2.0  # falls fast enough
    assert update([0.3, -0.6]).penalty == 6.0
    assert lagrangian.multipliers.tolist() == pytest.approx([3.4, -6.8])
    assert update([-0.3, 0.6]).penalty == 6.0  # beyond
    assert update([-0.3, 0.6], spread=1.0).penalty == 6.0  # noise
    assert lagrangian.multipliers.tolist() == pytest.approx([-0.2, 0.4])
    assert len(lagrangian.history) == 5
    assert all(isinstance(each, Violation) for each in lagrangian.history)


def test_the_norm_is_without_the_noise():
    torch.manual_seed(0)
    norms = []
    for _ in range(500):
        lagrangian = AugmentedLagrangian()
        norms.append(lagrangian.update(0.3 + torch.randn(100, 2)).norm ** 2)
    assert sum(norms) / 500 == pytest.approx(2 * 0.3**2, abs=0.02)


# --------------------------------------------------------------------------------------- training


def maximum_entropy(moments, count=2, transforms=(), seed=0):
    """What draws from a mixture, or a flow on it, its parameters, and the mixture."""
    torch.manual_seed(seed)
    locs = torch.linspace(-1.0, 1.5, count).unsqueeze(-1).requires_grad_()
    log_scale, logits = torch.zeros(count, 1), torch.zeros(count)
    parameters = [locs, log_scale.requires_grad_(), logits.requires_grad_()]

    def q():
        base = MixtureOfDiagNormals(locs, log_scale.exp(), logits, weight_gradient="pathwise")
        return MixtureFlow(base, list(transforms)) if transforms else base

    def draw(size):
        distribution = q()
        z = distribution.rsample((size,))
        return distribution.log_prob(z), moments(z)

    return draw, parameters, q


def test_the_normal_has_the_largest_entropy():
    """Of mean 0 and variance 1: half of log 2 pi e, with the multipliers 0 and 1/2."""
    draw, parameters, q = maximum_entropy(lambda z: torch.cat([z, z.square() - 1], -1))
    lagrangian = None
    for rate, tolerance in ((0.03, 0.05), (0.003, 0.01)):
        lagrangian = train_constrained(
            draw,
            torch.optim.Adam(parameters, lr=rate),
            tolerance=tolerance,
            num_steps=60,
            num_samples=256,
            num_checked=40_000,
            lagrangian=lagrangian,
        )
    z = q().sample((100_000,))
    assert -q().log_prob(z).mean().item() == pytest.approx(1.4189, abs=0.02)
    assert q().mean.item() == pytest.approx(0, abs=0.03)
    assert (q().variance + q().mean.square()).item() == pytest.approx(1, abs=0.03)
    torch.testing.assert_close(lagrangian.multipliers, torch.tensor([0.0, 0.5]), atol=0.08, rtol=0)
    assert len(lagrangian.history) < 30


def test_samples_of_a_flow():
    """The largest entropy on the half line with mean 1 is that of the exponential: 1."""
    draw, parameters, q = maximum_entropy(lambda y: y - 1, 3, [ExpTransform()])
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    train_constrained(draw, optimizer, tolerance=0.05, num_steps=80, num_samples=128)
    y = q().sample((100_000,))
    assert -q().log_prob(y).mean().item() == pytest.approx(1, abs=0.1)
    assert y.mean().item() == pytest.approx(1, abs=0.1)


def test_stops_when_the_constraints_hold():
    loc = torch.zeros(1, requires_grad=True)

    def draw(size):
        z = Normal(loc, 1.0).rsample((size,))
        calls.append(size)
        return 0 * z.squeeze(-1), z - 1

    calls = []
    optimizer = torch.optim.SGD([loc], lr=0.5)
    lagrangian = train_constrained(draw, optimizer, tolerance=0.03, num_steps=20)
    assert len(lagrangian.history) < 10
    assert calls.count(10_000) == len(lagrangian.history)
    calls.clear()
    with pytest.warns(UserWarning, match=r"After 3 updates .*within 0.001. Violations \[.*\+-"):
        train_constrained(
            draw, optimizer, num_updates=3, num_steps=4, num_samples=8, num_checked=16
        )
    assert calls == ([8] * 4 + [16]) * 3


# -------------------------------------------------------------------------------------- no way out


@pytest.mark.parametrize(
    ("moments", "made"),
    [
        (lambda z: torch.cat([z, z - 1, z.square() - 1], -1), ()),
        (lambda z: z + 1, (ExpTransform(),)),
        (lambda z: torch.cat([z - 2, z.square() - 1], -1), ()),
    ],
    ids=["contradiction", "outside of the support", "no such moments"],
)
def test_constraints_that_cannot_be_met(moments, made):
    draw, parameters, _ = maximum_entropy(moments, transforms=made)
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    with pytest.raises(ValueError, match=r"the multipliers run away: over 6 updates.*\+-"):
        train_constrained(draw, optimizer, num_updates=100, num_steps=20, num_checked=2000)


@pytest.mark.parametrize(
    "options",
    [{"penalty": 0.0}, {"growth": 1.0}, {"decrease": 1.0}, {"penalty": math.nan}, {"patience": 0}],
)
def test_numbers_out_of_range(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"Expected .*{name}"):
        AugmentedLagrangian(**options)


@pytest.mark.parametrize(
    ("violations", "match"),
    [
        (torch.zeros(4), r"\(S, M\) with S > 1"),
        (torch.zeros(1, 3), r"\(S, M\) with S > 1"),
        (None, "NoneType"),
        (torch.full((4, 1), math.nan), "finite"),
    ],
)
def test_violations_of_another_kind(violations, match):
    lagrangian = AugmentedLagrangian()
    for method in (lagrangian.costs, lagrangian.update):
        with pytest.raises(ValueError, match=match):
            method(violations)
    lagrangian.update(torch.randn(5, 2))
    with pytest.raises(ValueError, match=r"\(S, 2\), but got \(5, 3\)"):
        lagrangian.costs(torch.randn(5, 3))


def test_mistakes_in_training():
    loc = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([loc], lr=0.1)

    def draw(size):
        z = loc + torch.randn(size, 1)
        return z, z

    with pytest.raises(ValueError, match=r"costs of shape \(64,\), but got \(64, 1\)"):
        train_constrained(draw, optimizer)
    for options in ({"tolerance": 0.0}, {"num_steps": 0}, {"num_samples": 1}, {"num_checked": 1}):
        (name,) = options
        with pytest.raises(ValueError, match=name):
            train_constrained(draw, optimizer, **options)
