"""Bounds of whole data sets: exact evidence, chunks, errors over data, interrupts, bad input."""

import random
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_mixtures import MixtureOfDiagNormals
from pyro_mixtures.diagnostics import Evaluation, evaluate, evaluate_data
from tests.diagnostics.linear_gaussian import LinearGaussian
from tests.registry import randn

FIGURES = (
    *("elbo", "elbo_error", "iw_bound", "iw_bound_error", "khat", "khat_error"),
    *("effective_sample_size", "effective_sample_size_error"),
)
quick = partial(evaluate_data, plate="data", batch_size=7, num_samples=50, progress=False)


class Stopped(Exception):
    pass


class StoppedAfter:
    """A model that stops after so many runs."""

    def __init__(self, model, runs):
        self.model, self.runs = model, runs

    def __call__(self, *args):
        self.runs -= 1
        if self.runs < 0:
            raise Stopped
        return self.model(*args)


@pytest.fixture(autouse=True)
def _seed():
    pyro.set_rng_seed(0)


@pytest.fixture
def linear():
    """With the exact means of the posterior, and wider."""
    found = LinearGaussian()
    at_offset = found.posterior(found.offset.unsqueeze(0))
    found.weight = at_offset.covariance_matrix[0] @ found.factor.mT / found.noise**2
    found.shift = -found.weight @ found.offset
    found.scale = 1.2 * at_offset.stddev[0]
    return found


def points(linear, count=25):
    return linear.evidence().sample((count,))


def numbers(found):
    return [getattr(found, name).tolist() for name in FIGURES]


def test_the_exact_evidence_of_each_datum(linear):
    """By 5,000 samples in chunks; a few batches, the last one smaller."""
    x = points(linear, 100)
    found = evaluate_data(
        linear.model, linear.guide, x, plate="data", batch_size=40, chunk_size=700, progress=False
    )
    evidence = linear.evidence().log_prob(x)
    posterior, q = linear.posterior(x), linear.encoder(x).base_dist
    q = torch.distributions.MultivariateNormal(q.loc, scale_tril=q.scale.diag_embed())
    elbo = evidence - torch.distributions.kl_divergence(q, posterior)
    assert found.num_samples == 5000
    assert all(getattr(found, name).shape == (100,) for name in FIGURES)
    assert ((found.elbo - elbo).abs() < 5 * found.elbo_error).all()  # false alarm 6e-5
    assert ((found.iw_bound - evidence).abs() < 5 * found.iw_bound_error).all()
    assert found.iw_bound_error.max() < 0.05
    assert (found.effective_sample_size > 500).all()


def test_figures_are_those_of_evaluate(linear):
    x = points(linear, 7)
    found = quick(linear.model, linear.guide, x, seed=3)
    pyro.set_rng_seed(int(torch.randint(2**31, (1,), generator=torch.manual_seed(3))))
    same = evaluate(linear.model, linear.guide, x, plate="data", num_samples=50, vectorize=True)
    assert numbers(found) == numbers(same)


@pytest.mark.parametrize("vectorize", [True, False, None])
def test_batches_do_not_depend_on_each_other(linear, vectorize):
    x = points(linear)
    whole = quick(linear.model, linear.guide, x, vectorize=vectorize)
    x[:14] = 0
    other = quick(linear.model, linear.guide, x, vectorize=vectorize)
    assert torch.equal(whole.iw_bound[14:], other.iw_bound[14:])
    assert not torch.equal(whole.iw_bound[:14], other.iw_bound[:14])
    assert len(set(whole.effective_sample_size.tolist())) == 25  # seeds differ, too


def test_seeds_give_other_draws_and_random_numbers_stay(linear):
    x = points(linear)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    found = [quick(linear.model, linear.guide, x, seed=seed) for seed in (0, 0, 1)]
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert numbers(found[0]) == numbers(found[1])
    assert not torch.equal(found[0].elbo, found[2].elbo)


