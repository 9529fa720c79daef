"""Blending of transport and score function: unbiased for every share, and the share of least
variance."""

from contextlib import contextmanager
from dataclasses import fields, replace
from unittest import mock

import pytest
import torch

from pyro_mixtures.distributions import MixtureOfDiagNormals
from pyro_mixtures.samples.blending import Blending
from pyro_mixtures.samples.remembering import recall
from tests.distributions.test_unbiased_grid import TOLERANCE, some, worst_error
from tests.families.components import Components
from tests.families.registry import COMPONENTS
from tests.families.test_unbiased_grid import worst_errors
from tests.registry import beside_its_score, each_family, same_group

# of two overlapping pairs
LOCS = torch.tensor([[-4.0, 0.0], [-2.5, 0.5], [4.0, 0.0], [2.5, 1.0]], dtype=torch.float64)
PAIRS = torch.tensor([0, 0, 2, 2])


def knowing(covariance, variance, num_draws=10**12):
    """A state of blending as if it had been learned."""
    blending = Blending()
    moments = torch.tensor([covariance, variance], dtype=torch.float64)
    blending.load_state_dict({"moments": moments, "num_draws": num_draws})
    return blending


def mixture(locs=LOCS):
    logits = torch.tensor([0.3, -0.2, 0.1, 0.5], dtype=torch.float64).requires_grad_()
    q = MixtureOfDiagNormals(locs, torch.ones_like(locs), logits, weight_gradient="clustered")
    return q, logits


def parts(q, logits, count):
    """Gradients of the logits within the groups, by transport and by score, ``(count, K)``."""
    z = q.sample((count,))
    f = (2 * z).cos().sum(-1)
    grad = -2 * (2 * z).sin()
    same = same_group(q).double()
    weights, own = logits.softmax(-1).detach(), q.responsibilities(z).detach()
    score = f.unsqueeze(-1) * (own - own @ same * weights / (weights @ same))
    each = MixtureOfDiagNormals(
        LOCS.expand(count, 4, 2),
        torch.ones(count, 4, 2, dtype=torch.float64),
        logits.detach().expand(count, 4).clone().requires_grad_(),
        weight_gradient="clustered",
    )
    moved = beside_its_score(each, each.reparameterize(z))
    (transport,) = torch.autograd.grad(moved, each.component_logits, grad)
    return z, grad, f, transport, score


@each_family
@pytest.mark.parametrize("D", [1, 2])
def test_unbiased_for_shares_that_differ_between_groups(family, D):
    """By integration on a grid, without sampling error."""
    blending = knowing([0.9, 0.3, 0.1, 0.4], [1.0, 1.0, 1.0, 1.0])

    def blended(**options):
        return family.distribution(**options, weight_gradient="clustered").blended(blending)

    parameters = family.parameters(K=4, D=D, **family.groups, seed=2)
    groups = blended(**parameters).groups
    assert len(groups.unique()) < 4
    several = len(blending.shares(groups).unique()) > 1
    assert several or "locs" not in parameters  # sizes alone make a chain
    errors = worst_error(
        replace(family, distribution=blended), parameters, some("cosine", "quartic", "product")
    )
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize(
    "name", ["gamma", "laplace", "multivariate_student_t", "mixed_real", "mixed_positive"]
)
def test_unbiased_for_components_of_any_family(name):
    """Of one class or of several; on a half line they make one chain."""
    blending = knowing([0.9, 0.3, 0.1, 0.4], [1.0, 1.0, 1.0, 1.0])

    class Blended(Components):
        def mixture(self, parameters, **options):
            return super().mixture(parameters, **options).blended(blending)

    given = COMPONENTS[name]
    family = Blended(**{field.name: getattr(given, field.name) for field in fields(given)})
    parameters = family.parameters(K=4, D=1, scales=(0.45, 1.5), spread=2.3, seed=2)
    shares = blending.shares(family.mixture(parameters).groups)
    assert len(shares.unique()) == (1 if name in {"gamma", "mixed_positive"} else 2)
    errors = worst_errors(family, parameters, 1)
    assert max(errors.values()) < TOLERANCE, errors


