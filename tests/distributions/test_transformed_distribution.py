"""Flows on mixtures: Pyro's class in all but the score term, which is kept."""

import pyro.distributions
import pytest
import torch
from pyro.distributions.transforms import LowerCholeskyAffine, Planar
from torch.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    ExpTransform,
    StickBreakingTransform,
    identity_transform,
)

from pyro_mixtures.distributions import (
    AVFMultivariateNormal,
    MixtureOfDiagNormals,
    TransformedDistribution,
)
from tests.pairwise import in_pairs

FACTOR = torch.tensor([[1.0, 0.0], [0.5, 2.0]], dtype=torch.float64)
TRANSFORMS = {
    "none": [],
    "elementwise": [AffineTransform(0.1, 0.5), ExpTransform()],
    "one": AffineTransform(torch.tensor([0.3, 0.4]).double(), 2.0),
    "vectors": [LowerCholeskyAffine(torch.zeros(2).double(), FACTOR), ExpTransform()],
    "to the simplex": [StickBreakingTransform()],
    "identity": [identity_transform, AffineTransform(0.0, 2.0), ComposeTransform([])],
    "cached": [ExpTransform(cache_size=1)],
    "batch into event": [AffineTransform(0.0, 2.0, event_dim=2)],
}
each = pytest.mark.parametrize("name", TRANSFORMS)


def mixture(batch_shape=(), **options):
    torch.manual_seed(0)
    logits = torch.randn(*batch_shape, 3, dtype=torch.float64).requires_grad_()
    locs = 6 * torch.randn(*batch_shape, 3, 2, dtype=torch.float64)
    return MixtureOfDiagNormals(locs, torch.full_like(locs, 0.3), logits, **options), logits


@in_pairs
@each
@pytest.mark.parametrize("batch_shape", [(4,), (3, 4)])
@pytest.mark.parametrize("sample_shape", [(), (5,)])
def test_all_that_pyros_class_does(name, batch_shape, sample_shape):
    base, _ = mixture(batch_shape)
    q = TransformedDistribution(base, TRANSFORMS[name])
    reference = pyro.distributions.TransformedDistribution(base, TRANSFORMS[name])
    assert (q.batch_shape, q.event_shape) == (reference.batch_shape, reference.event_shape)
    torch.manual_seed(1)
    value = q.rsample(sample_shape)
    torch.manual_seed(1)
    assert torch.equal(value, reference.rsample(sample_shape))
    expected = reference.log_prob(value)
    torch.testing.assert_close(q.log_prob(value), expected)
    parts = q.score_parts(value)
    torch.testing.assert_close(parts.log_prob, expected, rtol=1e-6, atol=1e-6)
    assert parts.score_function.shape == expected.shape
    # of values from elsewhere as well, without a score term
    parts = q.score_parts(value.detach())
    assert torch.equal(parts.log_prob, q.log_prob(value.detach()))
    assert parts.score_function == 0


@each
@pytest.mark.parametrize(
    "wrap",
    [
        lambda q: q.to_event(1),
        lambda q: q.mask(torch.tensor(True)),
        lambda q: q.mask(True),
        lambda q: q.expand((3, *q.batch_shape)),
        lambda q: q.expand((3, *q.batch_shape)).to_event(1).mask(False),
        lambda q: TransformedDistribution(q, [AffineTransform(0.0, 3.0)]),
    ],
    ids=["to_event", "mask", "bool", "expand", "all", "again"],
)
def test_wrappers_keep_the_score_term(name, wrap):
    base, logits = mixture((3, 4))
    q = wrap(TransformedDistribution(base, TRANSFORMS[name]))
    value = q.rsample((50,))
    parts = q.score_parts(value)
    assert (
        parts.score_function.shape
        == parts.log_prob.shape
        == q.shape((50,))[: 1 + len(q.batch_shape)]
    )
    (score,) = torch.autograd.grad(parts.score_function.sum(), logits)
    assert score.abs().max() > 0.1


def test_densities_meet_the_cost_in_the_score():
    """The gradient of a mean, by quadrature of the base."""
    base, logits = mixture()
    q = TransformedDistribution(base, [AffineTransform(0.0, 0.2)])
    y = q.rsample((200_000,))
    cost = y.sum(-1).sin()
    score = q.score_parts(y).score_function
    (found,) = torch.autograd.grad((cost + (cost - cost.mean()).detach() * score).mean(), logits)
    locs, width = 0.2 * base.locs.sum(-1), 0.2 * 0.3 * 2**0.5  # sums of coordinates are Normal
    exact = locs.sin() * torch.tensor(-(width**2) / 2).exp()
    (exact,) = torch.autograd.grad((logits.softmax(-1) * exact).sum(), logits)
    assert (found - exact).abs().max() < 0.01  # some 5 standard errors


def test_trainable_flows():
    """Their parameters get gradients, by the score term's density, too."""
    base, logits = mixture()
    transform = Planar(2).double()
    q = TransformedDistribution(base, [transform])
    value = q.rsample((7,))
    parts = q.score_parts(value)  # without the inverse, which this flow does not have
    loss = (parts.log_prob + value.sum(-1).detach() * parts.score_function).sum()
    loss.backward()
    assert logits.grad.abs().max() > 0
    assert all(parameter.grad.abs().max() > 0 for parameter in transform.parameters())


def test_bases_without_a_score_term():
    loc = torch.zeros(2, requires_grad=True)
    base = AVFMultivariateNormal(loc, torch.eye(2), 0.1 * torch.ones(2, 1, 2))
    for each in (base, pyro.distributions.Normal(loc, 1.0).to_event(1)):
        q = TransformedDistribution(each, [ExpTransform()])
        value = q.rsample((5,))
        parts = q.score_parts(value)
        assert parts.score_function == 0
        torch.testing.assert_close(parts.log_prob, q.log_prob(value))
