"""Ways to evaluate a batch, at points and with subsamples of one's own."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_mixtures.infer.search.model_batches import ModelBatches
from pyro_mixtures.infer.search.model_runs import ModelRuns

DATA = torch.arange(6.0)


def subsampled():
    level = pyro.sample("level", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(DATA), subsample_size=2) as index:
        pyro.sample("y", dist.Normal(level, 1.0), obs=DATA[index])


def test_all_points_and_runs_have_one_subsample_in_the_fastest_way():
    pyro.set_rng_seed(0)
    runs = ModelRuns(subsampled, (), {}, subsamples=True)
    z = torch.linspace(-3, 3, 5).unsqueeze(-1)
    batches = ModelBatches(runs, z)
    assert batches.way == "plate"
    likelihoods = dist.Normal(z, 1.0).log_prob(DATA)  # (S, N)
    rest = batches(z) - dist.Normal(0.0, 3.0).log_prob(z[:, 0])
    pairs = torch.combinations(torch.arange(len(DATA)))
    differences = [(rest - 3 * likelihoods[:, pair].sum(-1)).abs().max() for pair in pairs]
    assert sum(float(difference) < 1e-4 for difference in differences) == 1
    assert torch.equal(batches(z), batches(z))


def test_fits_are_refused_subsamples():
    with pytest.raises(NotImplementedError, match="plate 'data' with 2 of 6"):
        ModelRuns(subsampled, (), {})


@pytest.mark.parametrize("mixes", [False, True])
def test_points_without_a_density_are_compared_like_others(mixes):
    """They are no reason to run the model once for each point, nor do they hide one."""

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        y = x.mean() if mixes else x
        pyro.factor("f", torch.where(x > 0, y, -torch.inf))
        pyro.factor("g", torch.where(x < 9, y, torch.nan))

    runs = ModelRuns(model, (), {})
    points = torch.tensor([-1.0, 0.5, 1.0, 10.0]).unsqueeze(-1)
    batches = ModelBatches(runs, points, gradients=False)
    assert batches.way == ("vmap" if mixes else "plate")
    found = batches(points)
    assert found[0] == -math.inf
    assert found[3].isnan()


def test_a_hidden_coin_is_found():
    """With less than one false answer in a thousand times twenty."""

    def coin():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(x + 9 * k, 1.0), obs=torch.tensor(1.0))

    runs = ModelRuns(poutine.block(coin, hide=["k"]), (), {})
    for seed in range(20):
        pyro.set_rng_seed(seed)
        with pytest.raises(ValueError, match="the same in each run"):
            ModelBatches(runs, torch.randn(4, 1), gradients=False)
