"""The estimators that are distributions keep to the mixture's law, shapes and state."""

import copy
import pickle

import pytest
import torch
from torch.distributions import Categorical, Normal

from pyro_mixtures.distributions import MixtureDistribution, MixtureSameFamily
from pyro_mixtures.estimators import EstimatedMixture, clustered, hybrid, pathwise, score
from pyro_mixtures.samples.remembering import recall
from tests.estimators.registry import each, estimated, score_of
from tests.registry import FAMILIES, beside_its_score, gradients

FAMILY = FAMILIES["diag_normals"]


@each(unbiased=True)
def test_law_and_shapes(name, family):
    mixture = family.build(family.parameters((2, 1)))
    for batch_shape in [(2, 1), (2, 4), (3, 2, 1)]:
        law = mixture.expand(batch_shape)
        for q in (estimated(name, mixture).expand(batch_shape), estimated(name, law)):
            assert q.batch_shape == batch_shape
            assert q.event_shape == (2,)
            assert q.support is mixture.support
            assert q.device == mixture.device
            z = q.rsample((5, 3))
            assert z.shape == (5, 3, *batch_shape, 2)
            assert z.requires_grad == q.has_rsample == (name != "score")
            torch.testing.assert_close(q.log_prob(z), law.log_prob(z))
            torch.testing.assert_close(q.score_parts(z).log_prob, law.log_prob(z))
            torch.testing.assert_close(q.mean, law.mean)
            torch.testing.assert_close(q.stddev, law.stddev)
            assert not q.sample().requires_grad
            event = q.to_event(1)
            torch.testing.assert_close(event.log_prob(z), law.log_prob(z).sum(-1))
            torch.testing.assert_close(
                event.score_parts(z).score_function,
                q.score_parts(z).score_function
                if isinstance(q.score_parts(z).score_function, int)
                else score_of(q, z).sum(-1),
            )


@each()
def test_frequencies(name, family):
    """Hard samples, too, are those of the mixture; soft ones need not be."""
    mixture = family.build(family.parameters(K=3, D=2, spread=3.0))
    z = estimated(name, mixture).sample((20_000,))
    assert z.isfinite().all()
    if name != "gumbel_soft":  # a false alarm for 2e-6 of the seeds, each
        deviation = (z - mixture.mean).mean(0) / mixture.stddev * 20_000**0.5
        assert (deviation.abs() < 5).all()
        square = (z - mixture.mean).square()
        deviation = (square.mean(0) - mixture.variance) / square.std(0) * 20_000**0.5
        assert (deviation.abs() < 5).all()


@each()
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda q: pickle.loads(pickle.dumps(q))])
def test_copies(name, family, duplicate):
    parameters = {key: value.detach() for key, value in family.parameters((2,)).items()}
    q = estimated(name, family.build(parameters)).expand((3, 2))
    q.rsample()
    twin = duplicate(q)
    assert type(twin) is type(q)
    torch.manual_seed(0)
    z = q.rsample((4,))
    torch.manual_seed(0)
    assert torch.equal(twin.rsample((4,)), z)


@pytest.mark.parametrize("estimator", [pathwise, clustered, hybrid])
def test_the_given_mixture_stays_as_it_is(estimator):
    """Its options, its last sample and whether it is told to go without reparameterization."""
    parameters = FAMILY.parameters((2,), K=4, spread=3.0)
    for given in (FAMILY.build(parameters), FAMILY.build(parameters).expand((3, 2))):
        given.has_rsample_(False)
        z = given.rsample()
        before = dict(given.__dict__)
        q = estimator(given)
        assert given.__dict__ == before
        assert isinstance(q, MixtureDistribution)
        assert q.has_rsample
        assert recall(q, z) is None
        assert q.core.weight_gradient == q.weight_gradient
        assert q.batch_shape == given.batch_shape
        q.rsample()
        assert recall(given, z) is not None


@pytest.mark.parametrize("estimator", [pathwise, clustered, hybrid])
def test_mixtures_that_work_with_another(estimator):
    """``MixtureSameFamily`` of Normals hands its samples over to a class of Normals."""
    logits = torch.zeros(3, requires_grad=True)
    law = MixtureSameFamily(
        Categorical(logits=logits),
        Normal(torch.tensor([0.0, 0.5, 20.0]), 1.0),
        weight_gradient="hybrid",
    )
    q = estimator(law)
    z = beside_its_score(q, q.rsample((50,)))
    (grad,) = torch.autograd.grad(z.sum(), logits, materialize_grads=True)
    assert bool(grad.abs().max() > 1e-6) == (estimator is not hybrid)
    if estimator is clustered:  # within the first two only
        assert grad[2].abs() < 1e-6 < grad[1]


@pytest.mark.parametrize("mask", [True, False, torch.tensor([True, False])])
def test_masks_keep_the_score_term(mask):
    parameters = FAMILY.parameters((2,))
    q = score(FAMILY.build(parameters))
    z = q.sample((5,))
    masked = q.mask(mask).score_parts(z)
    assert torch.equal(masked.log_prob, q.log_prob(z) * torch.as_tensor(mask))
    weights = torch.randn_like(masked.log_prob)
    torch.testing.assert_close(
        gradients(masked.score_function, parameters, weights),
        gradients(q.log_prob(z), parameters, weights),
    )


def test_base_class():
    mixture = FAMILY.build(FAMILY.parameters())
    q = EstimatedMixture(mixture)
    assert q.mixture is mixture
    assert repr(q) == f"EstimatedMixture({mixture})"
    with pytest.raises(NotImplementedError):
        q.rsample()
