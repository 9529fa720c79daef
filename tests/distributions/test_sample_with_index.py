"""The component that a sample was drawn from, for every mixture of the registries."""

import pytest
import torch

from pyro_mixtures.distributions import MixtureDistribution
from tests.every import KINDS
from tests.families.registry import bounded_cost

MIXTURES = {
    name: kind
    for name, kind in KINDS.items()
    if isinstance(kind.build(kind.parameters(())), MixtureDistribution)
}
COUNT = 4000
# Normal tails give 6e-8 for each entry beyond 5.5 standard errors. Some 40 mixtures have 18
# entries each: a false alarm for 4 seeds in 100,000. The seed is fixed.
THRESHOLD = 5.5


@pytest.mark.parametrize("kind", MIXTURES.values(), ids=MIXTURES)
def test_index_follows_the_weights_and_the_responsibilities(kind):
    r"""Given a sample it is j with probability r_j(z), so that E[(1{index = j} - r_j) f] = 0."""
    mixture = kind.build(kind.parameters((2,)))
    z, index = mixture.sample_with_index((COUNT,))
    assert index.dtype == torch.int64
    chosen = torch.nn.functional.one_hot(index, mixture.num_components).double()  # (S, *B, K)
    cost = bounded_cost(z, len(mixture.event_shape)).detach().unsqueeze(-1)
    surprise = chosen - mixture.responsibilities(z).detach()
    for values in (chosen - mixture.log_weights.exp().detach(), surprise, surprise * cost):
        error = values.std(0) / COUNT**0.5 + 1e-9
        assert (values.mean(0).abs() < THRESHOLD * error).all()


@pytest.mark.parametrize("kind", MIXTURES.values(), ids=MIXTURES)
def test_samples_are_those_of_the_seed(kind):
    """Also of expanded mixtures, and of no samples."""
    mixture = kind.build(kind.parameters((2,))).expand((3, 2))
    torch.manual_seed(1)
    expected = mixture.sample((5,))
    torch.manual_seed(1)
    z, index = mixture.sample_with_index((5,))
    assert torch.equal(z, expected)
    assert not z.requires_grad
    assert index.shape == (5, 3, 2)
    assert mixture.sample_with_index()[1].shape == (3, 2)
    assert mixture.sample_with_index((0,))[1].shape == (0, 3, 2)


def test_components_far_apart():
    """In each row of the batch its own."""
    locs = torch.tensor([[[-50.0], [0.0], [50.0]], [[0.0], [50.0], [-50.0]]])
    parameters = {"locs": locs, "coord_scale": torch.ones(2, 3, 1)}
    mixture = KINDS["diag_normals"].build({**parameters, "component_logits": torch.zeros(2, 3)})
    z, index = mixture.expand((4, 2)).sample_with_index((100,))
    assert torch.equal(index, (z - locs.squeeze(-1)).abs().argmin(-1))
