"""Classes derived from known ones, rounded samples, mixed and low precisions, empty values."""

import pytest
import torch
from pyro.distributions import Logistic, MultivariateStudentT
from torch.distributions import (
    Beta,
    Categorical,
    Cauchy,
    Distribution,
    Exponential,
    Gamma,
    Gumbel,
    HalfNormal,
    Independent,
    InverseGamma,
    Laplace,
    MultivariateNormal,
    Normal,
    StudentT,
    TanhTransform,
    TransformedDistribution,
    VonMises,
    constraints,
)

from pyro_mixtures import Mixture, MixtureSameFamily, register_velocity
from tests.pairwise import in_pairs

TWO = torch.arange(1.0, 3.0)


def even(**options):
    return Categorical(logits=torch.zeros(2, **options))


class Shifted(Normal):
    """A Normal in name only."""

    def log_prob(self, value):
        return super().log_prob(value - 100)

    def sample(self, sample_shape=torch.Size()):
        return super().sample(sample_shape) + 100


def test_a_derived_class_is_not_its_base():
    q = MixtureSameFamily(even(), Shifted(TWO, 1.0), transport="telescoping")
    assert q.rsample((10,)).min() > 90
    torch.testing.assert_close(
        q.log_prob(torch.tensor(101.0)),
        q.component_log_prob(torch.tensor(101.0)).logsumexp(-1) - torch.tensor(2.0).log(),
    )
    with pytest.raises(ValueError, match="displacement"):
        MixtureSameFamily(even(), Shifted(TWO, 1.0), transport="displacement")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_rounded_to_the_end_of_a_transform(dtype):
    """Squashed by tanh, seven standard deviations out, samples are next to one."""
    loc = torch.tensor([0.0, 30.0], dtype=dtype, requires_grad=True)
    logits = torch.zeros(2, dtype=dtype, requires_grad=True)
    components = TransformedDistribution(Normal(loc, 1.0), [TanhTransform()])
    q = MixtureSameFamily(Categorical(logits=logits), components, validate_args=False)
    torch.manual_seed(0)
    z = q.rsample((1000,))
    one = torch.ones((), dtype=dtype)
    assert z.max() == torch.nextafter(one, -one)
    z.sum().backward()
    assert loc.grad.isfinite().all()
    assert logits.grad.isfinite().all()
    assert loc.grad[0] > 10
    assert loc.grad[1].abs() < 1e-3


