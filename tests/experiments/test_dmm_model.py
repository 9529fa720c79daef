"""The deep Markov model and its guide: ragged lengths, densities, gradients."""

import pyro
import pytest
import torch

from experiments.dmm import chorales, fits

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


@pytest.mark.parametrize("cell", ["tanh", "gru"])
@pytest.mark.parametrize(("count", "shared"), [(1, False), (2, False), (3, True)])
def test_a_padded_batch_is_the_sum_of_its_sequences(count, shared, cell, rolls):
    model, guide, _ = started(num_components=count, shared=shared, cell=cell)
    model.eval(), guide.eval()
    z = torch.randn(3, 5, fits.TINY.latent)
    together = log_ratio(model, guide, z, rolls, LENGTHS)
    for place, length in enumerate(LENGTHS.tolist()):
        one = slice(place, place + 1)
        alone = log_ratio(model, guide, z[one, :length], rolls[one, :length], LENGTHS[one])
        torch.testing.assert_close(together[one], alone)
    noise = torch.rand_like(rolls) * ~chorales.there(rolls, LENGTHS).unsqueeze(-1)
    torch.testing.assert_close(log_ratio(model, guide, z, rolls + noise, LENGTHS), together)
