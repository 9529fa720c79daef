"""Networks that make mixtures of any family."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch.distributions import Categorical, Independent

from pyro_mixtures import BaselinedTrace_ELBO, MixtureSameFamily
from pyro_mixtures.nn import ConditionalMixtureSameFamily
from tests.nn.conditional import (
    SHAPES,
    assert_compiles,
    assert_pyro,
    assert_reparameterized,
    assert_survives,
    assert_transforms,
    directional,
)
from tests.registry import randn

LOW, ONES = torch.tensor([0.5, 2.0, 3.0]), torch.ones(3)
LOCS = torch.tensor([-1.0, 0.0, 2.0])
VECTORS = torch.tensor([[-1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
FACTORS = torch.tensor([[1.0, 0.0], [0.5, 2.0]]).expand(3, 2, 2)

EXAMPLES = {
    "Normal": (dist.Normal(LOCS, ONES), ()),
    "Laplace": (dist.Laplace(LOCS, ONES), ()),
    "Logistic": (dist.Logistic(LOCS, ONES), ()),
    "Gumbel": (dist.Gumbel(LOCS, ONES), ()),
    "Cauchy": (dist.Cauchy(LOCS, ONES), ()),
    "StudentT": (dist.StudentT(4 * ONES, LOCS, ONES), ()),
    "StudentT of fixed df": (dist.StudentT(4 * ONES, LOCS, ONES), ("df",)),
    "LogNormal": (dist.LogNormal(LOCS, ONES), ()),
    "HalfNormal": (dist.HalfNormal(LOW), ()),
    "HalfCauchy": (dist.HalfCauchy(LOW), ()),
    "Exponential": (dist.Exponential(LOW), ()),
    "Weibull": (dist.Weibull(LOW, ONES), ()),
    "Gamma": (dist.Gamma(LOW, ONES), ()),
    "InverseGamma": (dist.InverseGamma(LOW, ONES), ()),
    "Chi2": (dist.Chi2(LOW), ()),
    "Pareto": (dist.Pareto(ONES, LOW), ("scale",)),
    "Beta": (dist.Beta(LOW, ONES), ()),
    "Kumaraswamy": (dist.Kumaraswamy(LOW, ONES), ()),
    "Uniform": (dist.Uniform(0 * ONES, ONES), ("low", "high")),
    "VonMises": (dist.VonMises(LOCS, ONES), ()),
    "vectors of Gamma": (
        dist.Gamma(LOW.unsqueeze(-1).expand(3, 2), torch.ones(3, 2)).to_event(1),
        (),
    ),
    "matrices of Normal": (dist.Normal(torch.arange(12.0).reshape(3, 2, 2), 1.0).to_event(2), ()),
    "MultivariateNormal": (dist.MultivariateNormal(VECTORS, scale_tril=FACTORS), ()),
    "LowRankMultivariateNormal": (
        dist.LowRankMultivariateNormal(VECTORS, torch.ones(3, 2, 1), torch.ones(3, 2)),
        (),
    ),
    "MultivariateStudentT": (dist.MultivariateStudentT(4 * ONES, VECTORS, FACTORS), ()),
    "Dirichlet": (dist.Dirichlet(1.0 + torch.eye(3)), ()),
}
"""Components, and the names of parameters that stay."""

each_example = pytest.mark.parametrize("name", EXAMPLES)


def base(components):
    while isinstance(components, Independent):
        components = components.base_dist
    return components


def parameters(components):
    """Those by which the example was given."""
    names = set(base(components).arg_constraints) - {"covariance_matrix", "precision_matrix"}
    return {name: getattr(base(components), name) for name in sorted(names)}


def network(name, **options):
    example, fixed = EXAMPLES[name]
    return ConditionalMixtureSameFamily(2, example, fixed=fixed, **options)


def trained(name, **options):
    """Away from the start, in float64."""
    module = network(name, hidden=(4,), **options).double()
    with torch.no_grad():
        for value in module.parameters():
            value.add_(0.3 * torch.randn_like(value))
    return module


@each_example
def test_densities_are_those_of_the_family(name):
    """By torch's own class, at the parameters that the mixture shows, which are allowed ones."""
    module = trained(name)
    example, fixed = EXAMPLES[name]
    for shape in SHAPES:
        q = module(randn(*shape, 2))
        assert type(q) is MixtureSameFamily
        assert (q.batch_shape, q.event_shape) == (shape, example.event_shape)
        found = base(q.component_distribution)
        assert type(found) is type(base(example))
        given = parameters(example)
        for key, start in given.items():
            value = getattr(found, key)
            assert value.shape == shape + start.shape
            if key in fixed:
                torch.testing.assert_close(value, start.double().expand_as(value))
            else:
                assert type(found).arg_constraints[key].check(value).all()
                assert not torch.allclose(value, start.double().expand_as(value))
        again = type(found)(**{key: getattr(found, key) for key in given})
        event_dim = len(example.event_shape) - len(base(example).event_shape)
        again = Independent(again, event_dim) if event_dim else again
        weights = Categorical(logits=q.component_logits)
        reference = torch.distributions.MixtureSameFamily(weights, again)
        z = q.sample((3,))
        torch.testing.assert_close(q.log_prob(z), reference.log_prob(z))