@pytest.mark.parametrize(
    "dtypes", [(torch.float32, torch.float64), (torch.float64, torch.float32)]
)
@pytest.mark.parametrize(
    "components",
    [
        lambda x: Laplace(x, 1.0),
        lambda x: Gamma(x, 1.0),
        lambda x: Gumbel(x, 1.0),
        lambda x: MultivariateStudentT(x, torch.zeros(2, 2).to(x), torch.eye(2).to(x)),
        lambda x: Normal(x, 1.0),
    ],
)
def test_logits_of_another_precision(components, dtypes):
    """The gradients of double precision, each of its parameter's type."""
    results, points = [], None
    for logits_type, parameter_type in (dtypes, (torch.float64, torch.float64)):
        logits = torch.tensor([0.3, -0.2], dtype=logits_type, requires_grad=True)
        parameter = TWO.to(parameter_type, copy=True).requires_grad_()
        q = MixtureSameFamily(Categorical(logits=logits), components(parameter))
        points = q.sample((50,)) if points is None else points
        z = q.reparameterize(points)
        loss = z.sin().sum() + q.log_prob(points).sum()
        results.append(torch.autograd.grad(loss, (logits, parameter)))
        points = points.double()
    low, exact = results
    assert tuple(x.dtype for x in low) == dtypes
    for actual, expected in zip(low, exact, strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "components",
    [
        lambda x: VonMises(x, x),
        lambda x: Gamma(x, x),
        lambda x: Beta(x, x),
        lambda x: StudentT(x, x, x),
        lambda x: Laplace(x, x),
    ],
)
def test_half_precision(components):
    """Computed in float32: as exact as the parameters."""
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        parameter = torch.tensor([1.0, 2.0], dtype=dtype, requires_grad=True)
        logits = torch.tensor([0.5, -0.5], dtype=dtype, requires_grad=True)
        q = MixtureSameFamily(
            Categorical(logits=logits), components(parameter), validate_args=False
        )
        z = q.reparameterize(torch.tensor([0.25, 0.5, 0.75], dtype=dtype))
        assert z.dtype == dtype
        results.append(torch.autograd.grad(z.float().square().sum(), (parameter, logits)))
    for low, exact in zip(*results, strict=True):
        torch.testing.assert_close(low.float(), exact, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("components", "transport"),
    [
        *((family, "telescoping") for family in (Gamma, Beta, InverseGamma, Laplace, VonMises)),
        (lambda a, b: StudentT(a, a, b), "telescoping"),
        *((family, "displacement") for family in (Normal, Gumbel, Cauchy, Logistic)),
    ],
)
def test_drawn_in_half_precision(components, transport, dtype):
    """With the gradients that single precision has at the same points, rounded."""
    results, points = [], None
    for each in (dtype, torch.float32):
        parameter = torch.tensor([1.0, 2.0], dtype=each, requires_grad=True)
        logits = torch.zeros(2, dtype=each, requires_grad=True)
        q = MixtureSameFamily(
            Categorical(logits=logits, validate_args=False),
            components(parameter, parameter),
            transport=transport,
            validate_args=False,
        )
        points = q.sample((200,)) if points is None else points.float()
        z = q.reparameterize(points)
        assert z.dtype == each
        results.append(torch.autograd.grad(z.float().tanh().mean(), (parameter, logits)))
    for low, exact in zip(*results, strict=True):
        assert low.dtype == dtype
        torch.testing.assert_close(low.float(), exact, rtol=0.02, atol=1e-3)


@in_pairs
@pytest.mark.parametrize(
    "components",
    [
        Independent(Gamma(torch.ones(2, 2, 3), 1.0), 2),
        Independent(Normal(torch.ones(2, 2, 3), 1.0), 2),
        Independent(Laplace(torch.ones(2, 3), 1.0), 1),
        MultivariateNormal(torch.ones(2, 3), torch.eye(3)),
    ],
)
@pytest.mark.parametrize("sample_shape", [(0,), (3, 0)])
@pytest.mark.parametrize("weight_gradient", ["pathwise", "hybrid"])
def test_no_samples(components, sample_shape, weight_gradient):
    weights = Categorical(logits=torch.zeros(2, requires_grad=True))
    q = MixtureSameFamily(weights, components, weight_gradient=weight_gradient)
    z = q.rsample(sample_shape)
    assert z.shape == sample_shape + components.event_shape
    assert q.log_prob(z).shape == sample_shape


class Bare(Distribution):
    """Without an expand."""

    arg_constraints = {"scale": constraints.positive}
    support = constraints.nonnegative

    def __init__(self, scale, validate_args=None):
        self.scale = scale
        super().__init__(scale.shape, validate_args=validate_args)

    def sample(self, sample_shape=torch.Size()):
        return self.scale * torch.rand(self._extended_shape(sample_shape)).log().neg()

    def log_prob(self, value):
        return -value / self.scale - self.scale.log()

    def cdf(self, value):
        return 1 - (-value / self.scale).exp()


@register_velocity(Bare)
def _(distribution, value):
    return distribution.scale * (value / distribution.scale.detach())


def test_without_expand():
    """Of use where the shapes fit, and refused with a reason where they do not."""
    scale = torch.tensor(2.0, requires_grad=True)
    Mixture(even(), [Bare(scale), Exponential(1.0)]).rsample((5,)).sum().backward()
    assert scale.grad > 0
    for build in (
        lambda: MixtureSameFamily(Categorical(torch.ones(3, 2)), Bare(TWO)),
        lambda: Mixture(Categorical(torch.ones(3, 2)), [Bare(scale), HalfNormal(1.0)]),
    ):
        with pytest.raises(NotImplementedError, match=r"Bare of batch shape \(3.*expand"):
            build()