def test_errors_over_data(linear):
    """That of the mean over data; the draws' own is smaller, and both are told."""
    x = points(linear, 400)
    found = quick(linear.model, linear.guide, x, batch_size=400)
    evidence = linear.evidence().log_prob(x)
    assert found.iw_bound_data_error == pytest.approx(found.iw_bound.std().item() / 20)
    assert found.elbo_data_error == pytest.approx(found.elbo.std().item() / 20)
    assert found.iw_bound_data_error == pytest.approx(evidence.std().item() / 20, rel=0.1)
    of_draws = found.elbo_error.square().sum().sqrt() / 400
    title, elbo, bound, *_ = str(found).splitlines()
    assert title == "means over 400 data, 50 samples of each"
    assert elbo.endswith(
        f" {found.elbo.mean():.3f} ± {of_draws:.3f}, over data {found.elbo_data_error:.3f}"
    )
    assert bound.endswith(f", over data {found.iw_bound_data_error:.3f}")


def test_the_error_over_data_is_what_other_data_change(linear):
    data = [points(linear, 50) for _ in range(60)]
    found = [quick(linear.model, linear.guide, x, batch_size=50, num_samples=25) for x in data]
    means = torch.stack([each.elbo.mean() for each in found])
    told = torch.stack([each.elbo_data_error for each in found]).square().mean().sqrt()
    # standard deviation of 60 normals: 9 % of itself, 4 of these
    assert 0.64 < means.std() / told < 1.36


def test_one_datum_has_no_error_over_data(linear):
    found = quick(linear.model, linear.guide, points(linear, 1))
    assert found.elbo_data_error.isnan()
    assert "over data" not in str(found)
    assert Evaluation.from_log_weights(torch.randn(50)).iw_bound_data_error.isnan()


def test_batches_of_several_tensors_and_an_amortized_mixture():
    x, y = randn(10, 2), torch.arange(10)

    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + y.unsqueeze(-1), 1.0).to_event(1), obs=x)

    def guide(x, y):
        with pyro.plate("data", len(x)):
            means = (x - y.unsqueeze(-1)) / 2
            locs = torch.stack([means - 0.3, means + 0.3], -2)
            q = MixtureOfDiagNormals(locs, torch.full((2, 2), 0.75).double(), torch.zeros(2))
            pyro.sample("z", q)

    found = quick(model, guide, x, y, num_samples=1000)
    evidence = dist.Normal(y.double().unsqueeze(-1), 2**0.5).log_prob(x).sum(-1)
    assert ((found.iw_bound - evidence).abs() < 5 * found.iw_bound_error).all()


def test_memory_stays_within_the_budget(linear, monkeypatch):
    sizes = []

    def watched(x):
        linear.model(x)
        sizes.append(1)

    monkeypatch.setattr("pyro_mixtures.diagnostics.log_weights.MEMORY_BUDGET", 10_000)
    quick(watched, linear.guide, points(linear, 7), num_samples=100, vectorize=True)
    # two sites of two and three doubles in the model, one of two in the guide; densities of each
    chunk = 10_000 // (7 * (2 + 3 + 2 + 3) * 8)
    assert len(sizes) == 2 * 1 + 1 + -(-100 // chunk)  # with the probe


# ------------------------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("batches", [0, 1, 3])
def test_what_was_interrupted_goes_on_to_the_same_numbers(linear, tmp_path, batches):
    x, path = points(linear), tmp_path / "bounds.pt"
    options = {"vectorize": True, "chunk_size": 20, "checkpoint": path}
    runs = 2 + batches * 4 + 2  # the probe, and batches of one run and three chunks; in a batch
    with pytest.raises(Stopped):
        quick(StoppedAfter(linear.model, runs), linear.guide, x, **options)
    assert path.exists() == (batches > 0)
    counted = StoppedAfter(linear.model, 1000)
    again = quick(counted, linear.guide, x, **options | {"checkpoint": str(path)})
    assert 1000 - counted.runs == 2 + (4 - batches) * 4
    assert numbers(again) == numbers(
        quick(linear.model, linear.guide, x, **options | {"checkpoint": None})
    )
    assert [each.name for each in tmp_path.iterdir()] == ["bounds.pt"]
    ended = StoppedAfter(linear.model, 2)  # at once, from its end
    assert numbers(quick(ended, linear.guide, x, **options)) == numbers(again)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_samples": 51}, "same num_samples, but got another: 50 for 51"),
        ({"batch_size": 8}, "same batch_size, but got another: 7 for 8"),
        ({"seed": 1}, "same seed, but got another: 0 for 1"),
        ({"chunk_size": 10}, "same chunk_size, but got another: None for 10"),
        ({"vectorize": False}, "same vectorize, but got another: None for False"),
    ],
)
def test_checkpoints_of_other_settings_are_refused(linear, tmp_path, options, told):
    x, path = points(linear), tmp_path / "bounds.pt"
    quick(linear.model, linear.guide, x, checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=told):
        quick(linear.model, linear.guide, x, checkpoint=path, **options)
    assert path.read_bytes() == before