@each_example
def test_gradients_of_densities(name):
    module, context = trained(name), randn(5, 2)
    z = module(context).sample()
    torch.testing.assert_close(
        *directional(lambda: module(context).log_prob(z).sum(), module), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", ["Gamma", "Beta", "Dirichlet", "vectors of Gamma"])
def test_gradients_of_samples(name):
    module = trained(name, weight_gradient="pathwise")
    assert_reparameterized(module, randn(2), lambda q: (q.mean.square() + q.variance).sum())


@each_example
def test_starts_at_the_example(name):
    module = network(name, hidden=(64,))
    example, _ = EXAMPLES[name]
    q = module(torch.randn(500, 2))
    assert (q.log_weights.exp() - 1 / 3).abs().max() < 0.05
    for key, start in parameters(example).items():
        value = getattr(base(q.component_distribution), key)
        assert (value - start).abs().max() < 0.15 * start.abs().max().clamp_min(1)
    module.network.output.weight.data.zero_()
    q = module(torch.zeros(2))
    for key, start in parameters(example).items():
        torch.testing.assert_close(getattr(base(q.component_distribution), key), start)


def test_units_of_positive_parameters_do_not_matter():
    """They are told by the example."""
    context = torch.randn(50, 2)
    for rate in (1e-6, 1e6):
        torch.manual_seed(1)
        one = ConditionalMixtureSameFamily(2, dist.Gamma(LOW, ONES))(context)
        torch.manual_seed(1)
        other = ConditionalMixtureSameFamily(2, dist.Gamma(LOW, rate * ONES))(context)
        ratio = other.component_distribution.rate / one.component_distribution.rate
        torch.testing.assert_close(ratio, torch.full_like(ratio, rate))


@pytest.mark.parametrize("name", ["Gamma", "Beta", "Dirichlet", "LogNormal", "MultivariateNormal"])
@pytest.mark.parametrize("size", [1e2, 1e4])
def test_extreme_contexts(name, size):
    """In float32 parameters are allowed, above the floor, and gradients finite."""
    module = network(name, floor=0.01)
    with torch.no_grad():
        module.network.output.weight.normal_()
    q = module(size * torch.randn(100, 2))
    example, _ = EXAMPLES[name]
    for key, start in parameters(example).items():
        value = getattr(base(q.component_distribution), key)
        if key == "scale_tril":
            value, start = value.diagonal(dim1=-2, dim2=-1), start.diagonal(dim1=-2, dim2=-1)
        elif key == "loc":
            continue
        ratio = (value / start).detach().amin()
        assert 0.01 * (1 - 1e-5) <= ratio < 0.0101
    value = example.sample()[:1].expand(100, *example.event_shape)
    gradients = torch.autograd.grad(q.log_prob(value).mean(), list(module.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", ["Gamma", "Dirichlet", "MultivariateStudentT", "Pareto"])
def test_copies(name):
    module = network(name, hidden=(4,))
    context = torch.randn(5, 2)
    z = module(context).sample()
    assert_survives(module, context, z)
    other = network(name, hidden=(4,))
    with torch.no_grad():
        for value in (*module.parameters(), *module.buffers()):
            value.mul_(1.1)
    z = module(context).sample()
    assert not torch.equal(other(context).log_prob(z), module(context).log_prob(z))
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(context).log_prob(z), module(context).log_prob(z))


@pytest.mark.filterwarnings("default")  # torch warns about its own code
def test_compiled():
    module = network("Gamma", hidden=(4,), validate_args=False)
    assert_compiles(module, torch.randn(5, 2), torch.rand(5))


@pytest.mark.parametrize("name", ["Normal", "Gamma", "MultivariateNormal"])
def test_transforms(name):
    module, context = network(name, hidden=(4,), validate_args=False), torch.randn(5, 2)
    assert_transforms(module, context, module(context).sample())


@pytest.mark.parametrize("name", ["Gamma", "Dirichlet", "StudentT of fixed df"])
def test_in_pyro(name):
    assert_pyro(network(name, hidden=(4,)), torch.randn(5, 2))


def test_options_go_to_the_mixture():
    q = network("Normal", transport="telescoping", weight_gradient="hybrid")(torch.zeros(2))
    assert (q.transport, q.weight_gradient) == ("telescoping", "hybrid")
    q = network("Gamma", validate_args=False).condition(torch.zeros(2))
    parts = (q, q.component_distribution, q.mixture_distribution)
    assert not any(part._validate_args for part in parts)


def test_recovers_a_conditional_density():
    """Shapes, rates and weights that depend on the context, by maximum likelihood."""

    def truth(c):
        shape = torch.cat([(0.5 * c).exp(), 20 + 5 * c], -1)
        rate = torch.cat([torch.ones_like(c), 3 - c], -1)
        weights = Categorical(logits=torch.cat([c, -c], -1))
        return MixtureSameFamily(weights, dist.Gamma(shape, rate))

    context = torch.rand(3000, 1) * 2 - 1
    y = truth(context).sample()
    start = dist.Gamma(torch.tensor([1.0, 10.0]), torch.ones(2))
    module = ConditionalMixtureSameFamily(1, start, hidden=(16,))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    for _ in range(300):
        optimizer.zero_grad()
        (-module(context).log_prob(y).mean()).backward()
        optimizer.step()
        scheduler.step()
    fresh = torch.rand(20_000, 1) * 2 - 1
    y = truth(fresh).sample()
    with torch.no_grad():
        divergence = (truth(fresh).log_prob(y) - module(fresh).log_prob(y)).mean()
    assert divergence < 0.02


@pytest.mark.parametrize("elbo", [Trace_ELBO, BaselinedTrace_ELBO])
def test_amortized_guide(elbo):
    """The posterior of a rate, by counts."""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    counts = dist.Poisson(dist.Gamma(2.0, 1.0).sample((300,))).sample()

    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    module = ConditionalMixtureSameFamily(1, dist.Gamma(torch.tensor([1.0, 3.0]), torch.ones(2)))

    def guide(x):
        pyro.module("network", module)
        with pyro.plate("data", len(x)):
            pyro.sample("rate", module(x.unsqueeze(-1)))

    loss = elbo(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.97}), loss)
    for _ in range(100):
        svi.step(counts[torch.randperm(300)[:50]])
    with torch.no_grad():
        q = module(counts.unsqueeze(-1))
        z = q.sample((200,))
        exact = dist.Gamma(2 + counts, 2.0)
        assert (q.log_prob(z) - exact.log_prob(z)).mean() < 0.03


