"""The score term of clustered and score mixtures, as Pyro hands it on."""

import pytest
import torch

from pyro_mixtures.distributions import MixtureOfDiagNormals

LOCS = torch.tensor([[0.0, 0.0], [0.5, 0.3], [9.0, -9.0]])


def mixture(weight_gradient, locs=LOCS, batch=()):
    logits = torch.tensor([0.2, -0.1, 0.4]).expand(*batch, 3).clone().requires_grad_()
    locs = locs.expand(*batch, 3, 2)
    q = MixtureOfDiagNormals(locs, torch.ones(3, 2), logits, weight_gradient=weight_gradient)
    return q, logits


def test_pathwise_has_no_score_term():
    q, _ = mixture("pathwise")
    assert q.score_parts(q.rsample()).score_function == 0


def test_one_group_has_no_score_term():
    q, _ = mixture("clustered", locs=0.1 * LOCS[:1] + torch.zeros(3, 2))
    assert q.score_parts(q.rsample()).score_function == 0


@pytest.mark.parametrize("weight_gradient", ["clustered", "hybrid"])
def test_score_is_the_gradient_of_the_groups_log_weights(weight_gradient):
    q, logits = mixture(weight_gradient)
    z = q.rsample((7,))
    (score,) = torch.autograd.grad(q.score_parts(z).score_function.sum(), logits)
    groups = [[0, 1], [2]] if weight_gradient == "clustered" else [[0], [1], [2]]
    responsibilities = q.responsibilities(z).detach()
    expected = sum(
        (responsibilities[:, group].sum(-1) * q.log_weights[group].logsumexp(0)).sum()
        for group in groups
    )
    assert torch.allclose(score, torch.autograd.grad(expected, logits)[0], atol=1e-5)


@pytest.mark.parametrize("weight_gradient", ["pathwise", "clustered", "hybrid"])
def test_to_event_sums_all_parts(weight_gradient):
    q, logits = mixture(weight_gradient, batch=(4, 2))
    z = q.rsample((3,))
    whole = q.to_event(1).score_parts(z)
    parts = q.score_parts(z)
    assert torch.allclose(whole.log_prob, parts.log_prob.sum(-1))
    if weight_gradient == "pathwise":
        assert whole.score_function == 0
        return
    assert whole.score_function.shape == (3, 4)
    cost = torch.arange(12.0).reshape(3, 4)
    gradients = [
        torch.autograd.grad((cost.reshape(3, 4, *tail) * score).sum(), logits, retain_graph=True)[
            0
        ]
        for score, tail in ((whole.score_function, ()), (parts.score_function, (1,)))
    ]
    assert torch.allclose(gradients[0], gradients[1], atol=1e-5)


@pytest.mark.parametrize("weight_gradient", ["clustered", "hybrid"])
@pytest.mark.parametrize("event_dims", [0, 1])
@pytest.mark.parametrize("mask", [True, False, torch.tensor([True, False])])
def test_masks_keep_the_score_term(weight_gradient, event_dims, mask):
    """Pyro masks the density, not the score: other sites' costs may depend on the sample."""
    q, logits = mixture(weight_gradient, batch=(2, 2))
    q = q.to_event(event_dims)
    z = q.rsample((50,))
    plain, masked = q.score_parts(z), q.mask(mask).score_parts(z)
    cost = torch.randn(plain.score_function.shape)
    gradients = [
        torch.autograd.grad((cost * parts.score_function).sum(), logits, retain_graph=True)[0]
        for parts in (plain, masked)
    ]
    assert gradients[0].abs().max() > 0.1
    assert torch.equal(*gradients)
    assert torch.equal(masked.log_prob, plain.log_prob * torch.as_tensor(mask))


def test_nested_to_event_keeps_the_score_term():
    q, _ = mixture("hybrid", batch=(4, 2))
    z = q.rsample()
    twice = q.to_event(1).to_event(1).score_parts(z).score_function
    assert torch.allclose(twice, q.score_parts(z).score_function.sum())


def test_without_rsample_the_whole_density_is_the_score():
    q, _ = mixture("pathwise")
    q.has_rsample_(False)
    z = q.sample((5,))
    parts = q.score_parts(z)
    assert torch.equal(parts.score_function, q.log_prob(z))
    assert parts.entropy_term == 0


def test_a_mixture_survives_inference_mode():
    q, logits = mixture("clustered")
    with torch.inference_mode():
        q.rsample()
    fresh, expected = mixture("clustered")
    for each in (q, fresh):
        torch.manual_seed(1)
        each.rsample().sum().backward()
    assert torch.equal(logits.grad, expected.grad)
