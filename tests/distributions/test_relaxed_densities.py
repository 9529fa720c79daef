"""Log densities of relaxed laws: of any value, and of samples that floating point cannot hold."""

import math

import pytest
import torch

from pyro_mixtures.distributions import ExpRelaxedCategorical, RelaxedCategorical
from tests.pairwise import in_pairs
from tests.registry import gradients, leaves, randn, relative_error
from tests.relaxed import LAWS, drawn, each_hard_law, each_image, each_law, each_soft_law

TEMPERATURES = (0.01, 0.05, 0.1, 1.0, 10.0, 100.0)
each_temperature = pytest.mark.parametrize("temperature", TEMPERATURES)
each_size = pytest.mark.parametrize(
    ("law", "K"),
    [
        pytest.param(law, K, id=f"{name}-{K}")
        for name, law in LAWS.items()
        for K in ([2, 10, 100, 1000] if law.is_categorical else [2])
    ],
)


@pytest.mark.parametrize(
    ("name", "K", "temperature"),
    [
        (name, K, temperature)
        for name, sizes, lowest in (
            ("exp_categorical", (2, 3), 0.05),
            ("categorical", (2, 3), 0.05),
            ("bernoulli", (2,), 1.0),  # values near 1 have lost their digits
        )
        for K in sizes
        for temperature in (0.05, 0.3, 1.0, 3.0, 50.0)
        if temperature >= lowest
    ],
)
def test_integral(name, K, temperature):
    """By the trapezoidal rule over log ratios r, exact for tails and poles like those of logistic
    variables. Of the simplex ``dy`` is the product of all coordinates times ``dr``."""
    law = LAWS[name]
    parameters = law.parameters(K=K, temperature=temperature)
    step, end = 0.4 / temperature, 40 / temperature
    axis = torch.arange(-end, end, step, dtype=torch.float64)
    r = torch.cartesian_prod(*[axis] * (K - 1)).reshape(-1, K - 1)
    q = law.build(parameters, validate_args=False)
    density = q.log_prob(law.at_log_ratios(r))
    if law.distribution is not ExpRelaxedCategorical:
        x = torch.cat([r, torch.zeros_like(r[:, :1])], -1).log_softmax(-1)
        density = density + x.sum(-1)
    total = density.exp().sum() * step ** (K - 1)
    torch.testing.assert_close(total, torch.ones(()).double(), rtol=1e-7, atol=0)