def test_checkpoints_of_other_data_models_and_guides_are_refused(linear, tmp_path):
    x, path = points(linear), tmp_path / "bounds.pt"
    quick(linear.model, linear.guide, x, checkpoint=path)
    moved = x.clone()
    moved[-1, 0] += 1e-9
    for other in (moved, x.float(), x[:-1]):
        with pytest.raises(ValueError, match="same data, but got another$"):
            quick(linear.model, linear.guide, other, checkpoint=path)
    for name in ("offset", "shift"):  # of the decoder and the encoder
        setattr(linear, name, getattr(linear, name) + 0.01)
        with pytest.raises(ValueError, match="same model and guide, .* other parameters"):
            quick(linear.model, linear.guide, x, checkpoint=path)
        setattr(linear, name, getattr(linear, name) - 0.01)
    quick(linear.model, linear.guide, x, checkpoint=path)
    torch.save({"weights": x}, path)
    with pytest.raises(ValueError, match="to be that of evaluate_data, but got another file"):
        quick(linear.model, linear.guide, x, checkpoint=path)
    with pytest.raises(ValueError, match="folder that exists"):
        quick(linear.model, linear.guide, x, checkpoint="no/such/folder/bounds.pt")


def test_one_warning_of_draws_one_by_one_at_the_users_line(linear):
    def mixing(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", linear.prior())
            pyro.sample("x", linear.decoder(z - z.mean()), obs=x)

    with pytest.warns(UserWarning, match="Draws are made one by one") as warned:
        quick(mixing, linear.guide, points(linear, 14), num_samples=25)
    assert [each.filename for each in warned] == [__file__]


def test_the_bar(linear, capsys):
    quick(linear.model, linear.guide, points(linear), progress=True)
    shown = capsys.readouterr().err
    assert "25/25" in shown
    assert "bound=-" in shown


# -------------------------------------------------------------------------------------- bad input


def test_bad_arguments(linear):
    x = points(linear)
    run = partial(quick, linear.model, linear.guide)
    for data, told in (
        ((), r"data to be tensors .*, but got \[\]"),
        ((x, 3), r"data to be tensors .*, but got \[\(25, 3\), 'int'\]"),
        ((x, torch.tensor(3.0)), r"data to be tensors .*, but got \[\(25, 3\), \(\)\]"),
        ((x, x[:5]), r"same first dimension >= 1, but got shapes \[\(25, 3\), \(5, 3\)\]"),
        ((x[:0],), r"same first dimension >= 1, but got shapes \[\(0, 3\)\]"),
    ):
        with pytest.raises(ValueError, match=told):
            run(*data)
    for options, told in (
        ({"batch_size": 0}, "batch_size to be an integer >= 1, but got 0"),
        ({"num_samples": 24}, "num_samples to be an integer >= 25, but got 24"),
        ({"seed": -1}, "seed to be an integer >= 0, but got -1"),
        ({"chunk_size": 0}, "chunk_size to be an integer >= 1, but got 0"),
        ({"chunk_size": 5, "vectorize": False}, "no chunk_size with vectorize = False"),
        ({"plate": "date"}, "all sites in plate 'date'"),
    ):
        with pytest.raises(ValueError, match=told):
            run(x, **options)


def test_a_plate_of_another_size_than_the_batch():
    def model(y):
        with pyro.plate("data", 3):
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(x, 1.0), obs=y.mean())

    def guide(y):
        with pyro.plate("data", 3):
            pyro.sample("x", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="plate 'data' of the batch's size 7, but got 3"):
        quick(model, guide, torch.zeros(25))


def test_errors_name_the_batch(linear):
    x = points(linear)
    x[20] = torch.nan
    with pytest.raises(ValueError, match=r"(?s)Expected .*\(in the batch of data 14 to 20\)"):
        quick(linear.model, linear.guide, x)
