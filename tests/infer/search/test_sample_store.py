"""Samples of several steps as draws of every component."""

import torch

from pyro_mixtures.infer.search.evaluations import Evaluations
from pyro_mixtures.infer.search.natural_normals import FullNormals
from pyro_mixtures.infer.search.parts import Parts
from pyro_mixtures.infer.search.sample_store import NO_MASS, SampleStore


def parts(locs, stddev=1.0):
    locs = torch.tensor(locs, dtype=torch.float64)
    normals = FullNormals.of_stddevs(locs, torch.full_like(locs, stddev))
    return Parts.new(normals, torch.zeros(len(locs), dtype=torch.float64))


def filled(size=3, wanted=400, steps=5):
    """After steps in which the components have moved."""
    generator = torch.Generator().manual_seed(0)
    evaluations = Evaluations(lambda z: -z.square().sum(-1) / 2)
    store = SampleStore(size, wanted, [], [])
    for step in range(steps):
        moved = parts([[0.2 * step, 0.0], [1.0, 0.1 * step], [8.0, 8.0]])
        seen = store.draw(evaluations, moved, generator)
    return store, moved, seen, evaluations


def test_weighted_samples_have_the_moments_of_each_component():
    _, moved, seen, _ = filled(wanted=2000)
    torch.testing.assert_close(seen.weights.sum(0), torch.ones(3, dtype=torch.float64))
    means = seen.weights.mT @ seen.z
    torch.testing.assert_close(means, moved.normals.locs, atol=0.1, rtol=0)
    squares = torch.einsum("sk,skd->kd", seen.weights, seen.whitened.square())
    torch.testing.assert_close(squares, torch.ones_like(squares), atol=0.15, rtol=0)


def test_proposals_are_the_densities_of_all_batches_in_store():
    store, _, _, _ = filled()
    assert len(store.batches) == 3
    z = torch.cat([batch.z for batch in store.batches])
    expected = torch.stack([batch.proposal(z) for batch in store.batches], -1)
    torch.testing.assert_close(torch.cat(store.proposals), expected)


def test_samples_of_others_and_of_earlier_steps_spare_draws():
    store, _, _, evaluations = filled()
    counts = torch.stack([batch.counts for batch in store.batches])
    assert int(counts[:, 2].amin()) < 50  # the third component has stayed where it was
    assert bool((counts % 2 == 0).all())
    assert bool((counts >= 2).all())
    assert evaluations.count < 0.6 * 5 * 3 * 400


def test_a_store_of_one_batch_draws_all_anew():
    store, generator = SampleStore(1, 400, [], []), torch.Generator().manual_seed(0)
    for _ in range(3):
        store.draw(Evaluations(lambda z: -z.square().sum(-1)), parts([[0.0], [9.0]]), generator)
        (batch,) = store.batches
        assert batch.counts.tolist() == [400, 400]
        assert [tuple(each.shape) for each in store.proposals] == [(800, 1)]


def test_a_store_seen_by_the_same_components_is_what_was_drawn():
    store, moved, seen, _ = filled()
    again = store.seen(moved)
    torch.testing.assert_close(again.weights, seen.weights)
    weights = moved.log_weights
    torch.testing.assert_close(again.log_q(weights), moved.log_prob(seen.z))


def test_samples_without_mass_are_low_and_all_that_is_seen_is_finite():
    generator = torch.Generator().manual_seed(0)

    def log_density(z):
        return torch.where(z[:, 0] > 0, -z.square().sum(-1), -torch.inf)

    given = parts([[0.0], [-9.0]])
    seen = SampleStore(3, 100, [], []).draw(Evaluations(log_density), given, generator)
    gains = seen.gains(seen.log_q(given.log_weights))
    outside = seen.z[:, 0] <= 0
    assert torch.equal(seen.with_mass, ~outside)
    assert bool((gains[outside] < gains[~outside].amin() - 1).all())
    assert bool((seen.jumps[outside] == -NO_MASS).all())
    assert bool((seen.jumps[~outside] == 0).all())
    assert bool(torch.cat([gains, seen.weights.flatten(), seen.values]).isfinite().all())