@in_pairs
@each_soft_law
@pytest.mark.parametrize("K", [1, 2, 5])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_same_as_torch(law, K, temperature):
    """With gradients; of its own samples and of others, in float64."""
    parameters = law.parameters((2,), K=K)
    parameters["temperature"] = torch.tensor(temperature).double().requires_grad_()
    q, reference = law.build(parameters), law.reference(**parameters, validate_args=False)
    sample = drawn(q, (20,))
    for value in (sample, sample.detach(), drawn(reference, (20,), seed=2).detach()):
        actual, expected = q.log_prob(value), reference.log_prob(value)
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-8)
        weights = torch.randn_like(actual)
        for known, error in gradients(actual, parameters, weights).items():
            exact = gradients(expected, parameters, weights)[known]
            torch.testing.assert_close(error, exact, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("K", [2, 5])
def test_gradient_at_a_value(K):
    """That of torch's class, at values from elsewhere."""
    law = LAWS["categorical"]
    parameters = law.parameters(K=K, temperature=0.7)
    value = drawn(law.build(parameters), (20,)).detach().requires_grad_()
    actual = gradients(law.build(parameters).log_prob(value), {"value": value})
    reference = law.reference(**parameters, validate_args=False)
    expected = gradients(reference.log_prob(value), {"value": value})
    assert relative_error(actual, expected) < 1e-9


@each_size
@each_temperature
def test_own_samples_in_single_precision(law, K, temperature):
    """Of thousands of samples finite, right to the digits of float32, and so are gradients."""
    parameters = law.parameters(K=K, dtype=torch.float32, temperature=temperature)
    q = law.build(parameters)
    exact = leaves({name: getattr(q, name) for name in parameters}, torch.float64)
    count = 3000 if K < 1000 else 500
    sample = drawn(q, (count,))
    actual = law.build(parameters).log_prob(sample)  # another law of the same parameters
    assert actual.dtype == torch.float32
    assert actual.isfinite().all()
    double = law.build(exact)
    expected = double.log_prob(drawn(double, (count,)))
    # of the logarithm itself samples have no more digits than their dtype
    keeps = law.distribution is not ExpRelaxedCategorical
    rtol, atol = (1e-7, 0) if keeps else (1e-6, 1e-4 * math.sqrt(K))
    torch.testing.assert_close(actual.double(), expected, rtol=rtol, atol=atol)

    weights = torch.randn(count, dtype=torch.float64)
    for z, values in ((actual, parameters), (sample, parameters)):
        scale = weights.float() if z is actual else torch.randn_like(z)
        for gradient in gradients(z, values, scale).values():
            assert gradient.isfinite().all()
    # the sum of gradients of the order of one that cancel is as exact as each of them
    size = count**0.5 * max(1.0, K / temperature)
    error = relative_error(
        gradients(actual, parameters, weights.float()),
        gradients(expected, exact, weights),
        size=size,
    )
    assert error < (1e-3 if keeps else 2e-2)


@each_temperature
@pytest.mark.parametrize("K", [2, 10, 100])
def test_gradient_of_own_log_density(K, temperature):
    """In closed form: with the Gumbels given, ``log p`` is a constant plus ``(K - 1) log tau``
    less the sum of the log coordinates."""
    parameters = LAWS["categorical"].parameters(K=K, temperature=temperature)
    q = RelaxedCategorical(**parameters)
    y = drawn(q, (50,))
    actual = gradients(q.log_prob(y), parameters)
    x = y._pyro_mixtures_coordinates[0].detach()
    mean = (x.exp() * x).sum(-1, keepdim=True)
    expected = {
        "logits": ((K * x.exp() - 1) / temperature).sum(0),
        "temperature": ((K - 1 + (x - mean).sum(-1)) / temperature).sum(),
    }
    assert relative_error(actual, expected) < 1e-7


def test_exact_density_of_the_gumbels():
    """At the lowest temperature, where a formula of its own knows no cancellation."""
    parameters = LAWS["categorical"].parameters(K=20, temperature=0.01)
    torch.manual_seed(1)
    gumbel = -(-torch.rand(7, 20, dtype=torch.float64).log()).log()
    y = drawn(RelaxedCategorical(**parameters), (7,))
    x = y._pyro_mixtures_coordinates[0]
    expected = math.lgamma(20) + 19 * math.log(0.01) - gumbel.sum(-1)
    expected = expected - 20 * (-gumbel).logsumexp(-1) - x.sum(-1)
    actual = RelaxedCategorical(**parameters).log_prob(y)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@each_image
def test_samples_under_another_law(law):
    """A model's density of its guide's samples is that of their coordinates, too."""
    guide, prior = (law.parameters((2,), temperature=0.02, seed=seed) for seed in (0, 1))
    value = drawn(law.build(guide), (50,))
    exact = value._pyro_mixtures_coordinates[0]
    actual = law.build(prior).log_prob(value)
    torch.testing.assert_close(actual, law.build(prior)._log_density(exact), rtol=0, atol=0)
    expected = gradients(actual, {**guide, **prior})
    assert all(gradient.isfinite().all() for gradient in expected.values())
    soft = law.soft(**prior)
    assert torch.equal(soft.log_prob(value), actual)
    if law.is_categorical:
        difference = actual - ExpRelaxedCategorical(**prior).log_prob(exact)
        torch.testing.assert_close(difference, -exact.sum(-1))


CHANGES = {
    "detached": lambda z: z.detach(),
    "copy": lambda z: z.clone(),
    "slice": lambda z: z[:2],
    "in place": lambda z: z.mul_(1.0),
    "a leaf": lambda z: (z.detach() if z.requires_grad else z).requires_grad_(),
}


@in_pairs
@each_image
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("method", ["sample", "rsample"])
def test_values_from_elsewhere(law, change, method):
    """Are no samples, even if they were made of some: evaluated as they are, or refused."""
    q = law.build(law.parameters((2,), temperature=1e-4))
    value = CHANGES[change](getattr(q, method)((50,)))
    if law.snaps:
        with pytest.raises(ValueError, match="log_prob of .*StraightThrough is the density of"):
            q.log_prob(value)
        return
    assert (value == 0).any()
    actual = q.log_prob(value)
    assert actual.isfinite().all()
    tiny, last = torch.finfo(value.dtype).tiny, 1 - torch.finfo(value.dtype).eps / 2
    clamped = value.detach().clamp(tiny, last)
    x = clamped.log() if law.is_categorical else clamped.log() - (-clamped).log1p()
    torch.testing.assert_close(actual, q._log_density(x))
    if value.requires_grad and value.is_leaf:
        assert all(g.isfinite().all() for g in gradients(actual, {"value": value}).values())


@each_hard_law
def test_one_hot_vectors_are_refused(law):
    q = law.build(law.parameters())
    value = torch.tensor([0.0, 1.0, 0.0]).double() if law.is_categorical else torch.ones(())
    name = "OneHotCategorical" if law.is_categorical else "Bernoulli"
    with pytest.raises(ValueError, match=f"Of discrete values {name} has the probability"):
        q.log_prob(value)


@pytest.mark.parametrize("name", ["exp_categorical", "categorical", "hard_categorical"])
@pytest.mark.parametrize("given", ["logits", "probs"])
def test_categories_of_weight_zero(name, given):
    """The law of the others: values, density and gradients."""
    law = LAWS[name]
    for temperature in (0.05, 2.0):
        rest = law.parameters((2,), K=3, temperature=temperature)
        if given == "probs":
            probs = torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.5, 0.1]]).double()
            rest = {"temperature": rest["temperature"], "probs": probs.requires_grad_()}
        absent = torch.full((2, 1), -math.inf if given == "logits" else 0.0).double()
        full = {**rest, given: torch.cat([rest[given].detach(), absent], -1).requires_grad_()}
        q = law.build(full)
        value = drawn(q, (20,))
        alive = value[..., :3]
        assert (value[..., 3] == (-math.inf if name == "exp_categorical" else 0)).all()
        coordinates = value if name == "exp_categorical" else value._pyro_mixtures_coordinates[0]
        expected = ExpRelaxedCategorical(**rest).log_prob(coordinates[..., :3])
        if name != "exp_categorical":
            expected = expected - coordinates[..., :3].sum(-1)
        actual = q.log_prob(value)
        torch.testing.assert_close(actual, expected)
        actual = gradients(actual.cos() + alive.exp().prod(-1), full)
        assert all(gradient.isfinite().all() for gradient in actual.values())
        assert (actual[given][..., 3] == 0).all()
        if name == "exp_categorical":
            expected = gradients(law.build(rest).log_prob(alive.detach()), rest)
            actual = gradients(q.log_prob(value.detach()), full)
            torch.testing.assert_close(actual[given][..., :3], expected[given])


