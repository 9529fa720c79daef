"""Networks that make mixtures of Normals."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from pyro_mixtures import BaselinedTrace_ELBO, GaussianScaleMixture, MixtureOfDiagNormals
from pyro_mixtures.nn import ConditionalMixture
from pyro_mixtures.nn.conditional_mixture import FAMILIES
from pyro_mixtures.numerics.score_use import UnusedScoreWarning
from tests.nn.conditional import (
    SHAPES,
    assert_compiles,
    assert_pyro,
    assert_reparameterized,
    assert_survives,
    assert_transforms,
    directional,
)
from tests.registry import FAMILIES as REGISTRY
from tests.registry import randn

each_family = pytest.mark.parametrize("family", FAMILIES)

LETTERS = {
    "diagonal": {"locs": "KD", "coord_scale": "KD"},
    "shared_diagonal": {"locs": "KD", "coord_scale": "D"},
    "full": {"locs": "KD", "scale_tril": "KDD"},
    "shared_full": {"locs": "KD", "scale_tril": "DD"},
    "scale": {"locs": "KD", "coord_scale": "D", "component_scale": "K"},
    "centered_scale": {"coord_scale": "D", "component_scale": "K"},
}


def trained(family, size=2, **options):
    """A network away from its start, in float64."""
    module = ConditionalMixture(3, size, 4, family=family, hidden=(5,), **options).double()
    with torch.no_grad():
        for value in module.parameters():
            value.add_(0.5 * torch.randn_like(value))
        module.unit.copy_(torch.linspace(0.5, 2.0, size))
        module.offset.copy_(torch.linspace(1.0, -1.0, size))
    return module


def scales(q):
    """Standard deviations of each coordinate of each component, ``(*B, K, D)``."""
    if isinstance(q, GaussianScaleMixture):
        return q.coord_scale.unsqueeze(-2) * q.component_scale.unsqueeze(-1)
    if "coord_scale" in q.given:
        return q.coord_scale.expand(q.batch_shape + q.coord_scale.shape[len(q.batch_shape) :])
    return q.scale_tril.diagonal(dim1=-2, dim2=-1)


# values


@each_family
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1, 3])
def test_densities_are_those_of_the_class(family, shape, size):
    """By torch's own distributions, at the parameters that the mixture shows."""
    module = trained(family, size)
    q = module.condition(randn(*shape, 3))
    assert type(q) is FAMILIES[family]
    assert (q.batch_shape, q.event_shape) == (shape, (size,))
    sizes = {"K": 4, "D": size}
    for name, letters in LETTERS[family].items():
        assert getattr(q, name).shape == (*shape, *(sizes[letter] for letter in letters))
    assert set(q.given) == set(LETTERS[family])
    reference = next(each for each in REGISTRY.values() if each.distribution is type(q))
    parameters = {**q.given, "component_logits": q.component_logits}
    value = q.rsample((5,))
    torch.testing.assert_close(q.log_prob(value), reference.reference(parameters).log_prob(value))


@each_family
def test_gradients_of_densities(family):
    module, context, value = trained(family), randn(6, 3), randn(6, 2)
    torch.testing.assert_close(
        *directional(lambda: module(context).log_prob(value).sum(), module), rtol=1e-6, atol=1e-6
    )


@each_family
def test_gradients_of_samples(family):
    module = trained(family, weight_gradient="pathwise")
    context = randn(3)
    assert_reparameterized(module, context, lambda q: (q.mean.square() + q.variance).sum())


# the start


