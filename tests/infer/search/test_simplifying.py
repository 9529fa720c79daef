"""Weights in closed form, and components that are not needed."""

import torch

from pyro_mixtures.infer.search.evaluations import Evaluations
from pyro_mixtures.infer.search.natural_normals import FullNormals
from pyro_mixtures.infer.search.parts import Parts
from pyro_mixtures.infer.search.sample_store import SampleStore
from pyro_mixtures.infer.search.simplifying import (
    refitted,
    without_dead,
    without_doubles,
    without_needless,
)

TRUTH = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)
LOCS = torch.tensor([[-6.0, 0.0], [0.0, 5.0], [7.0, 0.0]], dtype=torch.float64)


def parts(locs, weights):
    normals = FullNormals.of_stddevs(locs, torch.ones_like(locs))
    return Parts.new(normals, torch.as_tensor(weights, dtype=torch.float64).log())


EXACT = parts(LOCS, TRUTH)


def seen(given):
    store = SampleStore(3, 200, [], [])
    store.draw(Evaluations(EXACT.log_prob), given, torch.Generator().manual_seed(0))
    return store.seen(given)


def test_refitted_weights_are_the_true_ones():
    given = parts(LOCS, [0.8, 0.1, 0.1])
    torch.testing.assert_close(refitted(given, seen(given)).log_weights.exp(), TRUTH)


def test_refitted_weights_of_components_out_of_place_agree_in_their_gains():
    given = parts(LOCS + 0.5, [1.0, 1.0, 1.0])
    sample = seen(given)
    found = refitted(given, sample)
    gains = sample.weights.mT @ (sample.values - sample.log_q(found.log_weights))
    assert float(gains.amax() - gains.amin()) < 1e-6


def test_doubles_go_to_the_heavier_one_with_their_weight():
    locs = torch.cat([LOCS, LOCS[1:2] + 0.1, LOCS[1:2] + 0.9])
    found = without_doubles(parts(locs, [0.1, 0.3, 0.2, 0.1, 0.3]))
    assert torch.equal(found.normals.locs, locs[[0, 1, 2, 4]])
    expected = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)
    torch.testing.assert_close(found.log_weights.exp(), expected)


def test_only_old_components_die_and_never_all():
    given = parts(LOCS, [1e-5, 0.5, 0.5])
    assert len(without_dead(given, min_weight=1e-3, min_age=1)) == 3
    assert len(without_dead(given, min_weight=1e-3, min_age=0)) == 2
    assert len(without_dead(given, min_weight=2.0, min_age=0)) == 3


def test_what_costs_nothing_is_left_out_and_nothing_else():
    """A light component beside a heavy one, and one far out in the tails."""
    far = torch.tensor([[40.0, 0.0]], dtype=torch.float64)
    locs = torch.cat([LOCS, LOCS[2:3], far])
    weights = [0.1, 0.2, 0.695, 0.005, 1e-6]
    given = parts(locs, weights)
    found = without_needless(given, seen(given))
    assert len(found) == 3
    places, order = found.normals.locs[:, 0].sort()
    torch.testing.assert_close(places, LOCS[:, 0])
    torch.testing.assert_close(found.log_weights.exp()[order], TRUTH, atol=0.01, rtol=0)
