"""Bounds by draws of a guide: closed forms, calibrated errors, plates, chunks and bad input."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal

from pyro_mixtures import MixtureOfDiagNormals
from pyro_mixtures.diagnostics import Evaluation, evaluate, psis
from pyro_mixtures.nn import HierarchicalPrior

each_way = pytest.mark.parametrize("vectorize", [False, True, None])

Y = torch.linspace(-3, 3, 25)
LOC_ERROR, SCALE = 0.3, 0.9
"""Of the guide: its means are so far from the posterior's, whose scale is 0.71."""


@pytest.fixture(autouse=True)
def _seed():
    pyro.set_rng_seed(0)


def model(y):
    with pyro.plate("data", len(y)):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)


def guide(y):
    with pyro.plate("data", len(y)):
        pyro.sample("x", dist.Normal(y / 2 + LOC_ERROR, SCALE))


def exact(y):
    """Log evidence and ELBO of each datum."""
    evidence = dist.Normal(0.0, math.sqrt(2)).log_prob(y).double()
    posterior = torch.distributions.Normal(y / 2, math.sqrt(0.5))
    q = torch.distributions.Normal(y / 2 + LOC_ERROR, SCALE)
    return evidence, evidence - torch.distributions.kl_divergence(q, posterior)


def number(vectorize):
    """As many samples as take a second."""
    return 400 if vectorize is False else 4000


def check_scores(found, values, errors):
    """Largest z-score below 4.5: false alarms of 7e-6 a number."""
    assert ((found - values).abs() < 4.5 * errors).all()


@each_way
def test_bounds_of_all_data(vectorize):
    y = Y[:3]
    found = evaluate(model, guide, y, num_samples=number(vectorize), vectorize=vectorize)
    evidence, elbo = (each.sum() for each in exact(y))
    check_scores(found.elbo, elbo, found.elbo_error)
    check_scores(found.iw_bound, evidence, found.iw_bound_error)
    assert found.elbo_error < 0.1
    assert found.elbo.shape == found.khat.shape == ()


@each_way
def test_bounds_of_each_datum(vectorize):
    found = evaluate(
        model, guide, Y, num_samples=number(vectorize), plate="data", vectorize=vectorize
    )
    evidence, elbo = exact(Y)
    check_scores(found.elbo, elbo, found.elbo_error)
    check_scores(found.iw_bound, evidence, found.iw_bound_error)
    scores = torch.cat(
        [
            (found.elbo - elbo) / found.elbo_error,
            (found.iw_bound - evidence) / found.iw_bound_error,
        ]
    )
    assert 0.6 < scores.square().mean().sqrt() < 1.4  # of 50, in pairs
    assert found.khat.shape == found.effective_sample_size.shape == Y.shape


def check_calibrated(found, value, errors, rms=(0.9, 1.1)):
    """Scores of mean 0 and root mean square 1, for 400 columns: 4 standard errors of each."""
    scores = (found - value) / errors
    assert scores.mean().abs() < 0.2
    assert rms[0] < scores.square().mean().sqrt() < rms[1]


def test_errors_are_calibrated():
    """Lognormal weights, of which all is known."""
    scale, count = 0.3, 1000
    found = Evaluation.from_log_weights(scale * torch.randn(count, 400, dtype=torch.float64))
    check_calibrated(found.elbo, 0.0, found.elbo_error, (0.86, 1.14))
    check_calibrated(found.iw_bound, scale**2 / 2, found.iw_bound_error, (0.86, 1.14))
    size, error = found.effective_sample_size, found.effective_sample_size_error
    check_calibrated(size, count * math.exp(-(scale**2)), error, (0.8, 1.2))


def test_the_error_of_khat_is_calibrated():
    """Pareto weights of shape 1/2, to which the estimate is shrunk: that has no bias."""
    log_weights = 0.5 * torch.empty(1000, 400, dtype=torch.float64).exponential_()
    found = Evaluation.from_log_weights(log_weights)
    check_calibrated(found.khat, 0.5, found.khat_error, (0.86, 1.14))


def test_many_weights_of_a_heavy_tail():
    """The fit of a long tail overflows where it does not matter, and must not warn of it."""
    found = Evaluation.from_log_weights(5 * torch.randn(200_000))
    assert 0.7 < found.khat < 3
    assert found.effective_sample_size < 1000


def test_weights_that_are_all_the_same():
    found = Evaluation.from_log_weights(torch.full((100, 2), -3.0))
    assert found.iw_bound.tolist() == pytest.approx([-3, -3])
    assert (found.iw_bound_error == 0).all()
    assert (found.khat == -math.inf).all()
    assert found.khat_error.isnan().all()
    assert found.effective_sample_size.tolist() == pytest.approx([100, 100])