def test_where_there_is_no_density():
    """At a positive coordinate of a category without weight, and at a zero one of one that has
    some."""
    without = RelaxedCategorical(0.5, logits=torch.tensor([0.0, 1.0, -math.inf]))
    every = RelaxedCategorical(0.5, logits=torch.zeros(3))
    assert without.log_prob(every.sample()) == -math.inf
    assert every.log_prob(without.sample()) == -math.inf
    value = torch.tensor([0.3, 0.7, 0.0])
    assert without.log_prob(value).isfinite()
    assert every.log_prob(value).isfinite()  # a zero may be what a tiny number became
    x = torch.tensor([0.3, 0.7, 0.0]).log()
    assert ExpRelaxedCategorical(0.5, logits=torch.zeros(3)).log_prob(x) == -math.inf


@pytest.mark.parametrize("name", ["exp_categorical", "categorical", "hard_categorical"])
def test_one_category(name):
    law = LAWS[name]
    parameters = law.parameters((2,), K=1)
    q = law.build(parameters)
    value = q.rsample((5,))
    assert (value == (0 if name == "exp_categorical" else 1)).all()
    density = q.log_prob(value)
    assert (density == 0).all()
    for gradient in (
        *gradients(value, parameters).values(),
        *gradients(density, parameters).values(),
    ):
        assert (gradient == 0).all()


@pytest.mark.parametrize("name", ["bernoulli", "hard_bernoulli"])
@pytest.mark.parametrize("given", ["logits", "probs"])
def test_certain_values(name, given):
    corners = torch.tensor([-math.inf, 0.0, math.inf]).double()
    parameter = (corners if given == "logits" else corners.sigmoid()).requires_grad_()
    temperature = torch.tensor(0.5).double().requires_grad_()
    parameters = {"temperature": temperature, given: parameter}
    q = LAWS[name].build(parameters)
    value = q.rsample((5,))
    assert (value[:, 0] == 0).all()
    assert (value[:, 2] == 1).all()
    density = q.log_prob(value)
    assert (density[:, ::2] == 0).all()
    assert density.isfinite().all()
    for output in (density, value.cos()):
        values = gradients(output, parameters)
        assert all(gradient.isfinite().all() for gradient in values.values())
        assert (values[given][::2] == 0).all()
    if name == "bernoulli":
        torch.testing.assert_close(q.log_prob(value.detach()), density)
        assert (q.log_prob(0.5 * randn(3).sigmoid())[::2] == -math.inf).all()


@each_law
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(law, dtype):
    parameters = law.parameters((2,), K=10, dtype=dtype, temperature=0.1)
    q = law.build(parameters)
    value = q.rsample((50,))
    density = q.log_prob(value)
    assert value.dtype == density.dtype == dtype
    if law.distribution is not ExpRelaxedCategorical:  # of which x itself has lost its digits
        assert density.isfinite().all()
        assert all(g.isfinite().all() for g in gradients(value, parameters).values())
