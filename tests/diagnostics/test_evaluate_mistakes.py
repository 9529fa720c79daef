"""What evaluations of guides refuse."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal

from pyro_mixtures.diagnostics import Evaluation, evaluate, psis

each_way = pytest.mark.parametrize("vectorize", [False, True, None])

Y = torch.linspace(-3, 3, 25)


def model(y):
    with pyro.plate("data", len(y)):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)


def guide(y):
    with pyro.plate("data", len(y)):
        pyro.sample("x", dist.Normal(y / 2, 0.9))


def with_global(y):
    pyro.sample("level", dist.Normal(0.0, 1.0))
    model(y)


def with_global_guide(y):
    pyro.sample("level", dist.Normal(0.0, 1.0))
    guide(y)


def loop(y):
    for n in pyro.plate("data", len(y)):
        x = pyro.sample(f"x_{n}", dist.Normal(0.0, 1.0))
        pyro.sample(f"y_{n}", dist.Normal(x, 1.0), obs=y[n])


def loop_guide(y):
    for n in pyro.plate("data", len(y)):
        pyro.sample(f"x_{n}", dist.Normal(0.0, 1.0))


def subsampling(y):
    with pyro.plate("data", len(y), subsample_size=5) as index:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y[index])


def subsampling_guide(y):
    with pyro.plate("data", len(y), subsample_size=5):
        pyro.sample("x", dist.Normal(0.0, 1.0))


@each_way
@pytest.mark.parametrize(
    ("model", "guide", "told"),
    [
        (with_global, with_global_guide, "site 'level' of the model outside of it"),
        (
            model,
            AutoDiagonalNormal(model),
            "site '_AutoDiagonalNormal_latent' of the guide outside",
        ),
        (loop, loop_guide, "'data' to be vectorized, but got a loop"),
        (subsampling, subsampling_guide, "'data' without a subsample, but got 5 of 25"),
    ],
)
def test_plates_whose_elements_have_no_weights(model, guide, told, vectorize):
    with pytest.raises(ValueError, match=told):
        evaluate(model, guide, Y, num_samples=25, plate="data", vectorize=vectorize)


def test_names_of_plates():
    with pytest.raises(ValueError, match="all sites in plate 'date'.* site 'x' of the model"):
        evaluate(model, guide, Y, plate="date", vectorize=True)

    def other_size(y):
        with pyro.plate("data", 1):
            pyro.sample("x", dist.Normal(torch.zeros(1), 1.0))

    with pytest.raises(ValueError, match="plate 'data' without a subsample, but got 1 of 25"):
        evaluate(model, other_size, Y, num_samples=25, plate="data")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"num_samples": 24}, "Expected num_samples to be an integer >= 25, but got 24"),
        (
            {"chunk_size": 0, "vectorize": True},
            "Expected chunk_size to be an integer >= 1, but got 0",
        ),
        ({"num_samples": 100.0}, "num_samples to be an integer >= 25, but got 100.0"),
        ({"num_samples": "100"}, "num_samples to be an integer >= 25, but got '100'"),
        ({"chunk_size": 2.5, "vectorize": True}, "chunk_size to be an integer >= 1, but got 2.5"),
        ({"chunk_size": True, "vectorize": True}, "chunk_size to be an integer >= 1"),
        (
            {"chunk_size": 10, "vectorize": False},
            "Expected no chunk_size with vectorize = False, but got 10",
        ),
    ],
)
def test_bad_arguments(arguments, told):
    with pytest.raises(ValueError, match=told):
        evaluate(model, guide, Y, **arguments)


@each_way
def test_guides_that_do_not_fit(vectorize):
    def other(y):
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="does not sample x"):
        evaluate(model, other, Y, vectorize=vectorize)
    with pytest.raises(ValueError, match="all its draws of x are the same"):
        evaluate(model, AutoDelta(model), Y, num_samples=25, vectorize=vectorize)


@each_way
def test_models_without_latent_sites(vectorize):
    def conditioned(y):
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    for of in (evaluate, psis):
        with pytest.raises(ValueError, match="Expected a model with latent sites"):
            of(conditioned, lambda y: None, Y, vectorize=vectorize)


def test_bad_weights():
    with pytest.raises(ValueError, match="Expected num_samples to be an integer >= 25, but got 3"):
        Evaluation.from_log_weights(torch.zeros(3))
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite or -inf, but got NaN or inf"):
            Evaluation.from_log_weights(torch.full((30,), bad))
    one_datum = torch.randn(30, 2)
    one_datum[:, 1] = -math.inf
    with pytest.raises(ValueError, match=r"all 30 weights are zero of element \[1\]"):
        Evaluation.from_log_weights(one_datum)
    with pytest.raises(ValueError, match="all 30 weights are zero"):
        Evaluation.from_log_weights(one_datum[:, 1])
    with pytest.raises(ValueError, match="floating point dtype, but got torch.int64"):
        Evaluation.from_log_weights(torch.arange(30))
    with pytest.raises(ValueError, match=r"at least one element, but got shape \(30, 0\)"):
        Evaluation.from_log_weights(torch.zeros(30, 0))


def columns(y):
    with pyro.plate("data", len(y), dim=-2):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y.unsqueeze(-1))


def one_for_all(y):
    pyro.sample("x", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize("of", [evaluate, psis])
@pytest.mark.parametrize(
    ("model", "guide", "told"),
    [
        (columns, guide, r"x of shape \(25, 1\), but got \(25,\)"),
        (model, one_for_all, r"x of shape \(25,\), but got \(\)"),
    ],
)
def test_samples_that_broadcast_with_the_model(of, model, guide, told):
    """Densities of a row with a column would count each sample many times."""
    with pytest.raises(ValueError, match="Expected guide to sample " + told):
        of(model, guide, Y, num_samples=25)