def test_names_of_components_in_repr():
    q = Mixture(even(), [Normal(0.0, 1.0), Laplace(0.0, 1.0)])
    assert "Normal(loc: 0.0, scale: 1.0)" in repr(q)
    assert "Laplace(loc: 0.0, scale: 1.0)" in repr(q)


@pytest.mark.parametrize(
    "base",
    [
        MultivariateNormal(torch.zeros(2, 4, 3), torch.eye(3)),
        MultivariateStudentT(torch.tensor(4.0), torch.zeros(2, 4, 3), torch.eye(3)),
        TransformedDistribution(
            MultivariateNormal(torch.zeros(2, 4, 3), torch.eye(3)), [TanhTransform()]
        ),
    ],
    ids=lambda base: type(base).__name__,
)
def test_several_vectors_of_dependent_coordinates(base):
    """Whitening them is not implemented, and without it the variance may be infinite."""
    weights = Categorical(logits=torch.zeros(2, requires_grad=True))
    with pytest.raises(NotImplementedError, match="weight_gradient='hybrid'"):
        MixtureSameFamily(weights, Independent(base, 1))
    q = MixtureSameFamily(weights, Independent(base, 1), weight_gradient="hybrid")
    assert q.rsample((5,)).shape == (5, 4, 3)


def student_t(locs, scale_tril):
    return MultivariateStudentT(torch.tensor(5.0, dtype=torch.float64), locs, scale_tril)


def multivariate_normal(locs, scale_tril):
    return MultivariateNormal(locs, scale_tril=scale_tril)


@pytest.mark.parametrize("family", [student_t, multivariate_normal])
def test_vectors_whose_covariance_is_singular_to_rounding(family):
    """It has no Cholesky factor; their gradients are those of what they are images of."""
    locs = torch.tensor([[0.5, -1.0, 0.0], [0.0, 1.0, 2.0]], dtype=torch.float64)
    tril = torch.tensor([[3e6, 0, 0], [2e6, 1e-3, 0], [1e6, 2e-3, 1e-3]], dtype=torch.float64)

    def gradient(factor):
        torch.manual_seed(0)
        logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        components = family(locs @ factor.mT, factor.expand(2, 3, 3))
        z = MixtureSameFamily(Categorical(logits=logits), components).rsample((200,))
        whitened = torch.linalg.solve_triangular(factor, z.mT, upper=False)
        return torch.autograd.grad(whitened.sin().sum(), logits)[0]

    found, expected = gradient(tril), gradient(torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert expected.abs().min() > 1


class Slow(Gamma):
    """A Gamma with a rule of its own."""


@register_velocity(Slow)
def _(distribution, value):
    return value + 7 * (distribution.rate - distribution.rate.detach())


def test_the_most_specific_rule_counts():
    """Also where the family computes points and tails at once."""
    rate = torch.tensor([1.0, 2.0], requires_grad=True)
    logits = torch.zeros(2, requires_grad=True)
    q = MixtureSameFamily(Categorical(logits=logits), Slow(TWO, rate))
    q.reparameterize(torch.tensor([0.5])).sum().backward()
    torch.testing.assert_close(rate.grad.sum(), torch.tensor(7.0))
    assert logits.grad.abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_concentrated_angles_near_the_cut(dtype):
    """The density there exceeds that at samples of the other component by e^2000."""
    loc = torch.tensor([0.0, 3.1], dtype=dtype, requires_grad=True)
    concentration = torch.full((2,), 1000.0, dtype=dtype, requires_grad=True)
    logits = torch.zeros(2, dtype=dtype, requires_grad=True)
    q = MixtureSameFamily(Categorical(logits=logits), VonMises(loc, concentration))
    q.rsample((1000,)).sin().mean().backward()
    for parameter in (loc, concentration, logits):
        assert parameter.grad.isfinite().all()
    torch.testing.assert_close(loc.grad[0].double(), torch.tensor(0.5).double(), rtol=0, atol=0.06)