@each_way
def test_the_exact_posterior_has_no_tail(vectorize):
    """In single precision and of few draws, too, where what rounding leaves has ties."""

    def posterior(y):
        with pyro.plate("data", len(y)):
            pyro.sample("x", dist.Normal(y / 2, math.sqrt(0.5)))

    found = evaluate(model, posterior, Y, num_samples=25, plate="data", vectorize=vectorize)
    assert (found.khat == -math.inf).all()


def test_khat_is_that_of_psis():
    def at_once(of):
        pyro.set_rng_seed(0)
        return of(model, guide, Y[:3], num_samples=1000, vectorize=True)

    found, smoothed = at_once(evaluate), at_once(psis)
    assert found.khat.item() == smoothed.khat
    assert found.threshold == smoothed.threshold
    assert found.iw_bound.item() == pytest.approx(smoothed.log_evidence, abs=0.01)
    size = smoothed.effective_sample_size
    assert found.effective_sample_size.item() == pytest.approx(size, rel=0.05)


@pytest.mark.parametrize("plate", [None, "data"])
@pytest.mark.parametrize("chunk_size", [32, 160, 5000])
def test_chunks_have_the_same_draws(plate, chunk_size):
    """One site's draws come in the same order, whatever the chunk."""

    def found(chunk_size):
        pyro.set_rng_seed(0)
        return evaluate(
            model,
            guide,
            Y[:16],
            num_samples=480,
            plate=plate,
            vectorize=True,
            chunk_size=chunk_size,
        )

    expected, chunked = found(480), found(chunk_size)
    for name in ("elbo", "elbo_error", "iw_bound", "khat", "effective_sample_size_error"):
        assert torch.allclose(getattr(chunked, name), getattr(expected, name), rtol=1e-6)
    assert chunked.num_samples == 480


def test_chunks_stay_within_the_memory_budget(monkeypatch):
    sizes = []

    def watched(y):
        found = model(y)
        sizes.append(y.numel())
        return found

    monkeypatch.setattr("pyro_mixtures.diagnostics.log_weights.MEMORY_BUDGET", 10_000)
    evaluate(watched, guide, Y, num_samples=100, vectorize=True)
    bytes_of_a_draw = 3 * 25 * (4 + 8)  # two sites in the model and one in the guide
    assert len(sizes) == 1 + math.ceil(100 / (10_000 // bytes_of_a_draw))


def subsampled(data):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(data), subsample_size=2) as index:
        pyro.sample("y", dist.Normal(x, 1.0), obs=data[index])


def test_all_chunks_see_one_subsample():
    """By a guide that is the posterior of any, all weights are equal."""
    data = torch.tensor([1.0, 2.0, 4.0, 8.0])

    def guide(data):
        with pyro.plate("data", len(data), subsample_size=2) as index:
            total = 2 * data[index].sum()
        pyro.sample("x", dist.Normal(total / 5, math.sqrt(1 / 5)))

    found = evaluate(subsampled, guide, data, num_samples=100, vectorize=True, chunk_size=10)
    assert found.effective_sample_size.item() == pytest.approx(100, rel=1e-4)


def nested_model(y, columns=4):
    """The evidence of each of the rows, of which each has a latent and columns of data."""
    with pyro.plate("rows", len(y), dim=-2):
        row = pyro.sample("row", dist.Normal(0.0, 1.0))
        pyro.deterministic("twice", 2 * row)
        with pyro.plate("columns", columns, dim=-1):
            noise = pyro.sample("noise", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(row + noise, 1.0), obs=y)


def test_plates_within_the_plate_are_summed():
    y = torch.randn(5, 4)

    def guide(y):
        with pyro.plate("rows", len(y), dim=-2):
            row = pyro.sample("row", dist.Normal(y.mean(-1, keepdim=True) * 2 / 3, 0.7))
            with pyro.plate("columns", 4, dim=-1):
                pyro.sample("noise", dist.Normal((y - row) / 2, 0.8))

    covariance = torch.ones(4, 4) + 2 * torch.eye(4)
    evidence = dist.MultivariateNormal(torch.zeros(4), covariance).log_prob(y)
    for vectorize in (False, True):
        count = number(vectorize)
        found = evaluate(
            nested_model, guide, y, num_samples=count, plate="rows", vectorize=vectorize
        )
        assert found.iw_bound.shape == (5,)
        check_scores(found.iw_bound, evidence, found.iw_bound_error)


@each_way
def test_an_amortized_mixture(vectorize):
    def model(y):
        with pyro.plate("data", len(y)):
            x = pyro.sample("x", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(x.squeeze(-1), 1.0), obs=y)

    def guide(y):
        with pyro.plate("data", len(y)):
            locs = (y.unsqueeze(-1) / 2 + torch.tensor([-0.3, 0.3])).unsqueeze(-1)
            pyro.sample("x", MixtureOfDiagNormals(locs, torch.full((2, 1), 0.7), torch.zeros(2)))

    found = evaluate(
        model, guide, Y, num_samples=number(vectorize), plate="data", vectorize=vectorize
    )
    check_scores(found.iw_bound, exact(Y)[0], found.iw_bound_error)


@each_way
def test_a_prior_that_pyro_expands(vectorize):
    def model(y):
        with pyro.plate("data", len(y)):  # a distribution without an expand of its own
            z = pyro.sample("z", prior())
            pyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=y)

    def guide(y):
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(y.unsqueeze(-1) / 3, torch.ones(2)).to_event(1))

    normal = torch.distributions.Normal(torch.zeros(1), 1.0)
    prior = HierarchicalPrior(
        lambda: torch.distributions.Independent(normal, 1),
        lambda z2: dist.Normal(torch.zeros_like(z2), 1.0).to_event(1),
    )
    found = evaluate(
        model, guide, Y, num_samples=number(vectorize), plate="data", vectorize=vectorize
    )
    evidence = dist.Normal(0.0, 3.0**0.5).log_prob(Y)
    check_scores(found.iw_bound, evidence, found.iw_bound_error)


