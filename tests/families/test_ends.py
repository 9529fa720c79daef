"""Samples that rounding puts on an end of the support, or at zero or infinity: none are there."""

from __future__ import annotations

import math

import pytest
import torch
from pyro.distributions import Logistic, MultivariateStudentT
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Beta,
    Categorical,
    Cauchy,
    Chi2,
    Dirichlet,
    Exponential,
    ExpTransform,
    Gamma,
    HalfCauchy,
    HalfNormal,
    Independent,
    InverseGamma,
    Kumaraswamy,
    Laplace,
    LogNormal,
    Normal,
    Pareto,
    PowerTransform,
    SigmoidTransform,
    StudentT,
    TanhTransform,
    Uniform,
    VonMises,
    Weibull,
)
from torch.nn.functional import logsigmoid

from pyro_mixtures import Mixture, MixtureSameFamily
from tests.families.refusing import mixed, same, transformed
from tests.registry import gradients, leaves, relative_error

each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)

SHAPES = (0.05, 0.5, 5.0, 50.0)
TWO_SHAPES = [(a, b) for a in SHAPES for b in SHAPES]


def zeros(x: Tensor, *event: int) -> Tensor:
    return x.new_zeros(*x.shape, *event)


FAMILIES = {
    "kumaraswamy": (Kumaraswamy, TWO_SHAPES),
    "beta": (Beta, TWO_SHAPES),
    "gamma": (Gamma, TWO_SHAPES),
    "inverse_gamma": (InverseGamma, TWO_SHAPES),
    "weibull": (Weibull, TWO_SHAPES),
    "log_normal": (LogNormal, TWO_SHAPES),
    "student_t": (lambda a, b: StudentT(a, zeros(a), b), TWO_SHAPES),
    "exponential_student_t": (
        lambda a, b: transformed(StudentT(a, zeros(a), b), ExpTransform()),
        TWO_SHAPES,
    ),
    "sigmoid_logistic": (
        lambda a, b: transformed(Logistic(a - 5, b), SigmoidTransform()),
        TWO_SHAPES,
    ),
    "tanh_laplace": (lambda a, b: transformed(Laplace(a, b), TanhTransform()), TWO_SHAPES),
    "stretched_tanh_normal": (
        lambda a, b: transformed(Normal(a, b), TanhTransform(), AffineTransform(0.25, 0.125)),
        TWO_SHAPES,
    ),
    "shifted_beta": (
        lambda a, b: transformed(Beta(a, b), AffineTransform(5.0, -2.0)),
        TWO_SHAPES,
    ),
    "power_of_gamma": (
        lambda a, b: transformed(Gamma(a, zeros(a) + 1), PowerTransform(-b)),
        TWO_SHAPES,
    ),
    "chi2": (lambda a, b: Chi2(a), TWO_SHAPES[::4]),
    "pareto": (lambda a, b: Pareto(zeros(a) + 1, a), TWO_SHAPES[::4]),
    "half_cauchy": (lambda a, b: HalfCauchy(a), TWO_SHAPES[::4]),
    "half_normal": (lambda a, b: HalfNormal(a), TWO_SHAPES[::4]),
    "exponential": (lambda a, b: Exponential(a), TWO_SHAPES[::4]),
    "exponential_of_it": (lambda a, b: transformed(Exponential(a), ExpTransform()), TWO_SHAPES),
    "cauchy": (Cauchy, TWO_SHAPES),
    "von_mises": (lambda a, b: VonMises(zeros(a) + 3.14, a), TWO_SHAPES[::4]),
    "uniform": (
        lambda a, b: Uniform(zeros(a) + b.detach()[0], zeros(a) + 1.0001 * b.detach()[0]),
        TWO_SHAPES[:4],
    ),
    "dirichlet": (
        lambda a, b: Dirichlet(a.unsqueeze(-1) * torch.tensor([1.0, 0.7, 1.2]).to(a)),
        TWO_SHAPES[::4],
    ),
    "multivariate_student_t": (
        lambda a, b: MultivariateStudentT(a, zeros(a, 2), torch.eye(2).to(a).expand(2, 2, 2)),
        TWO_SHAPES[::4],
    ),
    "tanh_of_vectors": (
        lambda a, b: transformed(
            MultivariateStudentT(a, zeros(a, 2), torch.eye(2).to(a).expand(2, 2, 2)),
            TanhTransform(),
            AffineTransform(0.25, 0.125),
        ),
        TWO_SHAPES[::4],
    ),
}


