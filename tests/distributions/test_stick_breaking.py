"""Weights broken from sticks: densities, expectations, gradients, priors, and bad input."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import (
    Beta,
    Dirichlet,
    Independent,
    Kumaraswamy,
    Normal,
    SigmoidTransform,
    TransformedDistribution,
    Uniform,
    kl_divergence,
)

from pyro_mixtures.distributions import (
    KumaraswamyStickBreaking,
    MixtureOfDiagNormals,
    RelaxedCategorical,
    RelaxedCategoricalStraightThrough,
    StickBreaking,
)
from pyro_mixtures.infer import detached
from pyro_mixtures.numerics.incomplete import beta_tails
from pyro_mixtures.samples.coordinates import kept_coordinates
from tests.distributions.test_kumaraswamy import SIZES, kolmogorov_smirnov
from tests.registry import gradients
from tests.sticks import families

STEP = 0.15
AXIS = torch.arange(-30.0, 30.0, STEP, dtype=torch.float64)


def grid():
    """Three weights, ``(S, 3)``, and the volume of a cell in the first two of them."""
    log_v, log_rest = torch.nn.functional.logsigmoid(
        torch.stack([torch.cartesian_prod(AXIS, AXIS), -torch.cartesian_prod(AXIS, AXIS)])
    )
    passed = log_rest.cumsum(-1)
    logs = [log_v[:, 0], log_v[:, 1] + passed[:, 0], passed[:, 1]]
    log_volume = log_v.sum(-1) + passed[:, 1] + log_rest[:, 0]
    return torch.stack(logs, -1).exp(), log_volume.exp() * STEP**2


@families(lambda name: name != "beta_mixture_of_each")
def test_expectations_by_quadrature(sticks):
    """Normalization, mean, variance and entropy, and their gradients, of three weights."""
    parameters = sticks.parameters(seed=3)
    q = sticks.build(parameters)
    weights, volume = grid()
    log_density = q.log_prob(weights)
    mass = log_density.exp() * volume
    torch.testing.assert_close(mass.sum(), torch.ones((), dtype=torch.float64), rtol=1e-8, atol=0)
    if type(q.sticks) not in (Beta, Kumaraswamy):
        return
    mean = mass @ weights
    for actual, expected in (
        (q.mean, mean),
        (q.variance, mass @ weights.square() - mean.square()),
        (q.entropy(), -(mass * log_density).sum()),
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)
        pull = torch.randn_like(expected)
        slopes, exact = (gradients(x, parameters, pull) for x in (actual, expected))
        torch.testing.assert_close(slopes, exact, rtol=1e-6, atol=1e-7)


def cost(log_weights):
    """Bounded, of a slope that differs between weights, also where weights vanish."""
    scale = log_weights.new_tensor([0.5, 1.0, 2.0])
    return (scale * log_weights).sigmoid().sum(-1) + (log_weights / 3).exp().prod(-1)


@families(lambda name: name != "beta_mixture_of_each")
def test_gradients_of_expectations(sticks):
    """To five standard errors, 10 entries at most: a false alarm in some 10^5 runs."""
    parameters = sticks.parameters(seed=3)
    weights, volume = grid()
    q = sticks.build(parameters)
    exact = gradients((q.log_prob(weights).exp() * volume * cost(weights.log())).sum(), parameters)
    each = {
        name: x.detach().expand(20_000, *x.shape).clone().requires_grad_()
        for name, x in parameters.items()
    }
    q = sticks.build(each)
    moved = gradients(cost(q.log_weights(q.rsample())), each)
    for name, values in moved.items():
        error = values.std(0) / len(values) ** 0.5
        assert ((values.mean(0) - exact[name]).abs() < 5 * error + 1e-7).all(), name
        assert (error < 0.1 * exact[name].abs().max()).all()  # it can see a bias


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("first", [True, False], ids=["a", "b"])
def test_gradients_of_beta_sticks(dtype, first):
    """Where quantiles are powers: v of Beta(a, 1) and 1 - v of Beta(1, b)."""
    sizes = torch.tensor(SIZES, dtype=dtype).unsqueeze(-1).requires_grad_()
    one = torch.ones_like(sizes)
    q = StickBreaking(Beta(sizes, one) if first else Beta(one, sizes))
    weights = q.rsample((50,))
    log_power = q.log_weights(weights)[..., 0 if first else 1]
    pull = torch.rand_like(log_power) + 0.5
    (slope,) = torch.autograd.grad((pull * log_power).sum(), sizes, retain_graph=True)
    expected = -(pull * log_power).sum(0, keepdim=True).mT / sizes
    assert weights.dtype == log_power.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(slope, expected, rtol=tolerance, atol=0)
    (first_order,) = torch.autograd.grad(weights.square().sum(), sizes, create_graph=True)
    with pytest.raises(NotImplementedError):
        first_order.sum().backward()


@pytest.mark.parametrize(("a", "b"), [(0.05, 0.05), (0.3, 20.0), (7.0, 0.4), (1e3, 1e3)])
def test_samples_of_beta_sticks(a, b):
    """Kolmogorov and Smirnov: beyond 2.3 in one of 20,000 runs."""
    a, b = torch.tensor([[a], [b]], dtype=torch.float64)
    q = StickBreaking(Beta(a, b))
    log_v, log_rest = q.log_weights(q.sample((10_000,))).unbind(-1)
    assert log_v.isfinite().all()
    assert log_rest.isfinite().all()
    assert kolmogorov_smirnov(beta_tails(a, b, log_v, log_rest).log_cdf.exp()) < 2.3


@pytest.mark.parametrize("concentration", [[0.05, 0.05, 0.05, 0.05], [3.0, 0.2, 40.0, 1.0]])
def test_dirichlet(concentration):
    """Density, moments, entropy and divergences of torch's own, with their gradients."""
    concentration = torch.tensor(concentration, dtype=torch.float64, requires_grad=True)
    other = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    q, exact = StickBreaking.dirichlet(concentration), Dirichlet(concentration)
    values = Dirichlet(other).sample((20,))
    p = StickBreaking.dirichlet(other)
    for actual, expected in (
        (q.log_prob(values), exact.log_prob(values)),
        (q.mean, exact.mean),
        (q.variance, exact.variance),
        (q.entropy(), exact.entropy()),
        (kl_divergence(q, p), kl_divergence(exact, Dirichlet(other))),
        (kl_divergence(q, Dirichlet(other)), kl_divergence(exact, Dirichlet(other))),
        (kl_divergence(p, q), kl_divergence(Dirichlet(other), exact)),
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
        pull = torch.randn_like(expected)
        slopes = [
            torch.autograd.grad(x, concentration, pull, retain_graph=True)[0]
            for x in (actual, expected)
        ]
        torch.testing.assert_close(*slopes, rtol=1e-8, atol=1e-8)


def test_gem():
    """Any batch of concentrations, or a number."""
    concentration = torch.tensor([[0.5], [2.0]]).double()
    q = StickBreaking.gem(concentration, 4)
    assert (q.batch_shape, q.event_shape) == ((2, 1), (4,))
    share = 1 / (1 + concentration)
    left = (1 - share) ** torch.arange(3)
    expected = torch.cat([share * left, (1 - share) ** 3], -1).unsqueeze(1)
    torch.testing.assert_close(q.mean, expected)
    assert StickBreaking.gem(2, 3).sample().dtype == torch.get_default_dtype()


def test_divergences_of_any_sticks():
    """Are those of torch, summed, also of sticks that depend on each other."""
    a, b = torch.rand(2, 5, 3).double() + 0.5
    q = KumaraswamyStickBreaking(a, b)
    priors = StickBreaking.gem(torch.rand(5).double(), 4), StickBreaking.gem(2.0, 4)
    for prior in priors:
        expected = kl_divergence(Kumaraswamy(a, b), prior.sticks).sum(-1)
        torch.testing.assert_close(kl_divergence(q, prior), expected)
    assert kl_divergence(q, q).abs().max() == 0
    first, second = (
        TransformedDistribution(Normal(loc, torch.ones(3)), [SigmoidTransform()])
        for loc in torch.randn(2, 3)
    )
    expected = kl_divergence(first.base_dist, second.base_dist).sum()
    joint = TransformedDistribution(Independent(second.base_dist, 1), [SigmoidTransform()])
    for p, r in ((first, second), (Independent(first, 1), second)):
        divergence = kl_divergence(StickBreaking(p), StickBreaking(r))
        torch.testing.assert_close(divergence, expected)
    same = TransformedDistribution(Independent(first.base_dist, 1), [SigmoidTransform()])
    torch.testing.assert_close(kl_divergence(StickBreaking(same), StickBreaking(joint)), expected)


def test_log_weights_of_samples():
    """Are known where the weights underflow, in each distribution of the kind, and in a model."""
    a, b = torch.full((2, 9), 0.05), torch.full((2, 9), 0.05)
    b[1] = 1e3
    q = KumaraswamyStickBreaking(a.requires_grad_(), b.requires_grad_())
    prior = StickBreaking.gem(0.5, 10)
    weights = q.rsample((200,))
    assert (weights == 0).any(-1).any(0).all()
    log_weights = q.log_weights(weights)
    assert torch.equal(prior.log_weights(weights), log_weights)
    torch.testing.assert_close(log_weights.exp(), weights)
    torch.testing.assert_close(log_weights.logsumexp(-1), torch.zeros(200, 2))
    bound = log_weights.sum() + q.log_prob(weights).sum() + prior.log_prob(weights).sum()
    for slope in torch.autograd.grad(bound, [a, b]):
        assert slope.isfinite().all()
    # those of values are as far as the numbers go
    assert (q.log_weights(weights[:5]) > -100).all()
    assert q.log_prob(weights[:5]).isfinite().all()
    relaxed = RelaxedCategorical(0.01, logits=torch.zeros(10)).sample((20,))
    assert q.log_weights(relaxed).min() < -100
    # a rounded sample is the corner that it says, not the point that was rounded
    hard = RelaxedCategoricalStraightThrough(0.5, logits=torch.zeros(2, 10)).sample((20,))
    assert torch.equal(q.log_weights(hard), q.log_weights(hard.clone()))
    assert torch.equal(q.log_prob(hard), q.log_prob(hard.clone()))
    assert kept_coordinates(weights, torch.Size([9])) is None
    # zeros of any origin are the smallest number
    logits = torch.zeros(2, 10)
    logits[:, 3], logits[:, 9] = -torch.inf, -torch.inf
    zeros = RelaxedCategorical(1.0, logits=logits).sample((20,))
    torch.testing.assert_close(q.log_prob(zeros), q.log_prob(zeros.clone()), rtol=1e-4, atol=1e-3)


def test_weights_of_a_mixture():
    """In plates, by name, and of as many weights: the logits of a mixture in guide and model."""
    a, b = (torch.full((3,), x, requires_grad=True) for x in (0.05, 20.0))
    locs = torch.tensor([-4.0, -1.0, 1.0, 4.0]).unsqueeze(-1)

    def program(q):
        with pyro.plate("data", 30):
            weights = pyro.sample("weights", q)
            mixture = MixtureOfDiagNormals(locs, torch.ones(4, 1), q.log_weights(weights))
            pyro.sample("z", mixture)

    pyro.set_rng_seed(0)
    elbo = pyro.infer.Trace_ELBO()
    loss = elbo.differentiable_loss(
        lambda: program(StickBreaking.gem(1.0, 4)), lambda: program(KumaraswamyStickBreaking(a, b))
    )
    for slope in torch.autograd.grad(loss, [a, b]):
        assert slope.isfinite().all()
        assert slope.any()


@families()
def test_detached(sticks):
    """The density keeps the gradient of the sample alone."""
    parameters = sticks.parameters((2,))
    q = sticks.build(parameters)
    weights = q.rsample((4,))
    held = detached(q)
    torch.testing.assert_close(held.log_prob(weights), q.log_prob(weights))
    assert held.log_prob(weights).requires_grad
    assert not held.log_prob(weights.detach()).requires_grad


@families(lambda name: name in ("logit_mixture", "logit_mixture_of_each", "kumaraswamy"))
def test_score_terms(sticks):
    """Mixtures among the sticks have theirs, through an event and a mask as well."""
    q = sticks.build(sticks.parameters((2,)))
    for wrapped in (q, q.to_event(1), q.mask(torch.tensor([True, False])), q.mask(True)):
        weights = wrapped.rsample((5,))
        score = wrapped.score_parts(weights).score_function
        if isinstance(q, KumaraswamyStickBreaking):
            assert score == 0
        else:
            assert score.shape == wrapped.log_prob(weights).shape
            assert score.requires_grad


def test_vmap():
    """Divergences and means of several distributions, and samples of each."""
    a, b, c = torch.rand(3, 4, 2).double() + 0.5

    def bound(a, b, c):
        q = KumaraswamyStickBreaking(a, b, validate_args=False)
        return kl_divergence(q, StickBreaking.gem(c[0], 3, validate_args=False)) + q.mean[0]

    one_by_one = torch.stack([bound(*each) for each in zip(a, b, c, strict=True)])
    torch.testing.assert_close(torch.func.vmap(bound)(a, b, c), one_by_one)

    def moved(a, b):
        q = KumaraswamyStickBreaking(a, b, validate_args=False)
        weights = q.rsample((3,))
        return q.log_prob(weights).sum() + q.log_weights(weights).sum()

    slope = torch.func.vmap(torch.func.grad(moved), randomness="different")(a, b)
    assert slope.shape == a.shape
    assert len(slope.flatten().unique()) == slope.numel()


def joint():
    """Two times three sticks that depend on each other."""
    base = Independent(Normal(torch.zeros(2, 3), 1.0), 1)
    return TransformedDistribution(base, [SigmoidTransform()])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: KumaraswamyStickBreaking(torch.ones(2), -torch.ones(2)), "parameter b"),
        (lambda: KumaraswamyStickBreaking(torch.zeros(2), torch.ones(2)), "parameter a"),
        (lambda: KumaraswamyStickBreaking(torch.tensor([torch.nan]), torch.ones(1)), "meter a"),
        (lambda: KumaraswamyStickBreaking(torch.ones(2), torch.ones(3)), "S = 2"),
        (lambda: KumaraswamyStickBreaking(torch.ones(0), torch.ones(0)), "one weight alone is 1"),
        (lambda: KumaraswamyStickBreaking(torch.ones(()), torch.ones(2)), "a of at least 1"),
        (lambda: KumaraswamyStickBreaking(1.0, torch.ones(2)), "a to be a tensor"),
        (lambda: StickBreaking(Normal(torch.ones(2, 0), 1.0)), r"K >= 2 weights.*\(2, 0\)"),
        (lambda: StickBreaking(Beta(1.0, 1.0)), "K >= 2 weights"),
        (lambda: StickBreaking(Independent(Beta(torch.ones(3, 2), 1.0), 2)), r"shape \(3, 2\)"),
        (lambda: StickBreaking(Independent(joint(), 1)), r"event shape \(2, 3\)"),
        (lambda: StickBreaking(torch.ones(2)), "sticks to be a distribution"),
        (lambda: StickBreaking(Normal(torch.zeros(2), 1.0)), "sticks on the unit interval"),
        (lambda: StickBreaking(Uniform(torch.zeros(2), 2.0)), "sticks on the unit interval"),
        (lambda: StickBreaking(Dirichlet(torch.ones(2))), "sticks on the unit interval"),
        (lambda: StickBreaking(dist.Delta(torch.ones(2))), "sticks on the unit interval"),
        (lambda: StickBreaking.gem(0.0, 3), "concentration to be positive"),
        (lambda: StickBreaking.gem(torch.tensor([1.0, torch.nan]), 3), "concentration to be pos"),
        (lambda: StickBreaking.gem(1.0, 1), "num_weights to be an integer >= 2"),
        (lambda: StickBreaking.dirichlet(torch.tensor([1.0, -1.0])), "concentration to be pos"),
        (lambda: StickBreaking.dirichlet(torch.ones(1)), "K >= 2 weights"),
        (lambda: StickBreaking.dirichlet(2.0), "concentration to be a tensor"),
    ],
)
def test_bad_parameters(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_bad_priors_and_values():
    q = KumaraswamyStickBreaking(torch.ones(2), torch.ones(2))
    for prior in (StickBreaking.gem(1.0, 4), Dirichlet(torch.ones(4))):
        with pytest.raises(ValueError, match="as many weights in both.*3 and 4"):
            kl_divergence(q, prior)
    for value in (torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0.5, torch.nan, 0.5])):
        with pytest.raises(ValueError, match="support"):
            q.log_prob(value)


def test_what_sticks_lack():
    normal = TransformedDistribution(Normal(torch.zeros(2), 1.0), [SigmoidTransform()])
    mixture = MixtureOfDiagNormals(torch.zeros(2, 3), torch.ones(2, 3), torch.zeros(2))
    joint = TransformedDistribution(mixture, [SigmoidTransform()])
    for sticks, moments, entropy in (
        (normal, "a mean and a variance, but got Trans", "an entropy in closed form"),
        (Uniform(torch.zeros(2), 1.0), None, "an entropy in closed form.*but got Uniform"),
        (joint, "independent of each other.*events are 3", "independent of each other"),
    ):
        q = StickBreaking(sticks)
        if moments is None:
            torch.testing.assert_close(q.mean, torch.tensor([0.5, 0.25, 0.25]))
        else:
            with pytest.raises(NotImplementedError, match=moments):
                q.mean  # noqa: B018
            with pytest.raises(NotImplementedError, match=moments):
                q.variance  # noqa: B018
        with pytest.raises(NotImplementedError, match=entropy):
            q.entropy()
    with pytest.raises(NotImplementedError, match="KL"):
        kl_divergence(StickBreaking(normal), StickBreaking.gem(1.0, 3))