@each_way
def test_what_has_no_density_may_be_outside_of_the_plate(vectorize):
    def with_constant(y):
        pyro.deterministic("constant", torch.ones(3))
        model(y)

    found = evaluate(with_constant, guide, Y, num_samples=25, plate="data", vectorize=vectorize)
    assert found.elbo.shape == Y.shape


@each_way
def test_what_a_mask_hides_has_no_weight(vectorize):
    def masked(function):
        return poutine.mask(function, mask=Y > 0)

    found = evaluate(
        masked(model), masked(guide), Y, num_samples=100, plate="data", vectorize=vectorize
    )
    assert (found.elbo[Y <= 0] == 0).all()
    assert (found.effective_sample_size[Y <= 0] == 100).all()
    assert (found.elbo[Y > 0] != 0).all()


def test_automatic_guides_of_local_latents():
    automatic = AutoNormal(model, init_scale=0.7)
    found = evaluate(model, automatic, Y, num_samples=4000, plate="data", vectorize=True)
    near = Y.abs() < 2  # of the mean of the prior, where the guide starts
    evidence = exact(Y)[0]
    check_scores(found.iw_bound[near], evidence[near], found.iw_bound_error[near])


@each_way
def test_draws_without_density(vectorize):
    def uniform(y):
        with pyro.plate("data", len(y)):
            x = pyro.sample("x", dist.Uniform(-1.0, 1.0, validate_args=False))
            pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    y = torch.zeros(2)
    found = evaluate(
        uniform, guide, y, num_samples=number(vectorize), plate="data", vectorize=vectorize
    )
    evidence = torch.tensor(math.log(math.erf(math.sqrt(0.5)) / 2))
    assert (found.elbo == -math.inf).all()
    assert found.elbo_error.isnan().all()
    check_scores(found.iw_bound, evidence, found.iw_bound_error)


def test_the_tables():
    found = Evaluation.from_log_weights(0.5 * torch.randn(1000))
    lines = str(found).splitlines()
    assert lines[0] == "1000 samples"
    assert lines[1] == f"ELBO                      {found.elbo:.3f} ± {found.elbo_error:.3f}"
    assert lines[3].endswith(f"{found.khat:.2f} ± {found.khat_error:.2f}, not above 0.67")
    poor = Evaluation.from_log_weights(5 * torch.randn(1000, 2))
    lines = str(poor).splitlines()
    assert lines[0] == "means over 2 data, 1000 samples of each"
    assert lines[1].startswith(f"ELBO                      {poor.elbo.mean():.3f} ± ")
    assert lines[3].endswith(", 2 above 0.67")
    assert str(Evaluation.from_log_weights(5 * torch.randn(1000))).count(", above 0.67") == 1


def test_weights_with_a_graph():
    """Their figures are numbers, which print without a warning."""
    found = Evaluation.from_log_weights(torch.randn(30, requires_grad=True))
    assert not found.elbo.requires_grad
    assert str(found)


def test_no_gradients():
    automatic = AutoNormal(model)
    assert not evaluate(model, automatic, Y, num_samples=25).elbo.requires_grad
