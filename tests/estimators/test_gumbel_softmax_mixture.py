"""Contract of ``GumbelSoftmaxMixtureOfDiagNormals``."""

import copy
import math
import pickle

import pyro
import pytest
import torch
from pyro import poutine

from pyro_mixtures.distributions import GumbelSoftmaxMixtureOfDiagNormals, MixtureOfDiagNormals
from pyro_mixtures.estimators import gumbel_soft
from tests.registry import FAMILIES, gradients, randn, relative_error

FAMILY = FAMILIES["diag_normals"]
each_kind = pytest.mark.parametrize("hard", [False, True])


def relaxed(batch_shape=(), temperature=0.5, K=3, D=2, **options):
    parameters = FAMILY.parameters(batch_shape, K=K, D=D, spread=2.0)
    q = GumbelSoftmaxMixtureOfDiagNormals(**parameters, temperature=temperature, **options)
    return q, parameters


@each_kind
@pytest.mark.parametrize("temperature", [0.5, torch.tensor([[0.3], [2.0]])])
@pytest.mark.parametrize(("K", "D"), [(1, 1), (3, 2)])
def test_shapes(hard, temperature, K, D):
    """Of a batch, to which the temperature belongs."""
    q, parameters = relaxed((3,), temperature, K, D, hard=hard)
    batch_shape = (3,) if isinstance(temperature, float) else (2, 3)
    for law in (q, q.expand((4, *batch_shape))):
        z = law.rsample((5,))
        assert z.shape == (5, *law.batch_shape, D)
        assert law.log_prob(z).shape == (5, *law.batch_shape)
        assert law.log_prob(z[0, ..., :1, :]).shape == law.batch_shape
        total = law.log_prob(z).sum() + z.sum()
        assert all(value.isfinite().all() for value in gradients(total, parameters).values())
        assert law.sample().dtype == torch.float64
        assert law.has_rsample
        assert law.event_dim == 1
    assert q.batch_shape == batch_shape
    assert q.expand((4, *batch_shape)).expand((2, 4, *batch_shape)).rsample().dim() == 4 + (
        len(batch_shape) - 1
    )


@each_kind
def test_samples_and_gradients(hard):
    """Against Eq. 66 written out, with the same random numbers."""
    q, parameters = relaxed(hard=hard, temperature=0.7)
    locs, scales, logits = parameters.values()
    torch.manual_seed(1)
    z = q.rsample((1000,))
    torch.manual_seed(1)
    uniform = torch.rand(1000, 3, dtype=torch.float64)
    soft = ((logits - (-uniform.log()).log()) / 0.7).softmax(-1)
    choice = torch.nn.functional.one_hot(soft.argmax(-1), 3) + soft - soft.detach()
    y = choice if hard else soft
    noise = torch.randn(1000, 2, dtype=torch.float64)
    expected = (y.unsqueeze(-1) * (locs + noise.unsqueeze(-2) * scales)).sum(-2)
    torch.testing.assert_close(z, expected)
    slope = randn(1000, 2)
    actual = gradients(z, parameters, slope)
    assert relative_error(actual, gradients(expected, parameters, slope)) < 1e-10


def test_low_temperatures_in_single_precision():
    """Where most of the y are zero: samples of the mixture, finite gradients."""
    logits = torch.randn(10, requires_grad=True)
    locs = 100 * torch.randn(10, 2)
    q = GumbelSoftmaxMixtureOfDiagNormals(locs, torch.ones(10, 2), logits, 1e-3)
    z = q.rsample((2000,))
    nearest = torch.cdist(z.detach(), locs).amin(-1)
    assert (nearest < 6).double().mean() > 0.99
    (grad,) = torch.autograd.grad(z.sum(), logits)
    assert grad.isfinite().all()


