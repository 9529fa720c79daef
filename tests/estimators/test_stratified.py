"""Systematic draws: frequencies of the components, and what they save."""

import pytest
import torch
from torch.distributions import Categorical, Gamma, Normal

from pyro_mixtures.diagnostics import gradient_variance
from pyro_mixtures.distributions import MixtureOfDiagNormals, MixtureSameFamily
from pyro_mixtures.estimators import stratified
from pyro_mixtures.estimators.stratified import systematic_index
from tests.registry import FAMILIES


@pytest.mark.parametrize("count", [1, 7, 100])
def test_counts(count):
    """Each component as often as its weight tells, up to less than one; never one without."""
    weights = torch.tensor([[0.0, 0.25, 0.0, 0.45, 0.3, 0.0], [0.1, 0.2, 0.3, 0.2, 0.1, 0.1]])
    index = systematic_index(weights.double(), count)
    assert index.shape == (2, count)
    counts = torch.stack([row.bincount(minlength=6) for row in index])
    assert (counts - count * weights).abs().max() < 1 + 1e-6
    assert counts[0, [0, 2, 5]].sum() == 0


def test_no_samples():
    assert systematic_index(torch.ones(3, 2).double(), 0).shape == (3, 0)
    q = stratified(MixtureOfDiagNormals(torch.zeros(2, 1), torch.ones(2, 1), torch.zeros(2)))
    assert q.rsample((0, 4)).shape == (0, 4, 1)


def test_each_sample_alone_follows_the_mixture():
    """The samples at each of the S places, for they are in random order."""
    weights = torch.tensor([0.1, 0.6, 0.3]).double()
    index = systematic_index(weights.expand(20_000, 3), 4)
    shares = torch.stack([column.bincount(minlength=3) for column in index.T]) / 20_000
    assert (shares - weights).abs().max() < 0.018  # 5 standard errors


def test_elements_of_a_plate_are_independent():
    torch.manual_seed(0)
    locs = torch.tensor([[[-9.0], [9.0]], [[-9.0], [9.0]]])
    q = stratified(MixtureOfDiagNormals(locs, torch.ones(2, 1), torch.zeros(2)))
    for plate in (q, q.expand((3, 2)), q.expand((2, 3, 2))):
        z = plate.rsample((10,)).squeeze(-1).sign()
        assert (z.sum(0) == 0).all()  # each is spread
        columns = torch.cat([plate.rsample().sign().reshape(1, -1) for _ in range(2000)])
        products = columns.T @ columns / 2000 - torch.eye(columns.shape[-1])
        assert products.abs().max() < 0.11  # 5 standard errors


@pytest.mark.parametrize("components", [Gamma, Normal])
def test_components_of_other_families(components):
    law = components(torch.tensor([[1.0, 900.0], [1.0, 900.0]]), torch.ones(2))
    q = stratified(MixtureSameFamily(Categorical(logits=torch.zeros(2)), law))
    assert ((q.rsample((40,)) > 400).sum(0) == 20).all()
    assert q.rsample((3, 2)).shape == (3, 2, 2)


def variances(samples, spread):
    """Of the sums over each parameter, for both estimators."""
    given = FAMILIES["diag_normals"].parameters(K=4, D=3, spread=spread)
    parameters = {name: value.detach() for name, value in given.items()}

    def cost(z):
        return z.square().sum(-1) + z.sum(-1).cos()

    def variance(estimator):
        found = gradient_variance(
            MixtureOfDiagNormals,
            cost,
            parameters,
            estimator=estimator,
            num_samples=samples,
            num_draws=4000,
        )
        return {name: float(entry.variance.sum()) for name, entry in found.items()}

    return variance("pathwise"), variance("stratified")


def test_variance():
    """Not above that of independent draws (5 % are some five standard errors), and well below it
    where the components' costs differ."""
    plain, spread = variances(16, spread=0.3)
    assert all(spread[name] < 1.05 * plain[name] for name in plain)
    plain, spread = variances(16, spread=2.0)
    assert spread["locs"] < 0.7 * plain["locs"]
