"""Gumbel-max, its relaxed limit, and the bias of straight-through gradients by exact sums."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Gumbel, OneHotCategorical

from pyro_mixtures.distributions import (
    RelaxedBernoulliStraightThrough,
    RelaxedCategorical,
    RelaxedCategoricalStraightThrough,
)
from pyro_mixtures.distributions.relaxed import straight_through

LOGITS = torch.tensor([0.3, -0.5, 1.2], dtype=torch.float64)
DRAWS = 100_000
FAR = 5  # standard errors: a false alarm in 2 million, for each number
APART = 2 * FAR  # a bias of more: a mean that is within FAR of the one is not so of the other


def cost(z):
    """Not linear, so that slopes at corners are not the differences between them."""
    return (z * torch.tensor([1.0, -2.0, 0.5]).to(z)).sum(-1).exp()


def slopes(z):
    z = z.detach().requires_grad_()
    return torch.autograd.grad(cost(z).sum(), z)[0]


def exact_gradient():
    logits = LOGITS.clone().requires_grad_()
    expected = (logits.softmax(-1) * cost(torch.eye(3).double())).sum()
    return torch.autograd.grad(expected, logits)[0]


def assert_mean(samples, expected):
    error = samples.std(0) / math.sqrt(len(samples))
    assert ((samples.mean(0) - expected).abs() < FAR * error).all()


@pytest.mark.parametrize("temperature", [0.01, 0.5, 5.0])
def test_largest_of_logits_and_gumbels(temperature):
    """Each category has its probability, at any temperature: by chi-square."""
    for law in (RelaxedCategorical, RelaxedCategoricalStraightThrough):
        found = law(temperature, logits=LOGITS).sample((DRAWS,)).argmax(-1).bincount(minlength=3)
        expected = DRAWS * LOGITS.softmax(-1)
        statistic = float(((found - expected).square() / expected).sum())
        assert statistic < 2 * math.log(1e6)  # 2 degrees of freedom: a false alarm in a million


def test_relaxed_limit():
    """One draw of the noise, colder and colder: the unit vector of its largest coordinate."""
    distances = []
    for temperature in (1.0, 0.1, 0.01, 1e-4):
        torch.manual_seed(0)
        soft = RelaxedCategorical(temperature, logits=LOGITS).sample((2000,))
        torch.manual_seed(0)
        hard = RelaxedCategoricalStraightThrough(temperature, logits=LOGITS).sample((2000,))
        assert (hard.sum(-1) == 1).all()
        distances.append(float((soft - hard).abs().sum(-1).mean()))
    assert distances == sorted(distances, reverse=True)
    assert distances[1] < 0.2
    assert distances[-1] < 2e-3


@pytest.mark.parametrize("logit", [-1.0, 0.0, 2.0])
def test_bias_for_a_bernoulli_variable(logit):
    """z with the slope of p: slopes at both values, by their probabilities."""
    p = torch.tensor(logit).double().sigmoid()
    for power in (1, 2, 4):
        parameter = torch.full((DRAWS,), logit).double().requires_grad_()
        z = straight_through(Bernoulli(p).sample((DRAWS,)), parameter.sigmoid())
        (samples,) = torch.autograd.grad((z + 1).pow(power).sum(), parameter)
        variance = p * (1 - p)
        expected = variance * power * ((1 - p) + p * 2 ** (power - 1))
        assert (samples.mean() - expected).abs() <= FAR * samples.std() / math.sqrt(DRAWS) + 1e-12
        bias = expected - variance * (2**power - 1)
        # none for straight lines, and for parabolas where both values are as likely
        assert (abs(float(bias)) < 1e-12) == (power == 1 or (power == 2 and logit == 0))


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_bias_for_a_relaxed_bernoulli_variable(temperature):
    """By quadrature over the uniform noise, on both sides of the step."""
    logit = torch.tensor(0.7).double()
    nodes = (torch.arange(100_000).double() + 0.5) / 100_000
    expected = torch.zeros(()).double()
    for low, high, value in ((0.0, 1 - logit.sigmoid(), 0.0), (1 - logit.sigmoid(), 1.0, 1.0)):
        u = low + (high - low) * nodes
        y = ((logit + u.logit()) / temperature).sigmoid()
        expected = (
            expected + (high - low) * (y * (1 - y)).mean() / temperature * 4 * (value + 1) ** 3
        )
    parameter = logit.expand(DRAWS).clone().requires_grad_()
    z = RelaxedBernoulliStraightThrough(temperature, logits=parameter).rsample()
    (samples,) = torch.autograd.grad((z + 1).pow(4).sum(), parameter)
    assert_mean(samples, expected)
    exact = 15 * logit.sigmoid() * (1 - logit.sigmoid())
    assert (expected - exact).abs() > APART * samples.std() / math.sqrt(DRAWS)


def test_bias_for_a_categorical_variable():
    """z with the slope of its probabilities: a sum over the categories."""
    corners, probs = torch.eye(3).double(), LOGITS.softmax(-1)
    mean = (probs.unsqueeze(-1) * slopes(corners)).sum(0)
    expected = probs * (mean - (probs * mean).sum())
    parameter = LOGITS.expand(DRAWS, 3).clone().requires_grad_()
    z = straight_through(OneHotCategorical(probs).sample((DRAWS,)), parameter.softmax(-1))
    (samples,) = torch.autograd.grad(cost(z).sum(), parameter)
    assert_mean(samples, expected)
    error = samples.std(0) / math.sqrt(DRAWS)
    assert ((expected - exact_gradient()).abs() > APART * error).any()


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_bias_for_gumbel_straight_through(temperature):
    """By quadrature over the noise of each category, at the slopes of what was snapped."""
    nodes = (torch.arange(80).double() + 0.5) / 80
    gumbel = Gumbel(torch.zeros(()).double(), 1.0).icdf(nodes)
    noise = torch.cartesian_prod(gumbel, gumbel, gumbel)
    x = LOGITS + noise
    y = (x / temperature).softmax(-1)
    at = slopes(torch.nn.functional.one_hot(x.argmax(-1), 3).double())
    expected = (y * (at - (y * at).sum(-1, keepdim=True))).mean(0) / temperature
    parameter = LOGITS.expand(DRAWS, 3).clone().requires_grad_()
    z = RelaxedCategoricalStraightThrough(temperature, logits=parameter).rsample()
    (samples,) = torch.autograd.grad(cost(z).sum(), parameter)
    error = samples.std(0) / math.sqrt(DRAWS)
    grid = 5e-3  # of the quadrature, whose step crosses the cells
    assert ((samples.mean(0) - expected).abs() < FAR * error + grid).all()
    assert ((expected - exact_gradient()).abs() > APART * error + 3 * grid).any()