@each_kind
def test_a_component_without_weight(hard):
    q, parameters = relaxed(hard=hard)
    with torch.no_grad():
        parameters["component_logits"][1] = -math.inf
        parameters["locs"][1] = 1e6
    q = GumbelSoftmaxMixtureOfDiagNormals(**parameters, temperature=0.5, hard=hard)
    z = q.rsample((500,))
    assert z.abs().max() < 100
    for value in gradients(z.square().sum() + q.log_prob(z).sum(), parameters).values():
        assert value.isfinite().all()


def test_density_of_the_mixture():
    """That of hard samples by themselves, of soft ones if asked for."""
    q, parameters = relaxed((2,), hard=True)
    law = MixtureOfDiagNormals(**parameters)
    z = q.sample((7,))
    assert torch.equal(q.log_prob(z), law.log_prob(z))
    assert torch.equal(relaxed((2,), density="mixture")[0].log_prob(z), law.log_prob(z))
    assert torch.equal(q.mean, law.mean)
    assert torch.equal(q.variance, law.variance)


def test_nested_density():
    """The estimate integrates to one, agrees with a histogram and is biased low."""
    edges = torch.linspace(-8, 10, 181, dtype=torch.float64)
    points = (edges[1:] + edges[:-1]).unsqueeze(-1) / 2
    q, _ = relaxed(D=1, temperature=1.0, num_nested=20_000)
    density = q.log_prob(points).detach().exp()
    assert float(density.sum() * 0.1) == pytest.approx(1, abs=1e-6)
    counts = torch.histogram(q.sample((100_000,)).squeeze(-1), edges).hist / 1e5
    mass = density * 0.1
    # 5 standard errors of the counts and 2 % for those of the density
    assert ((counts - mass).abs() < 5 * (mass / 1e5).sqrt() + 0.02 * mass + 5e-5).all()
    z = q.sample((2000,))
    single, _ = relaxed(D=1, temperature=1.0, num_nested=1)
    assert single.log_prob(z).mean() < q.log_prob(z).mean() - 0.1


@pytest.mark.parametrize("batch", [(), (3,)])
def test_a_sample_counts_its_own_choice(batch):
    """The mean density at samples is too high, that at copies of them too low."""
    exact, _ = relaxed(batch, temperature=1.0, num_nested=2000)
    few, _ = relaxed(batch, temperature=1.0, num_nested=2)
    few = few.expand((4, *batch))
    z = few.rsample((500,))
    above, below = few.log_prob(z), few.log_prob(z.clone())
    assert above.shape == below.shape == (500, 4, *batch)
    middle = exact.log_prob(z).mean()
    assert below.mean() + 0.02 < middle < above.mean() - 0.02


def test_an_elbo_of_relaxed_samples_is_bounded():
    """Narrow components apart: a sample between them is far from all others."""
    locs = torch.tensor([[-10.0], [10.0]])
    q = GumbelSoftmaxMixtureOfDiagNormals(locs, torch.full((2, 1), 1e-2), torch.zeros(2), 0.5)
    z = q.rsample((2000,))
    entropy = -q.log_prob(z).mean()
    assert entropy < math.log(30)  # no law on the 20 units between them has more than log 20
    assert -q.log_prob(z.clone()).mean() > 50


def test_nested_gradients():
    """Differences of the estimate at the same random numbers."""
    q, parameters = relaxed(num_nested=30)
    z = q.sample((5,))

    def value(**given):
        torch.manual_seed(2)
        return (
            GumbelSoftmaxMixtureOfDiagNormals(**given, temperature=0.5, num_nested=30)
            .log_prob(z)
            .sum()
        )

    actual = gradients(value(**parameters), parameters)
    parameters = {name: x.detach() for name, x in parameters.items()}
    for name in parameters:
        direction = torch.randn_like(parameters[name])
        up, down = (
            value(**{**parameters, name: parameters[name] + step * direction})
            for step in (1e-6, -1e-6)
        )
        slope = float((actual[name] * direction).sum())
        assert slope == pytest.approx(float(up - down) / 2e-6, rel=1e-5, abs=1e-6)