@each_family
@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e4])
def test_components_start_apart_and_alike_for_all_contexts(family, spread):
    module = ConditionalMixture(3, 2, 4, family=family, hidden=(64, 64), init_spread=spread)
    with torch.no_grad():
        q, middle = module(torch.randn(1000, 3)), module(torch.zeros(3))
    # 0.1 is a fifth of a scale
    for name, value in q.given.items():
        unit = 1 if name == "component_scale" else spread
        assert (value - getattr(middle, name)).abs().max() < 0.1 * unit
    assert (q.log_weights - math.log(1 / 4)).abs().max() < 0.1
    ratios = scales(middle) / spread
    if family == "centered_scale":
        size = middle.component_scale
        assert torch.allclose(size[1:] / size[:-1], torch.tensor(2 ** (2 / 3)), rtol=0.1)
        return
    assert torch.allclose(ratios, torch.tensor(0.5), atol=0.1)
    expected = torch.tensor([-1.0, -1 / 3, 1 / 3, 1.0]).unsqueeze(-1)
    assert torch.allclose(middle.locs.sort(-2).values / spread, expected, atol=0.1)


def test_one_component_starts_in_the_middle():
    module = ConditionalMixture(3, 2, 1)
    module.network.output.weight.data.zero_()
    assert torch.equal(module(torch.ones(3)).locs, torch.zeros(1, 2))


@each_family
def test_start_at_a_mixture(family):
    """Of any unit."""
    start = trained(family)(randn(3))
    with torch.no_grad():
        offset = None if family == "centered_scale" else torch.tensor([1e5, 1.0]).double()
        start = start.affine(torch.tensor([1e4, 1e-4]).double(), offset)
    module = ConditionalMixture(3, 2, 4, family=family).double()
    assert module.start_at(start) is module
    module.network.output.weight.data.zero_()
    q = module(randn(7, 3))
    for name, value in start.given.items():
        if "component_scale" not in start.given or name == "locs":  # else a factor cancels
            torch.testing.assert_close(getattr(q, name), value.expand_as(getattr(q, name)))
    torch.testing.assert_close(scales(q), scales(start).expand_as(scales(q)))
    torch.testing.assert_close(q.log_weights, start.log_weights.expand(7, -1))
    torch.testing.assert_close(module.unit, start.stddev)


@pytest.mark.parametrize("balance", [1e-3, 1.0, 1e3])
def test_start_at_sizes_of_any_balance(balance):
    """A factor of sizes and shape that cancels, as of a fit in which one size collapsed."""
    start = GaussianScaleMixture(
        coord_scale=torch.ones(2) / balance,
        component_scale=torch.tensor([1e-4, 1.0, 0.8]) * balance,
        component_logits=torch.tensor([-9.0, 0.0, 0.0]),
    )
    module = ConditionalMixture(3, 2, 3, family="centered_scale").start_at(start)
    points = 0.3 + torch.rand(20, 2)
    module.network.output.weight.data.zero_()
    q = module(torch.zeros(3))
    wide = scales(q)[1:].detach()  # (2, D); the first is on the floor
    torch.testing.assert_close(wide, torch.tensor([[1.0, 1.0], [0.8, 0.8]]))
    torch.testing.assert_close(q.log_prob(points), start.log_prob(points), rtol=0, atol=1e-3)


def test_start_on_the_floor_is_above_it():
    """A mixture that was fitted to repeated samples may have a scale of zero, nearly."""
    start = MixtureOfDiagNormals(
        torch.tensor([[-1.0], [1.0]]), torch.full((2, 1), 1e-8), torch.zeros(2)
    )
    module = ConditionalMixture(3, 1, 2, scale_floor=1e-2).start_at(start)
    torch.testing.assert_close(module(torch.zeros(3)).coord_scale, torch.full((2, 1), 0.02))


@each_family
def test_start_at_samples(family):
    """The fit of samples, in their unit."""
    y = torch.cat([torch.randn(300, 2) + 8, 2 * torch.randn(300, 2) - 8]) * 1e3
    if family == "centered_scale":
        y = torch.cat([torch.randn(300, 2), 8 * torch.randn(300, 2)]) * 1e3
    module = ConditionalMixture(3, 2, 2, family=family, hidden=(8,))
    assert module.init_from(y) is module
    q = module(torch.zeros(3))
    fitted = FAMILIES[family].from_samples(y, 2, centered=family == "centered_scale")
    found, best = (each.log_prob(y).mean().item() for each in (q, fitted))
    assert found == pytest.approx(best, abs=0.05)


