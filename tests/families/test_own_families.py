"""A rule for a family of one's own is all it takes; without one there is the score function."""

import pytest
import torch
from torch.distributions import (
    Categorical,
    Distribution,
    ExpTransform,
    Gamma,
    Independent,
    Normal,
    Transform,
    Weibull,
    constraints,
)

from pyro_mixtures import Mixture, MixtureSameFamily, register_velocity
from tests.families.refusing import ONE, TWO, VECTORS, assert_refused, transformed, weights


class Rayleigh(Distribution):
    """As a user would write it: nothing but what torch's own mixture asks for."""

    arg_constraints = {"scale": constraints.positive}
    support = constraints.nonnegative
    has_rsample = True

    def __init__(self, scale, validate_args=None):
        self.scale = scale
        super().__init__(scale.shape, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        return type(self)(self.scale.expand(batch_shape))

    def rsample(self, sample_shape=torch.Size()):
        uniform = torch.rand(self._extended_shape(sample_shape), dtype=self.scale.dtype)
        return self.scale * (-2 * uniform.log()).sqrt()

    def log_prob(self, value):
        if self._validate_args:
            self._validate_sample(value)
        return value.log() - 2 * self.scale.log() - (value / self.scale).square() / 2


class RayleighWithCdf(Rayleigh):
    def cdf(self, value):
        return -(-(value / self.scale).square() / 2).expm1()


@register_velocity(Rayleigh)
def _(distribution, value):
    return distribution.scale * value / distribution.scale.detach()


class Ball(Distribution):
    """Spherical Normals that have a velocity, but no factors."""

    arg_constraints = {"loc": constraints.real_vector}
    support = constraints.real_vector

    def __init__(self, loc, validate_args=None):
        self.loc = loc
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    def sample(self, sample_shape=torch.Size()):
        return self.loc.detach() + torch.randn(self._extended_shape(sample_shape)).to(self.loc)

    def log_prob(self, value):
        return Normal(self.loc, 1.0).log_prob(value).sum(-1)


@register_velocity(Ball)
def _(distribution, value):
    return value + distribution.loc - distribution.loc.detach()


class Stretch(Transform):
    """Of vectors, by a factor for each component."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, factor):
        super().__init__()
        self.factor = factor  # (K, 1)

    def _call(self, x):
        return self.factor * x

    def _inverse(self, y):
        return y / self.factor

    def log_abs_det_jacobian(self, x, y):
        return x.shape[-1] * self.factor.log().expand(x.shape).mean(-1)


@pytest.mark.parametrize(
    ("components", "words"),
    [
        (lambda p: Rayleigh(p), ["distribution function", "Rayleigh", "cdf", "register_tails"]),
        (lambda p: Ball(p.unsqueeze(-1) * torch.ones(2)), ["conditional", "Ball"]),
        (
            lambda p: transformed(VECTORS.expand((2,)), Stretch(p.unsqueeze(-1))),
            ["Stretch", "parameters for each"],
        ),
    ],
    ids=["no cdf", "no factors", "a map for each"],
)
def test_score_needs_no_transport(components, words):
    """As the error of the others says; with its term in ``score_parts`` the gradient is right."""
    logits = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    parameter = TWO.double().requires_grad_()

    def mixture(**options):
        return MixtureSameFamily(Categorical(logits=logits), components(parameter), **options)

    assert_refused(NotImplementedError, mixture, [*words, "weight_gradient='hybrid'"])
    q = mixture(weight_gradient="hybrid")
    z = q.rsample((100_000,))
    cost = z.tanh() + (z / 2).tanh().square()
    cost = cost.sum(-1) if q.event_shape else cost
    # the score of the logits, the path of the parameter
    surrogate = cost.mean() + (cost.detach() * q.score_parts(z).score_function).mean()
    actual = torch.autograd.grad(surrogate, [logits, parameter], retain_graph=True)
    # the plain score function estimates both
    plain = (cost.detach() * q.log_prob(z.detach())).mean()
    score = torch.autograd.grad(plain, [logits, parameter])
    torch.testing.assert_close(actual, score, rtol=0.0, atol=0.015)
    assert min(float(gradient.abs().max()) for gradient in score) > 0.05
    # a loss without the term asks for what there is not
    z = mixture(weight_gradient="hybrid").rsample((3,))
    with pytest.raises(NotImplementedError, match=f"(?s)does not use the score term.*{words[0]}"):
        torch.autograd.grad(z.sum(), logits)


END = 13.0
"""Where the upper tail is about the rounding unit."""


def rayleigh_cost(z):
    return z.sin() + z.square()


@pytest.mark.parametrize("different", [False, True])
def test_a_family_with_a_cdf(different):
    """The gradient of ``rsample``, integrated over all samples by quadrature."""
    scale = torch.tensor([0.7, 1.6, 1.1], dtype=torch.float64, requires_grad=True)
    logits = torch.tensor([0.3, -0.4, 0.1], dtype=torch.float64, requires_grad=True)
    components = RayleighWithCdf(scale)
    if different:
        parts = [RayleighWithCdf(scale[0]), Weibull(scale[1], 2.0), Gamma(2.0, 2 * scale[2])]
        q = Mixture(Categorical(logits=logits), parts)
    else:
        q = MixtureSameFamily(Categorical(logits=logits), components)
    assert q.rsample((5,)).requires_grad
    z = torch.linspace(1e-9, END, 20_001, dtype=torch.float64)
    density = q.log_prob(z).exp()
    torch.testing.assert_close(torch.trapezoid(density, z).item(), 1.0, rtol=0.0, atol=1e-6)
    moved = q.reparameterize(z)
    estimate = torch.trapezoid(density.detach() * rayleigh_cost(moved), z)
    actual = torch.autograd.grad(estimate, [scale, logits], retain_graph=True)
    expected = torch.trapezoid(density * rayleigh_cost(z), z)
    exact = torch.autograd.grad(expected, [scale, logits])
    torch.testing.assert_close(actual, exact, rtol=1e-5, atol=1e-6)


def test_a_cdf_that_rounds_to_one():
    """It moves no weight there, and spoils no other sample's gradient."""
    logits = torch.tensor([0.3, -0.4], requires_grad=True)
    q = MixtureSameFamily(Categorical(logits=logits), RayleighWithCdf(TWO))
    (plain,) = torch.autograd.grad(q.reparameterize(ONE).sum(), logits, retain_graph=True)
    assert plain.abs().min() > 0.1
    value = torch.tensor([1.0, 1.0, 15.0])
    (with_far,) = torch.autograd.grad(q.reparameterize(value).sum(), logits)
    torch.testing.assert_close(with_far, plain)


def test_independent_and_transformed_ones_need_no_rule_of_their_own():
    scale = torch.tensor([[0.7, 1.6], [1.1, 0.4]], requires_grad=True)
    logits = torch.zeros(2, requires_grad=True)
    q = MixtureSameFamily(
        Categorical(logits=logits),
        transformed(Independent(RayleighWithCdf(scale), 1), ExpTransform()),
    )
    z = q.rsample((4,))
    assert z.shape == (4, 2)
    for gradient in torch.autograd.grad(z.log().sum(), [scale, logits]):
        assert gradient.isfinite().all()
        assert gradient.abs().min() > 0


def test_the_most_specific_class_wins():
    class Parent(RayleighWithCdf):
        pass

    class Child(Parent):
        pass

    scale = torch.tensor([2.0], requires_grad=True)

    def speed(family):
        """Of a mixture of one component, which has the whole responsibility."""
        z = MixtureSameFamily(weights(1), family(scale)).reparameterize(torch.tensor(3.0))
        return torch.autograd.grad(z, scale)[0].item()

    assert speed(Child) == speed(RayleighWithCdf) == 1.5

    @register_velocity(Parent)
    def _(distribution, value):
        return value + 5 * (distribution.scale - distribution.scale.detach())

    assert (speed(RayleighWithCdf), speed(Parent), speed(Child)) == (1.5, 5.0, 5.0)

    @register_velocity(Child)
    def _(distribution, value):
        return value + 7 * (distribution.scale - distribution.scale.detach())

    assert (speed(RayleighWithCdf), speed(Parent), speed(Child)) == (1.5, 5.0, 7.0)