def two(a: float, b: float, dtype: torch.dtype) -> dict[str, Tensor]:
    """Parameters of two components that overlap."""
    given = {"a": (a, 1.3 * a), "b": (b, 0.8 * b), "logits": (0.2, -0.3)}
    return leaves({name: torch.tensor(value, dtype=dtype) for name, value in given.items()})


def mixture(build, parameters) -> MixtureSameFamily:
    weights = Categorical(logits=parameters["logits"])
    return MixtureSameFamily(weights, build(parameters["a"], parameters["b"]))


def bounded(z: Tensor) -> Tensor:
    return (3 * z / (1 + z.abs())).cos()


@each_dtype
@pytest.mark.parametrize(("build", "shapes"), FAMILIES.values(), ids=FAMILIES)
def test_extreme_shapes(build, shapes, dtype):
    """Densities and all gradients are finite, of bounded costs and of log densities."""
    for a, b in shapes:
        parameters = two(a, b, dtype)
        q = mixture(build, parameters)
        z = q.rsample((500,))
        log_prob = q.log_prob(z.detach())
        assert log_prob.isfinite().all(), (a, b)
        for output in (bounded(z), log_prob):
            values = gradients(output, parameters)
            assert all(x.isfinite().all() for x in values.values()), (a, b, values)


ENDS = {
    "kumaraswamy": (Kumaraswamy, 0.05, 0.05, (0.0, 1.0)),
    "beta": (Beta, 0.05, 0.05, (0.0, 1.0)),
    "weibull": (Weibull, 1.0, 0.05, (0.0, math.inf)),
    "log_normal": (LogNormal, 0.05, 50.0, (0.0, math.inf)),
    "exponential_student_t": (FAMILIES["exponential_student_t"][0], 0.05, 5.0, (0.0, math.inf)),
    "tanh_laplace": (FAMILIES["tanh_laplace"][0], 0.05, 50.0, (-1.0, 1.0)),
    "tanh_of_vectors": (FAMILIES["tanh_of_vectors"][0], 0.05, 1.0, (0.125, 0.375)),
    "stretched_tanh_normal": (FAMILIES["stretched_tanh_normal"][0], 0.05, 50.0, (0.125, 0.375)),
    "shifted_beta": (FAMILIES["shifted_beta"][0], 0.05, 0.05, (3.0, 5.0)),
    "uniform": (FAMILIES["uniform"][0], 1.0, 1.0, (1.0, 1.0001)),
}


@each_dtype
@pytest.mark.parametrize(("build", "a", "b", "interval"), ENDS.values(), ids=ENDS)
def test_samples_are_inside(build, a, b, interval, dtype):
    """Each of the family's samples that would be on an end is next to it."""
    parameters = two(a, b, dtype)
    q = mixture(build, parameters)
    low, high = (torch.tensor(end, dtype=dtype) for end in interval)
    z = q.sample((5000,))
    assert ((z > low) & (z < high)).all()
    ends = torch.stack([low, high]).reshape(2, *(1 for _ in q.event_shape))
    ends = ends.expand(2, *q.event_shape)  # of samples drawn elsewhere
    values = gradients(q.reparameterize(ends), parameters, 1 / (1 + ends.square()))
    assert all(x.isfinite().all() for x in values.values())


@each_dtype
def test_other_samples_stay_as_they_are(dtype):
    """Those next to the ends among them."""
    one = torch.ones((), dtype=dtype)
    z = torch.stack([torch.nextafter(one, -one), one / 3, one * torch.finfo(dtype).tiny])
    for components in (Beta(one.expand(2), 1.0), Uniform(zeros(z)[:2], 1.0)):
        q = same(components)
        q.components._pick = lambda index: z
        assert torch.equal(q.sample((3,)), z)
    angles = torch.tensor([-3.15, 0.0, 4.0], dtype=dtype)  # a circle has no ends
    concentration = torch.ones(2, dtype=dtype)
    q = same(VonMises(zeros(concentration), concentration))
    q.components._pick = lambda index: angles
    assert torch.equal(q.sample((3,)), angles)