# numbers


@each_family
@pytest.mark.parametrize("size", [1e3, 1e6])
def test_extreme_contexts(family, size):
    """In float32 scales are above the floor, and what has a gradient keeps it finite."""
    options = {"scale_floor": 1e-2, "init_spread": 3.0, "weight_gradient": "hybrid"}
    module = ConditionalMixture(3, 2, 4, family=family, **options)
    with torch.no_grad():
        module.network.output.weight.normal_()
    context = size * torch.randn(200, 3)
    q = module(context)
    least = scales(q).detach().amin()
    assert 0.03 * (1 - 1e-5) <= least < 0.031
    loss = -q.log_prob(torch.randn(200, 2)).mean()
    parts = q.score_parts(q.rsample())
    for output in (loss, (parts.log_prob + parts.score_function).mean()):
        values = torch.autograd.grad(output, list(module.parameters()), retain_graph=True)
        assert all(value.isfinite().all() for value in values)
        assert sum(value.abs().sum() for value in values) > 0


@each_family
def test_densities_are_bounded(family):
    """Where all outputs of scales are as low as they can be: the likelihood has a maximum."""
    module = ConditionalMixture(1, 2, 3, family=family, scale_floor=0.1, init_spread=2.0)
    lowest = {name: torch.full(shape, -1e4) for name, shape in module.network.shapes.items()}
    lowest |= {"component_logits": torch.randn(3), "locs": torch.zeros(3, 2)}
    module.network.start_at(lowest)
    module.network.output.weight.data.zero_()
    found = module(torch.ones(5, 1)).log_prob(torch.zeros(5, 2))
    expected = -2 * math.log(0.2) - math.log(2 * math.pi)
    torch.testing.assert_close(found, torch.full((5,), expected))


@each_family
def test_copies(family):
    module = ConditionalMixture(3, 2, 4, family=family, hidden=(5,))
    module.start_at(module(torch.zeros(3)))
    context, value = torch.randn(6, 3), torch.randn(6, 2)
    assert_survives(module, context, value)
    other = ConditionalMixture(3, 2, 4, family=family, hidden=(5,), init_spread=5.0)
    assert not torch.allclose(other(context).log_prob(value), module(context).log_prob(value))
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(context).log_prob(value), module(context).log_prob(value))


@pytest.mark.filterwarnings("default")  # torch warns about its own code
def test_compiled():
    module = ConditionalMixture(3, 2, 4, family="full", hidden=(5,), validate_args=False)
    assert_compiles(module, torch.randn(6, 3), torch.randn(6, 2))


@each_family
def test_transforms(family):
    module = ConditionalMixture(3, 2, 4, family=family, hidden=(5,), validate_args=False)
    assert_transforms(module, torch.randn(6, 3), torch.randn(6, 2))


@each_family
def test_in_pyro(family):
    assert_pyro(ConditionalMixture(3, 2, 4, family=family, hidden=(5,)), torch.randn(6, 3))


def test_options_go_to_the_distribution():
    options = {"transport": "telescoping", "weight_gradient": "hybrid", "validate_args": False}
    q = ConditionalMixture(3, 2, 4, **options)(torch.zeros(3))
    assert (q.transport, q.weight_gradient, q._validate_args) == ("telescoping", "hybrid", False)


def test_layers():
    module = ConditionalMixture(3, 2, 4, hidden=(7, 8))
    shapes = [tuple(value.shape) for value in module.parameters()]
    assert shapes == [(7, 3), (7,), (8, 7), (8,), (20, 8), (20,)]
    hidden = [type(layer).__name__ for layer in module.network.hidden]
    assert hidden == ["Linear", "SiLU", "Linear", "SiLU"]
    assert len(list(ConditionalMixture(3, 2, 4, family="full").parameters())) == 2
    factors = ConditionalMixture(3, 3, 4, family="full").network.shapes["scale_tril"]
    assert factors == (4, 6)  # none for what is above the diagonal


