"""Mixtures of atoms beside densities, and of densities on different intervals."""

import math

import pyro
import pytest
import torch
from pyro.distributions import Delta, MultivariateStudentT
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch.distributions import (
    Categorical,
    Dirichlet,
    Exponential,
    Gamma,
    Independent,
    Normal,
    Uniform,
)

from pyro_mixtures import (
    BaselinedTrace_ELBO,
    MarginalizedMixture_ELBO,
    Mixture,
    MixtureSameFamily,
)
from pyro_mixtures.estimators import hybrid, pathwise, score
from pyro_mixtures.estimators.strata import component_samples
from tests.families.refusing import assert_refused, mixed, refused
from tests.families.registry import COMPONENTS, EXACT
from tests.families.test_unbiased_monte_carlo import line
from tests.registry import gradients, leaves, relative_error

UNIVARIATE = {
    name: family
    for name, family in COMPONENTS.items()
    if 1 in family.dims and family.event(1) != (2,) and not name.startswith("shared")
}
"""Of numbers; the quadrature knows nothing of where a shared map has its kinks."""
each_univariate = pytest.mark.parametrize("family", UNIVARIATE.values(), ids=UNIVARIATE)


def double(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def beside_atoms(family):
    """Parameters, and a mixture of batch shape (1,) of them: a density between two atoms.

    One is inside of the support, the other one, which all families but the bounded ones have too,
    next to zero.
    """
    own = family.parameters(K=1, D=1)
    low, high = (float(torch.as_tensor(x).detach().mean()) for x in family.interval(own))
    middle = (low + high) / 2 if math.isfinite(high) else max(low, 0) + 1.3
    places = {"first": double(middle), "last": double(max(low, -0.5))}
    more = leaves({**places, "weights": double(0.3, -0.2, 0.5)})
    density = family.build(own)
    density = density[0].expand((1,)) if isinstance(density, list) else density
    event = density.event_shape
    first, last = (Delta(more[name].reshape(1, *event), event_dim=len(event)) for name in places)
    weights = Categorical(logits=more["weights"])
    mixture = Mixture(weights, [first, density, last], weight_gradient="hybrid")
    del own["logits"]
    return {**own, **more}, mixture, density


def cost(z, mixture):
    """Bounded, neither even nor odd, with a density of the mixture's own in it."""
    x = z.reshape(z.shape[: z.dim() - len(mixture.event_shape)])
    log_prob = mixture.log_prob(z)
    return (x.asinh() + 0.4).sin() + 0.3 * log_prob / (1 + log_prob.square())


@each_univariate
def test_gradients_beside_atoms(family):
    """The sum over atoms and a quadrature of what samples carry, against that of the cost."""
    parameters, mixture, density = beside_atoms(family)
    points, weights = line(family, {**parameters, "logits": torch.zeros(1)})
    event = mixture.event_shape
    points = points.reshape(-1, 1, *event)
    places = torch.stack([parameters[name].detach() for name in ("first", "last")])
    probs = mixture.mixture_distribution.probs[0]
    mass = density.log_prob(points).exp() * weights.reshape(-1, 1)  # (S, 1)
    assert float(mass.detach().sum()) == pytest.approx(1, abs=1e-8)

    def expected(on_atoms, elsewhere):
        own = (probs[[0, 2]].unsqueeze(-1) * on_atoms).sum()
        return own + probs[1] * (mass * elsewhere).sum()

    moved = torch.stack([parameters[name] for name in ("first", "last")]).reshape(2, 1, *event)
    exact = gradients(expected(cost(moved, mixture), cost(points, mixture)), parameters)
    z = mixture.reparameterize(torch.cat([places.reshape(2, 1, *event), points]))
    value, term = cost(z, mixture), mixture.score_parts(z).score_function
    surrogate = value + value.detach() * term
    probs, mass = probs.detach(), mass.detach()
    found = gradients(expected(surrogate[:2], surrogate[2:]), parameters)
    assert relative_error(found, exact) < 1e-6


@each_univariate
def test_what_beside_atoms_means(family):
    _, mixture, density = beside_atoms(family)
    z, index = mixture.sample_with_index((200,))
    x = z.reshape(200, 1)
    probs = mixture.mixture_distribution.probs
    atoms = [mixture.component_distributions[j].mean.reshape(1) for j in (0, 2)]
    for j, place in zip((0, 2), atoms, strict=True):
        assert torch.equal(x == place, index == j)
    between, middle = index == 1, x[index == 1][0]
    torch.testing.assert_close(
        mixture.log_prob(z).exp()[index == 0],
        probs[..., :1].expand(int((index == 0).sum()), 1).squeeze(-1),
        **EXACT,
    )
    own = density.log_prob(torch.where(between.reshape(x.shape), x, middle).reshape(z.shape))
    own = own + probs[..., 1].log()
    torch.testing.assert_close(mixture.log_prob(z)[between], own[between], **EXACT)
    chosen = torch.nn.functional.one_hot(index, 3).to(z)
    torch.testing.assert_close(mixture.responsibilities(z), chosen, **EXACT)
    assert mixture.support.check(z).all()
    assert z.requires_grad is False
    assert mixture.rsample((3,)).requires_grad


def zero_inflated(parameters, **options):
    atom = Delta(torch.zeros((), dtype=torch.float64))
    gammas = [Gamma(parameters["shape"][j], parameters["rate"][j]) for j in range(2)]
    weights = Categorical(logits=parameters["logits"])
    return Mixture(weights, [atom, *gammas], weight_gradient="hybrid", **options)


def parameters_of_zeros():
    return leaves(
        {"logits": double(0.2, 0.1, -0.3), "shape": double(2.0, 4.0), "rate": double(1.0, 0.8)}
    )


def test_quantiles_and_moments_beside_an_atom():
    q = zero_inflated(parameters_of_zeros())
    p = float(q.mixture_distribution.probs.detach()[0])
    level = double(0.0, p / 2, p - 1e-12, p + 1e-3, 0.9, 1.0)
    quantile = q.icdf(level)
    assert quantile[:3].tolist() == [0, 0, 0]
    torch.testing.assert_close(q.cdf(quantile[3:5]), level[3:5], rtol=1e-12, atol=0)
    assert quantile[5] == math.inf
    assert q.cdf(double(0.0)).detach().item() == pytest.approx(p)
    z = q.sample((200_000,))  # off by 5 standard errors once in 2e6
    assert abs(float(z.mean() - q.mean.detach())) < 5 * float(q.stddev.detach()) / 200_000**0.5
    assert abs(float((z == 0).double().mean()) - p) < 5 * (p * (1 - p) / 200_000) ** 0.5


def test_vectors_beside_an_atom():
    """On a point of the plane, with a batch of weights; the rest of a line is no atom."""
    locs = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    normal = Independent(Normal(locs, torch.ones(2).double()), 1)
    atom = Independent(Delta(double(1.0, 2.0)), 1)
    weights = Categorical(logits=torch.zeros(4, 2).double())
    q = Mixture(weights, [atom, normal], weight_gradient="hybrid")
    z = double([1.0, 2.0], [1.0, 0.0]).unsqueeze(1)
    expected = torch.stack([q.log_weights[0, 0], q.log_weights[0, 1] + normal.log_prob(z)[1, 0]])
    torch.testing.assert_close(q.log_prob(z), expected.unsqueeze(-1).expand(2, 4), **EXACT)
    points = q.rsample((50,))
    on_atom = (points == double(1.0, 2.0)).all(-1)
    (found,) = torch.autograd.grad(points.sum(), locs)
    assert found.tolist() == [float((~on_atom).sum())] * 2
    assert float(q.marginal_cdf(double(1.0, 2.0)).detach()[0, 0]) == pytest.approx(
        0.5 + 0.5 * 0.8413447460685
    )


@pytest.mark.parametrize("objective", [Trace_ELBO, BaselinedTrace_ELBO, MarginalizedMixture_ELBO])
def test_in_an_objective(objective):
    """Zeros in model and guide: within 5 standard errors of a quadrature."""
    prior = zero_inflated({name: x.detach() for name, x in parameters_of_zeros().items()})

    def model():
        z = pyro.sample("z", prior)
        pyro.sample("x", pyro.distributions.Normal(z, 1.0), obs=double(1.2)[0])

    parameters = parameters_of_zeros()
    for value in parameters.values():
        value.data.mul_(0.7)

    def guide():
        pyro.sample("z", zero_inflated(parameters))

    s = torch.linspace(-25, 5, 4000, dtype=torch.float64)
    step, z = s[1] - s[0], torch.cat([double(0.0), s.exp()])
    weights = torch.cat([double(1.0), s.exp() * step])
    q = zero_inflated(parameters)
    log_q = q.log_prob(z)
    elbo = prior.log_prob(z) + Normal(z, 1.0).log_prob(double(1.2)) - log_q
    exact = gradients(-(weights * log_q.exp() * elbo).sum(), parameters)
    found = []
    for _ in range(30):
        loss = objective(num_particles=300, vectorize_particles=True)
        value = loss.differentiable_loss(model, guide)
        found.append(gradients(value, parameters))
    for name, value in exact.items():
        each = torch.stack([row[name] for row in found])
        assert ((each.mean(0) - value).abs() < 5 * each.std(0) / 30**0.5).all(), name
    with pytest.raises(NotImplementedError, match="does not use the score term .* Delta, Gamma"):
        gradients(TraceMeanField_ELBO().differentiable_loss(model, guide), parameters)


APART = {
    "half-line": lambda x: [Normal(x["loc"], x["scale"]), Exponential(x["scale"])],
    "interval": lambda x: [
        Normal(x["loc"], x["scale"]),
        Uniform(*double(-1.0, 2.0)),
        Delta(double(0.5)[0]),
    ],
    "gap": lambda x: [Uniform(*double(0.0, 1.0)), Uniform(*double(2.0, 3.0))],
}


def test_different_intervals_without_validation():
    parts = [Normal(*double(0.0, 1.0)), Exponential(double(0.5)[0])]
    weights, z = Categorical(torch.ones(2).double()), double(-1.0, 2.0)
    checked, unchecked = (
        Mixture(weights, parts, weight_gradient="hybrid", validate_args=validate)
        for validate in (True, False)
    )
    assert torch.equal(checked.log_prob(z), unchecked.log_prob(z))
    assert float(unchecked.log_prob(z)[0]) == pytest.approx(math.log(0.5) - 0.5 - 0.918938533)
    assert not unchecked.has_rsample


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    atom, loc, scale = torch.tensor([0.3, 0.0, 1.0], dtype=dtype)
    loc.requires_grad_()
    weights = Categorical(logits=torch.zeros(2, dtype=dtype))
    q = Mixture(weights, [Delta(atom), Normal(loc, scale)], weight_gradient="hybrid")
    z = q.rsample((50,))
    (slope,) = torch.autograd.grad(z.sum(), loc)
    assert z.dtype == slope.dtype == q.log_prob(z).dtype == dtype
    assert float(slope) == float((z != atom).sum()) > 10
    assert float(q.log_prob(atom).exp().detach()) == pytest.approx(0.5, abs=0.01)
    assert float(q.icdf(0.5)) == float(atom)


@pytest.mark.parametrize("place", [0.1, -2.3])
def test_values_of_another_precision_are_on_the_atom(place):
    """Data of double precision beside parameters of single, and the other way round."""
    values, log_half = torch.tensor([place, place + 1e-3], dtype=torch.float64), math.log(0.5)
    for of_value, of_atom in ((torch.float64, torch.float32), (torch.float32, torch.float64)):
        atom = Delta(torch.tensor(place, dtype=of_atom))
        density = Normal(torch.tensor(0.0, dtype=of_atom), 1.0)
        q = Mixture(Categorical(torch.ones(2)), [atom, density], weight_gradient="hybrid")
        z = values.to(of_value)
        expected = torch.stack([torch.zeros(()), density.log_prob(z[1]).float()]) + log_half
        torch.testing.assert_close(q.log_prob(z).float(), expected, rtol=1e-5, atol=1e-6)
        below = torch.distributions.Normal(0.0, 1.0).cdf(z) / 2
        torch.testing.assert_close(q.cdf(z).float(), (below + 0.5).float(), rtol=1e-5, atol=1e-6)


def test_rows_of_vmap():
    """Their ends are hidden: they count as those of one support."""
    low = torch.zeros(4, dtype=torch.float64)

    def log_prob(low):
        weights = Categorical(torch.ones(2).double(), validate_args=False)
        parts = [Uniform(low, low + width, validate_args=False) for width in (1.0, 1.0)]
        options = {"weight_gradient": "hybrid", "validate_args": False}
        return Mixture(weights, parts, **options).log_prob(low + 0.5)

    assert torch.func.vmap(log_prob)(low).tolist() == [0.0] * 4


@pytest.mark.parametrize("name", APART)
def test_different_intervals(name):
    """The mass is one, and the score function's gradient that of the expected cost."""
    parameters = leaves({"loc": double(0.3)[0], "scale": double(0.8)[0]})
    parts = APART[name](parameters)
    parameters |= leaves({"logits": double(0.2, -0.3, 0.1)[: len(parts)]})
    weights = Categorical(logits=parameters["logits"])
    q = Mixture(weights, parts, weight_gradient="hybrid")
    step = 1e-4
    edges = torch.arange(-12, 30, step, dtype=torch.float64)
    z, mass = torch.cat([edges + step / 2, double(0.5)]), torch.full((len(edges),), step)
    atom = float(any(isinstance(part, Delta) for part in parts))
    mass = torch.cat([mass.double(), double(atom)])
    z, mass = z[q.support.check(z)], mass[q.support.check(z)]
    log_q = q.log_prob(z)
    assert float((mass * log_q.exp()).detach().sum()) == pytest.approx(1, abs=1e-6)
    value = (z + 0.4).sin() + log_q.detach() / 3
    exact = gradients((mass * log_q.exp() * value).sum(), parameters)
    shares = (mass * log_q.exp()).detach()
    parts = q.score_parts(z)
    found = gradients((shares * value * parts.score_function).sum(), parameters)
    assert relative_error(found, exact) < 1e-10
    for each in (q, q.expand((3,)), q.with_weight_gradient("hybrid"), hybrid(q)):
        assert not each.has_rsample
        assert not each.sample((5,)).requires_grad
    for draw in (q.rsample, score(q).mixture.rsample, lambda: component_samples(q)):
        with pytest.raises(NotImplementedError, match="densities of one support for samples"):
            draw()
    level = torch.linspace(0, 1, 101).double()
    quantile = q.icdf(level[1:-1])
    assert (q.cdf(quantile) >= level[1:-1] - 1e-12).all()
    inside = quantile[1:] > quantile[:-1]
    assert (q.cdf(quantile.nextafter(double(-99.0)))[1:] <= level[2:-1] + 1e-12)[inside].all()
    assert q.support.check(q.sample((500,))).all()
    names = ", ".join(type(each).__name__ for each in q.component_distributions)
    assert repr(q.support) == f"UnionConstraint({names})"


def test_learns_different_intervals():
    """The weights that samples of a zero-inflated model with a half-line have."""
    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    target = double(0.8, 0.2).log()

    def build(logits):
        parts = [Normal(*double(0.0, 1.0)), Exponential(double(0.5)[0])]
        return Mixture(Categorical(logits=logits), parts, weight_gradient="hybrid")

    svi = SVI(
        lambda: pyro.sample("z", build(target)),
        lambda: pyro.sample("z", build(pyro.param("logits", logits.detach().clone()))),
        pyro.optim.Adam({"lr": 0.05}),
        Trace_ELBO(num_particles=50, vectorize_particles=True),
    )
    pyro.clear_param_store()
    for _ in range(150):
        svi.step()
    assert float(pyro.param("logits").softmax(-1)[0].detach()) == pytest.approx(0.8, abs=0.08)


ZERO, LEARNED = torch.zeros(()), torch.ones((), requires_grad=True)


@refused(
    {
        "an atom without a choice": (
            lambda: mixed(Delta(ZERO), Gamma(2.0, 1.0)),
            ["weight_gradient='hybrid'", "Delta, Gamma"],
        ),
        "an atom and pathwise": (
            lambda: mixed(Delta(ZERO), Normal(2.0, 1.0), weight_gradient="pathwise"),
            ["weight_gradient='hybrid'", "Delta, Normal"],
        ),
        "an atom, unchecked": (
            lambda: mixed(Delta(ZERO), Gamma(2.0, 1.0), validate_args=False),
            ["weight_gradient='hybrid'"],
        ),
        "another estimator": (
            lambda: pathwise(mixed(Delta(ZERO), Gamma(2.0, 1.0), weight_gradient="hybrid")),
            ["weight_gradient='hybrid'"],
        ),
        "different supports": (
            lambda: mixed(Normal(0.0, 1.0), Gamma(2.0, 1.0)),
            ["same support", "Mixture with weight_gradient='hybrid'"],
        ),
        "densities at atoms": (
            lambda: mixed(Delta(ZERO, 1.5), Gamma(2.0, 1.0), weight_gradient="hybrid"),
            ["Delta without log_density", "1.5"],
        ),
        "simplex": (
            lambda: mixed(
                Delta(torch.ones(3) / 3, event_dim=1),
                Dirichlet(torch.ones(3)),
                weight_gradient="hybrid",
            ),
            ["coordinates in intervals", "Dirichlet on Simplex()"],
        ),
        "one family on several": (
            lambda: MixtureSameFamily(
                Categorical(torch.ones(2)),
                Uniform(torch.tensor([0.0, 1.0]), 2.0),
                weight_gradient="hybrid",
            ),
            ["same support", "lower ends 0 and 1"],
        ),
    }
)
def test_mistakes(build, words):
    assert_refused(ValueError, build, words)


@refused(
    {
        "learned ends": (
            lambda: mixed(Normal(0.0, 1.0), Uniform(ZERO, LEARNED), weight_gradient="hybrid"),
            ["fixed ends", "Normal, Uniform"],
        ),
        "learned atoms": (
            lambda: mixed(
                Delta(LEARNED), Normal(0.0, 1.0), Gamma(1.0, 1.0), weight_gradient="hybrid"
            ),
            ["fixed places of atoms"],
        ),
        "densities without distribution functions": (
            lambda: mixed(
                Delta(torch.zeros(2), event_dim=1),
                MultivariateStudentT(torch.tensor(3.0), torch.zeros(2), torch.eye(2)),
                weight_gradient="hybrid",
            ).marginal_cdf(torch.zeros(2)),
            ["distribution functions", "cdf and icdf", "MultivariateStudentT"],
        ),
        "atoms of one family": (
            lambda: MixtureSameFamily(Categorical(torch.ones(2)), Delta(torch.ones(2))),
            ["Delta", "move given points"],
        ),
    }
)
def test_what_has_no_gradient(build, words):
    assert_refused(NotImplementedError, build, words)
