"""The deep Markov model and its guide: ragged lengths, densities, gradients."""

import math

import pyro
import pytest
import torch
from torch.distributions import MultivariateNormal

from experiments.dmm import chorales, figures, fits
from experiments.dmm.guide import ESTIMATORS
from experiments.dmm.model import MarkovChain, Transition

LENGTHS = torch.tensor([5, 3, 1])


@pytest.fixture
def rolls():
    generator = torch.Generator().manual_seed(0)
    rolls = (torch.rand(3, 5, chorales.NOTES, generator=generator) < 0.05).float()
    return rolls * chorales.there(rolls, LENGTHS).unsqueeze(-1)


def started(**options):
    model, guide, elbo = fits.start(fits.Candidate(sizes=fits.TINY, **options), 0)
    return model, guide, elbo


def log_ratio(model, guide, z, rolls, lengths):
    """log p - log q of each sequence at given states."""
    with pyro.poutine.trace() as drawn:
        pyro.poutine.condition(guide, {"z": z})(rolls, lengths)
    replayed = pyro.poutine.condition(model, {"z": z})
    joint = pyro.poutine.trace(replayed).get_trace(rolls, lengths)
    joint.compute_log_prob()
    drawn.trace.compute_log_prob()
    total = joint.nodes["z"]["log_prob"] + joint.nodes["x"]["log_prob"]
    return total - drawn.trace.nodes["z"]["log_prob"]


@pytest.mark.parametrize(("count", "shared"), [(1, False), (2, False), (3, True)])
def test_a_padded_batch_is_the_sum_of_its_sequences(count, shared, rolls):
    model, guide, _ = started(num_components=count, shared=shared)
    model.eval(), guide.eval()
    z = torch.randn(3, 5, fits.TINY.latent)
    together = log_ratio(model, guide, z, rolls, LENGTHS)
    for place, length in enumerate(LENGTHS.tolist()):
        one = slice(place, place + 1)
        alone = log_ratio(model, guide, z[one, :length], rolls[one, :length], LENGTHS[one])
        torch.testing.assert_close(together[one], alone)
    noise = torch.rand_like(rolls) * ~chorales.there(rolls, LENGTHS).unsqueeze(-1)
    torch.testing.assert_close(log_ratio(model, guide, z, rolls + noise, LENGTHS), together)


def test_a_chain_with_a_linear_transition_is_a_multivariate_normal():
    transition = Transition(1, 4).double()
    with torch.no_grad():
        transition.gate[-1].weight.zero_()
        transition.gate[-1].bias.fill_(-100.0)  # always open for the linear part
        transition.linear.weight.fill_(0.7)
        transition.linear.bias.fill_(0.3)
        transition.scale.weight.zero_()
        transition.scale.bias.fill_(math.log(math.expm1(0.5)))
    mask = torch.tensor([[True, True, True], [True, True, False]])
    initial = torch.tensor([2.0], dtype=torch.float64)
    chain = MarkovChain(transition, initial, mask)
    # z = A z + b + 0.5 e
    shift = 0.7 * torch.eye(3, dtype=torch.float64).roll(1, 0).tril(-1)
    inverse = (torch.eye(3, dtype=torch.float64) - shift).inverse()
    mean = inverse @ torch.tensor([0.3 + 0.7 * 2.0, 0.3, 0.3], dtype=torch.float64)
    covariance = 0.25 * inverse @ inverse.mT
    z = torch.randn(2, 3, dtype=torch.float64)
    expected = torch.stack(
        [
            MultivariateNormal(mean[:count], covariance[:count, :count]).log_prob(row[:count])
            for count, row in zip((3, 2), z, strict=True)
        ]
    )
    torch.testing.assert_close(chain.log_prob(z.unsqueeze(-1)), expected)
    torch.manual_seed(0)
    draws = chain.sample((20_000,))[:, 0, :, 0]
    error = (covariance.diagonal() / 20_000).sqrt()
    assert bool(((draws.mean(0) - mean).abs() < 5 * error).all())


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("shared", [False, True])
def test_every_estimator_trains_every_parameter(estimator, shared, rolls):
    model, guide, elbo = started(num_components=2, shared=shared, estimator=estimator)
    for _ in range(2):  # the second with shares that were learned
        guide.zero_grad()
        elbo.differentiable_loss(model, guide, rolls, LENGTHS).backward()
    for module in (model, guide):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name
            assert bool(parameter.grad.any()), name


def test_the_density_of_a_sample_is_that_of_its_value(rolls):
    for estimator in ("pathwise", "clustered", "gumbel_hard"):
        _, guide, _ = started(num_components=2, estimator=estimator)
        chain = guide.chain(rolls, LENGTHS)
        z = chain.rsample((4,))
        torch.testing.assert_close(chain.log_prob(z), chain.log_prob(z.clone()))
        torch.testing.assert_close(chain.score_parts(z).log_prob, chain.log_prob(z.clone()))


def test_unbiased_estimators_agree_with_the_score_function(rolls):
    """In the mean over many copies of a sequence; five standard errors for 30 batches."""
    many = rolls[1:2, :3].repeat(400, 1, 1), LENGTHS[1:2].repeat(400)
    means, errors = {}, {}
    for estimator in ("score", "pathwise", "clustered"):
        model, guide, elbo = started(num_components=2, estimator=estimator)
        with torch.no_grad():
            guide.head.bias[: fits.TINY.latent] += 2.0  # apart, and of unequal weights
            guide.head.bias[-1] += 0.5
        draws = []
        for _ in range(30):
            guide.zero_grad()
            (elbo.differentiable_loss(model, guide, *many) / 400).backward()
            draws.append(guide.head.bias.grad.clone())
        found = torch.stack(draws)
        means[estimator], errors[estimator] = found.mean(0), found.std(0) / math.sqrt(30)
    for estimator in ("pathwise", "clustered"):
        error = (errors["score"].square() + errors[estimator].square()).sqrt()
        z = (means["score"] - means[estimator]) / error
        assert bool((z.abs() < 5).all()), (estimator, z)


def test_separation_of_components(rolls):
    for shared in (False, True):
        _, guide, _ = started(num_components=2, shared=shared)
        with torch.no_grad():
            guide.head.weight.zero_()
            guide.head.bias.zero_()
            guide.head.bias[: fits.TINY.latent] = 3.0 * math.log(2)  # of scales log(2)
        distance, number = figures.separation(guide.eval(), rolls[0])
        torch.testing.assert_close(distance, torch.full((5,), 3.0 * math.sqrt(fits.TINY.latent)))
        torch.testing.assert_close(number, torch.full((5,), 2.0))