# uses


def test_recovers_a_conditional_density():
    """Means, scales and weights that depend on the context, by maximum likelihood."""
    context = torch.rand(3000, 1) * 4 - 2

    def truth(c):
        locs = torch.cat([-1 + 0.5 * c, 1.5 - c], -1).unsqueeze(-1)
        scale = torch.cat([0.3 + 0.1 * c, 0.4 - 0.1 * c], -1).unsqueeze(-1)
        return MixtureOfDiagNormals(locs, scale, torch.cat([c, -c], -1))

    y = truth(context).sample()
    module = ConditionalMixture(1, 1, 2, hidden=(32,)).init_from(y)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for _ in range(400):
        optimizer.zero_grad()
        (-module(context).log_prob(y).mean()).backward()
        optimizer.step()
        scheduler.step()
    fresh = torch.rand(20_000, 1) * 4 - 2
    y = truth(fresh).sample()
    with torch.no_grad():
        divergence = (truth(fresh).log_prob(y) - module(fresh).log_prob(y)).mean()
        start = truth(fresh).log_prob(y) - ConditionalMixture(1, 1, 2)(fresh).log_prob(y)
    assert start.mean() > 1
    assert divergence < 0.03


@pytest.mark.parametrize(
    ("elbo", "weight_gradient"), [(Trace_ELBO, "pathwise"), (BaselinedTrace_ELBO, "clustered")]
)
def test_amortized_guide(elbo, weight_gradient):
    """The posteriors of a linear model, within plates, of minibatches."""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    x = 2**0.5 * torch.randn(200, 3, 1)

    def model(x):
        with pyro.plate("columns", 3), pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    network = ConditionalMixture(1, 1, 2, init_spread=0.5, weight_gradient=weight_gradient)

    def guide(x):
        pyro.module("network", network)
        with pyro.plate("columns", 3), pyro.plate("rows", len(x)):
            pyro.sample("z", network(x))

    loss = elbo(num_particles=2, vectorize_particles=True, max_plate_nesting=2)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.97}), loss)
    for _ in range(150):
        svi.step(x[torch.randperm(200)[:20]])
    with torch.no_grad():
        q = network(x)
        z = q.sample((200,))
        exact = dist.Normal(x / 2, 0.5**0.5).to_event(1)
        assert (q.log_prob(z) - exact.log_prob(z)).mean() < 0.02


def test_base_of_a_conditional_flow():
    """As any conditional distribution of Pyro."""
    base = ConditionalMixture(3, 2, 4)
    flow = dist.conditional.ConditionalTransformedDistribution(
        base, [dist.transforms.conditional_planar(2, 3, [4])]
    )
    context = torch.randn(6, 3)
    q = flow.condition(context)
    z = q.rsample()
    (transform,) = q.transforms
    before = base(context).log_prob(transform.inv(z))
    jacobian = transform.log_abs_det_jacobian(transform.inv(z), z)
    torch.testing.assert_close(q.log_prob(z), before - jacobian)


def test_hooks_run_by_either_name():
    module, seen = ConditionalMixture(3, 2, 4), []
    module.register_forward_hook(lambda *args: seen.append(args[-1]))
    module.condition(torch.zeros(3))
    module(torch.zeros(3))
    assert [type(q) for q in seen] == 2 * [MixtureOfDiagNormals]


def test_a_loss_without_score_terms_is_warned_of():
    """As for any clustered mixture."""
    module = ConditionalMixture(3, 2, 4, init_spread=100.0)
    with torch.no_grad():
        module.network.output.bias[8:16] -= 5  # scales
    with pytest.warns(UnusedScoreWarning):
        module(torch.zeros(3)).rsample().sum().backward()