def test_shares_are_those_of_the_groups():
    blending = knowing([0.2, 0.4, 3.0, -1.0], [1.0, 1.0, 1.0, 1.0])
    shares = blending.shares(PAIRS)
    torch.testing.assert_close(shares, torch.tensor([0.3, 0.3, 1.0, 1.0], dtype=torch.float64))
    batch = blending.shares(torch.stack([PAIRS, torch.arange(4)]))
    torch.testing.assert_close(batch[0], shares)
    torch.testing.assert_close(batch[1], torch.tensor([0.2, 0.4, 1.0, 0.0]).double())


def test_few_draws_move_the_shares_little():
    for count, expected in ((0, 1.0), (10, 0.5), (90, 0.1)):
        share = knowing([0.0], [1.0], count).shares(torch.zeros(1, dtype=torch.long))
        assert share.item() == pytest.approx(expected)


def test_without_draws_the_transport_serves_alone():
    assert torch.equal(Blending().shares(PAIRS), torch.ones(4))


def test_finds_the_two_parts_and_the_share_of_least_variance():
    """What the backward passes report are the gradients of each sample by both ways."""
    torch.manual_seed(0)
    q, logits = mixture()
    blending = Blending()
    q = q.blended(blending)
    assert torch.equal(q.groups, PAIRS)
    z, grad, f, transport, score = parts(q, logits, 5000)
    value = sample_of(q, z)
    told = {}
    with watched(recall(q, value).draws, told):
        ((value * grad).sum() + (q.score_parts(value).score_function * f).sum()).backward()
    torch.testing.assert_close(told["transport"], transport, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(told["score"], score)
    blending.learn()

    share = blending.shares(PAIRS)
    for group in (slice(0, 2), slice(2, 4)):
        p, s = transport[:, group], score[:, group]
        found = share[group][0]
        # of 5000 draws' blends the learned one has the least second moment
        sizes = [(a * p + (1 - a) * s).square().sum() for a in (found, found - 0.03, found + 0.03)]
        assert 0 < found < 1
        assert sizes[0] < min(sizes[1:])


@contextmanager
def watched(draws, told):
    """Keep what is told of draws, which are told of it all the same."""

    def keeping(name):
        tell = getattr(draws, f"tell_{name}")

        def keep(gradients):
            told[name] = gradients
            tell(gradients)

        return keep

    with (
        mock.patch.object(draws, "tell_transport", keeping("transport")),
        mock.patch.object(draws, "tell_score", keeping("score")),
    ):
        yield


def sample_of(q, z):
    """The points as if they had just been drawn."""
    value = q.reparameterize(z)
    assert torch.equal(value, z)
    return value


def test_draws_without_a_backward_pass_teach_nothing():
    q, _ = mixture()
    blending = Blending()
    q = q.blended(blending)
    q.rsample((3,))
    with torch.no_grad():
        q.rsample((3,))
    assert blending.state_dict() == {"moments": None, "num_draws": 0}


def test_what_is_not_finite_teaches_nothing():
    q, logits = mixture()
    blending = Blending()
    q = q.blended(blending)
    value = q.rsample((3,))
    (value.sum() * torch.inf + q.score_parts(value).score_function.sum()).backward()
    blending.learn()
    assert blending.num_draws == 0


def test_shares_stay_until_learn():
    """They cannot depend on the current draw."""
    torch.manual_seed(0)
    q, _ = mixture()
    blending = knowing([0.5] * 4, [1.0] * 4, 100)
    q = q.blended(blending)
    before = blending.shares(PAIRS)
    value = q.rsample((100,))
    assert torch.equal(blending.shares(PAIRS), before)
    (value.sum() + q.score_parts(value).score_function.sum()).backward()
    assert torch.equal(blending.shares(PAIRS), before)
    blending.learn()
    assert not torch.equal(blending.shares(PAIRS), before)
    assert blending.num_draws == 200


def test_moments_decay():
    """New moments come in with one minus the decay, the first ones, too."""
    q, _ = mixture()
    blending, other = knowing([8.0] * 4, [16.0] * 4, 100), Blending(decay=0.75)
    blending.decay = 0.75
    alone = Blending(decay=0.0)
    for each in (blending, other, alone):
        torch.manual_seed(0)
        q = q.blended(each)
        value = q.rsample((7,))
        (value.sum() + q.score_parts(value).score_function.sum()).backward()
        each.learn()
    old = torch.tensor([[8.0] * 4, [16.0] * 4], dtype=torch.float64)
    torch.testing.assert_close(other._moments, 0.25 * alone._moments)
    torch.testing.assert_close(blending._moments, 0.75 * old + 0.25 * alone._moments)


def test_chains_are_groups_where_the_score_function_can_take_over():
    locs = torch.arange(5.0, dtype=torch.float64).unsqueeze(-1) * 1.5
    q = MixtureOfDiagNormals(locs, torch.ones_like(locs), locs[:, 0], weight_gradient="clustered")
    assert not same_group(q).all()
    q = q.blended(Blending())
    assert same_group(q).all()


def test_a_batch_of_mixtures_shares_the_moments():
    torch.manual_seed(0)
    q, _ = mixture()
    batch = q.expand((6,)).expand((2, 6))  # samples of one mixture
    blending = Blending()
    batch = batch.blended(blending)
    value = batch.rsample((3,))
    assert batch.score_parts(value).score_function.shape == (3, 2, 6)
    (value.sum() + batch.score_parts(value).score_function.sum()).backward()
    blending.learn()
    assert blending.num_draws == 36
    own = MixtureOfDiagNormals(
        LOCS.expand(6, 4, 2), torch.ones(4, 2), torch.zeros(4), weight_gradient="clustered"
    )
    with pytest.raises(ValueError, match="decay"):
        Blending(decay=1.0)
    own.component_logits.requires_grad_()
    own = own.blended(blending)
    value = own.rsample((3,))
    (value.sum() + own.score_parts(value).score_function.sum()).backward()
    blending.learn()
    assert blending.num_draws == 54


def test_each_backward_pass_has_a_pair_of_its_own():
    torch.manual_seed(0)
    q, _ = mixture()
    blending = Blending()
    q = q.blended(blending)
    value = q.rsample((4,))
    loss = value.sum() + q.score_parts(value).score_function.sum()
    loss.backward(retain_graph=True)
    (100 * loss).backward()
    first, second = (total for _, total in blending._found)
    torch.testing.assert_close(second, 10_000 * first)


def test_values_from_elsewhere_teach_nothing():
    q, _ = mixture()
    blending = Blending()
    q = q.blended(blending)
    value = q.rsample((4,))
    other = q.rsample((3,)).detach()
    assert q.score_parts(other).score_function == 0
    value.sum().backward()  # and so does a sample whose score term is not used
    assert blending.state_dict()["num_draws"] == 0


def test_another_number_of_components_begins_anew():
    blending = Blending()
    for count in (4, 3):
        logits = torch.zeros(count, dtype=torch.float64, requires_grad=True)
        q = MixtureOfDiagNormals(
            LOCS[:count], torch.ones(count, 2).double(), logits, weight_gradient="clustered"
        ).blended(blending)
        value = q.rsample((5,))
        (value.sum() + q.score_parts(value).score_function.sum()).backward()
    blending.learn()
    assert blending.num_draws == 5
    assert blending.state_dict()["moments"].shape == (2, 3)
    assert torch.equal(blending.shares(PAIRS), torch.ones(4))


@pytest.mark.filterwarnings("default")  # torch warns about its own code
def test_whole_steps_compile():
    torch._dynamo.reset()
    blending = knowing([0.3] * 4, [1.0] * 4)

    def step(logits, locs):
        q = MixtureOfDiagNormals(
            locs, torch.ones(4, 2), logits, weight_gradient="clustered", validate_args=False
        ).blended(blending)
        z = q.rsample((3,))
        return (z.sum(-1).cos() * (1 + q.score_parts(z).score_function)).sum()

    gradients = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(0)
        logits = torch.zeros(4, requires_grad=True)
        function(logits, LOCS.float()).backward()
        gradients.append(logits.grad)
        blending._found.clear()
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0.1