@pytest.mark.parametrize(("build", "shapes"), FAMILIES.values(), ids=FAMILIES)
def test_precisions_agree(build, shapes):
    """At the same samples of single precision, whose distance from an end it holds."""
    for a, b in shapes:
        results = []
        low = two(a, b, torch.float32)
        z = mixture(build, low).sample((200,))
        exact = z.double().requires_grad_()
        slope = gradients(bounded(exact), {"z": exact})["z"]
        for dtype in (torch.float32, torch.float64):
            parameters = leaves(low, dtype)
            points = mixture(build, parameters).reparameterize(z.to(dtype))
            results.append(gradients(points, parameters, slope.to(dtype)))
        assert relative_error(*results, size=1.0) < 2e-3, (a, b, results)


def log_rest(y: Tensor, a: Tensor) -> Tensor:
    """``log(1 - x^a)`` with x the sigmoid of y."""
    exact = (-(a * logsigmoid(y.clamp_max(30))).expm1()).log()
    return torch.where(y > 30, a.log() - y, exact)


def beta(y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return a * logsigmoid(y) + b * logsigmoid(-y) + (a + b).lgamma() - a.lgamma() - b.lgamma()


def kumaraswamy(y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    rest = (b - 1) * log_rest(y, a) + logsigmoid(-y)
    return (a * b).log() + a * logsigmoid(y) + rest


def weibull(y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    power = b * (y - a.log())
    return b.log() + power - power.clamp_max(600).exp()


def inverse_gamma(y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return a * (b.log() - y) - b * (-y).clamp_max(600).exp() - a.lgamma()


def log_normal(y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return -((y - a) / b).square() / 2 - b.log() - math.log(math.tau) / 2


UNBIASED = {
    "kumaraswamy_near_one": (Kumaraswamy, kumaraswamy, torch.sigmoid, (2.0, 0.7), (0.5, 0.5)),
    "kumaraswamy_at_one": (Kumaraswamy, kumaraswamy, torch.sigmoid, (2.0, 0.7), (0.05, 0.3)),
    "kumaraswamy_at_both": (Kumaraswamy, kumaraswamy, torch.sigmoid, (0.05, 0.1), (0.05, 5.0)),
    "beta_at_one": (Beta, beta, torch.sigmoid, (5.0, 2.0), (0.05, 0.2)),
    "beta_at_both": (Beta, beta, torch.sigmoid, (0.1, 0.2), (0.1, 0.3)),
    "weibull": (Weibull, weibull, torch.exp, (1.0, 2.0), (0.05, 0.1)),
    "inverse_gamma": (InverseGamma, inverse_gamma, torch.exp, (0.05, 0.3), (1.0, 2.0)),
    "log_normal": (LogNormal, log_normal, torch.exp, (0.0, 1.0), (50.0, 2.0)),
}


@pytest.mark.parametrize(("family", "log_pdf", "at", "a", "b"), UNBIASED.values(), ids=UNBIASED)
def test_nothing_is_biased(family, log_pdf, at, a, b):
    """Half a million samples of single precision, half of them at an end, against quadrature.

    Of 48 means none is beyond five standard errors, but once in some 2,500 seeds.
    """
    given = {"a": torch.tensor(a), "b": torch.tensor(b), "logits": torch.tensor([0.3, -0.2])}
    exact = leaves(given, torch.float64)
    y = torch.arange(-1400, 1400, 0.05, dtype=torch.float64).unsqueeze(-1)  # x = at(y)
    cost = (3 * (y.sigmoid() if at is torch.exp else y.sigmoid() / (1 + y.sigmoid()))).cos()
    density = log_pdf(y, exact["a"], exact["b"]).exp() @ exact["logits"].softmax(-1)
    expected = gradients((0.05 * cost.squeeze(-1) * density).sum(), exact)
    parameters = leaves(given, torch.float32)
    runs = []
    for _ in range(50):
        z = mixture(family, parameters).rsample((10_000,))
        values = gradients(bounded(z).mean(), parameters)
        runs.append({name: value.double() for name, value in values.items()})
    for name, value in expected.items():
        each = torch.stack([run[name] for run in runs])
        error = each.std(0) / len(runs) ** 0.5
        assert ((each.mean(0) - value) / error).abs().amax() < 5, name


def test_densities_next_to_the_ends():
    """Torch's own are NaN or infinite there, or their derivatives are."""
    a, b = torch.tensor([0.05, 3.0]), torch.tensor([0.05, 0.5])
    x = torch.tensor([-80.0, -30.0, 0.3, 15.0]).sigmoid()
    y = x.double().logit().unsqueeze(-1)
    expected = kumaraswamy(y, a.double(), b.double()) - logsigmoid(y) - logsigmoid(-y)
    actual = same(Kumaraswamy(a, b)).component_log_prob(x)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)
    x = torch.tensor([1e-30, 1.0, 1e20, 1e36])
    y = x.double().log().unsqueeze(-1)
    expected = inverse_gamma(y, a.double(), b.double()) - y
    actual = same(InverseGamma(a, b)).component_log_prob(x)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("df", [0.05, 3.0, 50.0])
@pytest.mark.parametrize("dim", [1, 2])
def test_densities_far_out(df, dim):
    """Where squares overflow in single precision, those of double precision are finite."""
    results = []
    for dtype in (torch.float32, torch.float64):
        given = {"df": torch.full((2,), df), "loc": torch.zeros(2, dim)}
        parameters = leaves(given, dtype)
        components = MultivariateStudentT(
            parameters["df"], parameters["loc"], torch.eye(dim, dtype=dtype).expand(2, dim, dim)
        )
        torch_density = components.log_prob
        if dim == 1:
            components = StudentT(parameters["df"], parameters["loc"].squeeze(-1))
            torch_density = components.log_prob
        x = torch.tensor([0.0, 1e-3, 0.7, -30.0, 1e5, -1e25, 3e36], dtype=dtype)
        x = torch.stack([x, x.flip(0)], -1) if dim == 2 else x
        log_prob = (
            same(components).component_log_prob(x)
            if dtype == torch.float32
            else torch_density(x.unsqueeze(1))
        )
        results.append((log_prob.double(), gradients(log_prob, parameters)))
    (low, low_gradients), (high, high_gradients) = results
    torch.testing.assert_close(low, high, rtol=1e-4, atol=1e-4)
    assert relative_error(low_gradients, high_gradients) < 1e-2


class Shifted(StudentT):
    """A Student t in name only."""

    def log_prob(self, value):
        return super().log_prob(value - 100)

    def sample(self, sample_shape=torch.Size()):
        return super().sample(sample_shape) + 100


def test_a_derived_class_has_its_own_density():
    q = same(Shifted(torch.tensor([3.0, 4.0]), 0.0, 1.0), weight_gradient="hybrid")
    assert q.log_prob(torch.tensor(100.0)) > -2
    assert q.log_prob(torch.tensor(0.0)) < -10


def test_different_families_share_their_ends():
    a = torch.tensor(0.05, requires_grad=True)
    q = mixed(Beta(a, a), Kumaraswamy(1.0, a), Uniform(0.0, 1.0))
    z = q.rsample((10_000,))
    assert ((z > 0) & (z < 1)).all()
    assert gradients(bounded(z), {"a": a})["a"].isfinite()
    assert isinstance(q, Mixture)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype):
    concentration = torch.full((2,), 0.5, dtype=dtype)
    weights = Categorical(logits=zeros(concentration), validate_args=False)
    components = Independent(Kumaraswamy(concentration, concentration, validate_args=False), 0)
    q = MixtureSameFamily(weights, components, validate_args=False)
    z = q.sample((2000,))
    assert z.dtype == dtype
    assert ((z > 0) & (z < 1)).all()