def test_expanded_dimensions_hold_samples_of_one_mixture():
    """An estimator of an expanded mixture is the estimator's expanded distribution."""
    parameters = FAMILY.parameters((2,))
    mixture = FAMILY.build(parameters).expand((4, 2))
    q = gumbel_soft(mixture, temperature=torch.tensor([0.3, 0.6]))
    assert q.batch_shape == (4, 2)
    assert q.core.batch_shape == (2,)
    assert torch.equal(q.temperature[0], torch.tensor([0.3, 0.6]).to(q.temperature))


@each_kind
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda q: pickle.loads(pickle.dumps(q))])
def test_copies(hard, duplicate):
    parameters = {name: value.detach() for name, value in FAMILY.parameters((2,)).items()}
    q = GumbelSoftmaxMixtureOfDiagNormals(**parameters, temperature=0.5, hard=hard, num_nested=7)
    twin = duplicate(q.expand((3, 2)))
    assert (twin.hard, twin.density, twin.num_nested) == (q.hard, q.density, 7)
    assert twin.rsample().shape == (3, 2, 2)


@each_kind
def test_in_a_plate(hard):
    def model():
        with pyro.plate("outer", 4, dim=-2), pyro.plate("inner", 5, dim=-1):
            return pyro.sample("z", relaxed(hard=hard)[0])

    trace = poutine.trace(model).get_trace()
    trace.compute_log_prob()
    site = trace.nodes["z"]
    assert site["value"].shape == (4, 5, 2)
    assert site["log_prob"].shape == (4, 5)
    assert len({tuple(z.tolist()) for z in site["value"].flatten(0, 1)}) == 20


@each_kind
def test_to_event_and_mask(hard):
    q, _ = relaxed((2, 3), hard=hard)
    z = q.sample((4,))
    event = q.to_event(1)
    assert (event.batch_shape, event.event_shape) == ((2,), (3, 2))
    assert event.log_prob(z).shape == (4, 2)
    mask = torch.tensor([True, False, True])
    assert (q.mask(mask).log_prob(z)[..., 1] == 0).all()


GIVEN = {
    "locs": torch.zeros(2, 3),
    "coord_scale": torch.ones(2, 3),
    "component_logits": torch.zeros(2),
    "temperature": 0.5,
}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"locs": [0.0]}, "locs to be a tensor, but got list"),
        ({"locs": torch.zeros(3, 3)}, "K = 3 .* in coord_scale, but its shape is"),
        ({"coord_scale": torch.zeros(2, 3)}, "coord_scale"),
        ({"component_logits": torch.full((2,), -math.inf)}, "component_logits below"),
        ({"component_logits": torch.tensor([math.inf, 0.0])}, "component_logits below"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": math.inf}, "finite temperature"),
        ({"temperature": "cold"}, "temperature to be a tensor, but got str"),
        ({"temperature": torch.ones(4), "locs": torch.zeros(3, 2, 3)}, "temperature with a batch"),
        ({"density": "exact"}, "density to be one of nested, mixture, but got 'exact'"),
        ({"density": "nested", "hard": True}, "density to be 'mixture' for hard"),
        ({"num_nested": 0}, "num_nested to be an integer >= 1, but got 0"),
        ({"num_nested": 2.5}, "num_nested to be an integer >= 1, but got 2.5"),
    ],
)
def test_mistakes_are_told(settings, told):
    with pytest.raises(ValueError, match=told):
        GumbelSoftmaxMixtureOfDiagNormals(**{**GIVEN, **settings})


def test_moments_of_soft_samples():
    for moment in ("mean", "variance", "stddev"):
        with pytest.raises(NotImplementedError, match="of soft samples has no closed form"):
            getattr(GumbelSoftmaxMixtureOfDiagNormals(**GIVEN), moment)