# what is taken from the example


@pytest.mark.parametrize("looked_at", ["covariance_matrix", "precision_matrix"])
def test_forms_that_were_looked_at_do_not_count(looked_at):
    """A distribution keeps what it derives, beside what it was given."""
    factors = torch.tensor([[1.0, 0.0], [0.5, 2.0]]).expand(len(VECTORS), 2, 2)
    start = dist.MultivariateNormal(VECTORS, scale_tril=factors)
    assert getattr(start, looked_at).shape == factors.shape
    found = ConditionalMixtureSameFamily(2, start)(torch.zeros(2)).component_distribution
    torch.testing.assert_close(found.scale_tril.detach(), factors)


def test_a_form_that_is_fixed_counts():
    covariance = torch.tensor([[1.0, 0.5], [0.5, 2.0]])
    start = dist.MultivariateNormal(VECTORS, covariance)
    assert start.scale_tril.shape == (len(VECTORS), 2, 2)
    module = ConditionalMixtureSameFamily(2, start, fixed=("covariance_matrix",))
    found = module(torch.ones(2)).component_distribution.covariance_matrix
    torch.testing.assert_close(found, covariance.expand_as(found))


class PowerNormal(dist.Normal):
    """A family with a setting that is no parameter."""

    def __init__(self, loc, scale, power=1, validate_args=None):
        self.power = power
        super().__init__(loc, scale.pow(power), validate_args=validate_args)


def test_settings_of_the_family_are_kept():
    module = ConditionalMixtureSameFamily(2, PowerNormal(LOCS, ONES, power=3))
    assert module(torch.zeros(2)).component_distribution.power == 3
