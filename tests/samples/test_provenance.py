"""Pyro follows the origin of tensors by a subclass of them: nothing else may differ."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, TraceGraph_ELBO
from pyro.infer.autoguide import AutoGaussian, AutoStructured
from pyro.infer.inspect import get_dependencies, get_model_relations
from pyro.ops.provenance import detach_provenance, get_provenance, track_provenance

from pyro_mixtures.distributions import (
    MixtureOfDiagNormals,
    MixtureSameFamily,
    RelaxedCategoricalStraightThrough,
)
from pyro_mixtures.nn import VectorQuantize
from tests.every import KINDS, each_kind
from tests.pairwise import in_turn

# torch draws from Laplace and Exponential laws by a shape that does not get through to it
NOT_DRAWN = ("of_shared_affine_laplace", "of_mixed_real", "of_mixed_positive")
each_drawn_kind = pytest.mark.parametrize(
    "kind", [pytest.param(kind, id=name) for name, kind in KINDS.items() if name not in NOT_DRAWN]
)
batches = pytest.mark.parametrize("batch_shape", [(), (4,)], ids=str)


def tracked(parameters):
    return {name: track_provenance(x, frozenset({name})) for name, x in parameters.items()}


def weighted_gradients(output, parameters):
    """Of a cost whose slope differs between entries."""
    output = detach_provenance(output)
    slope = torch.linspace(0.5, 1.5, output.numel(), dtype=output.dtype).reshape(output.shape)
    return torch.autograd.grad(
        output, list(parameters.values()), slope, True, allow_unused=True, materialize_grads=True
    )


def assert_same(actual, expected, parameters):
    torch.testing.assert_close(detach_provenance(actual), expected, rtol=1e-12, atol=0)
    gradients = weighted_gradients(actual, parameters)
    assert all(type(gradient) is torch.Tensor for gradient in gradients)
    torch.testing.assert_close(gradients, weighted_gradients(expected, parameters))


def of_seed(function, *args):
    torch.manual_seed(1)
    return function(*args)


def assert_tracks(kind, sample, batch_shape):
    """The values, gradients and origins of samples, and of their densities."""
    parameters = kind.parameters(batch_shape)
    plain, law = (kind.build(given) for given in (parameters, tracked(parameters)))
    expected, actual = (of_seed(sample, each) for each in (plain, law))
    assert_same(actual, expected, parameters)
    assert law.batch_shape.numel() == plain.batch_shape.numel()
    assert set(parameters) - {"control_var"} <= get_provenance(actual)
    expected, actual = of_seed(plain.log_prob, expected), of_seed(law.log_prob, actual)
    assert_same(actual, expected, parameters)
    assert set(parameters) - {"control_var"} <= get_provenance(actual)


@in_turn
@batches
@each_drawn_kind
def test_tracked_parameters(kind, batch_shape):
    assert_tracks(kind, lambda law: law.rsample((5,)), batch_shape)


@batches
@pytest.mark.parametrize("name", ["of_mixed_real", "of_mixed_positive"])
def test_tracked_parameters_of_samples_drawn_elsewhere(name, batch_shape):
    kind = KINDS[name]
    z = kind.build(kind.parameters(batch_shape)).sample((5,))
    assert_tracks(kind, lambda law: law.reparameterize(z), batch_shape)


@in_turn
@batches
@each_drawn_kind
def test_tracked_parameters_in_an_expanded_law(kind, batch_shape):
    parameters = kind.parameters(batch_shape)
    results = []
    for given in (parameters, tracked(parameters)):
        law = kind.build(given).expand((3, *batch_shape))
        torch.manual_seed(1)
        results.append(law.log_prob(law.rsample((2,))))
    assert_same(results[1], results[0], parameters)


@in_turn
@batches
@each_kind
def test_tracked_samples(kind, batch_shape):
    parameters = kind.parameters(batch_shape)
    law = kind.build(parameters)
    z = law.rsample((5,))
    value = track_provenance(z, frozenset({"z"}))
    for result in (law.log_prob, lambda x: sum(law.score_parts(x))):
        actual, expected = (of_seed(result, x) for x in (value, z))
        assert_same(actual, expected, parameters)
        assert get_provenance(actual) == {"z"}
    # what the density left for the backward pass of the sample
    assert_same(value, z, parameters)


def test_quantized_vectors():
    torch.manual_seed(0)
    quantize = VectorQuantize(8, 3)
    x = torch.randn(5, 3)
    actual, expected = quantize(track_provenance(x, frozenset({"x"}))), quantize(x)
    for name, value in zip(expected._fields, expected, strict=True):
        assert torch.equal(detach_provenance(getattr(actual, name)), value)
        assert get_provenance(getattr(actual, name)) == {"x"}


def normals():
    locs = torch.tensor([[-1.0, 0.0], [2.0, 1.0]])
    return MixtureOfDiagNormals(locs, torch.ones(2, 2), torch.zeros(2))


def gammas(rate):
    components = dist.Gamma(torch.tensor([2.0, 9.0]), rate.unsqueeze(-1))
    return MixtureSameFamily(dist.Categorical(torch.ones(2)), components)


def model():
    rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
    z = pyro.sample("z", normals())
    choice = pyro.sample("choice", RelaxedCategoricalStraightThrough(0.5, logits=z))
    scale = pyro.sample("scale", gammas(rate + choice[..., 0]))
    locs = torch.stack([z, -z], -2)
    pyro.sample(
        "x",
        MixtureOfDiagNormals(locs, scale.expand(2, 2), torch.zeros(2)),
        obs=torch.tensor([1.0, 0.5]),
    )


def test_dependencies():
    found = get_dependencies(model)["prior_dependencies"]
    assert {name: set(parents) - {name} for name, parents in found.items()} == {
        "rate": set(),
        "z": set(),
        "choice": {"z"},
        "scale": {"rate", "choice"},
        "x": {"z", "scale"},
    }


def test_model_relations():
    found = get_model_relations(model)["sample_sample"]
    assert {name: set(parents) for name, parents in found.items()} == {
        "rate": set(),
        "z": set(),
        "choice": {"z"},
        "scale": {"rate", "choice"},
        "x": {"z", "scale"},
    }


def continuous_model():
    rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
    z = pyro.sample("z", normals())
    scale = pyro.sample("scale", gammas(rate))
    pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=torch.tensor([1.0, 0.5]))


@pytest.mark.parametrize("guide", [AutoGaussian, AutoStructured])
def test_guides_that_look_for_dependencies(guide):
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    kinds = {"conditionals": "normal", "dependencies": "linear"} if guide is AutoStructured else {}
    svi = SVI(
        continuous_model,
        guide(continuous_model, **kinds),
        pyro.optim.Adam({"lr": 0.01}),
        TraceGraph_ELBO(),
    )
    assert all(map(torch.isfinite, map(torch.tensor, (svi.step() for _ in range(5)))))


def test_weights_of_a_discrete_parent_under_trace_graph():
    """A guide whose mixture depends on a choice that has a score function."""
    probs = torch.tensor([0.4, 0.6], dtype=torch.float64)
    locs = torch.tensor([[[0.0], [1.0]], [[2.0], [4.0]]], dtype=torch.float64)
    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)

    def guide():
        choice = pyro.sample("choice", dist.Categorical(probs.log().add(logits).softmax(-1)))
        pyro.sample("z", MixtureOfDiagNormals(locs[choice], torch.ones(2, 1), torch.zeros(2)))

    def target():
        pyro.sample("choice", dist.Categorical(probs))
        pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    pyro.set_rng_seed(0)
    draws = []
    for _ in range(400):
        logits.grad = None
        TraceGraph_ELBO().loss_and_grads(target, guide)
        draws.append(logits.grad)
    # the loss differs between the choices by the divergences of their mixtures
    divergences = []
    for each in locs:
        q = MixtureOfDiagNormals(each, torch.ones(2, 1), torch.zeros(2))
        z = torch.linspace(-15, 20, 4001, dtype=torch.float64).unsqueeze(-1)
        density = q.log_prob(z)
        normal = dist.Normal(0.0, 1.0).log_prob(z.squeeze(-1))
        divergences.append(torch.trapezoid(density.exp() * (density - normal), z.squeeze(-1)))
    slope = probs.prod() * (divergences[0] - divergences[1])
    draws = torch.stack(draws)
    error = draws.std(0) / len(draws) ** 0.5
    expected = torch.stack([slope, -slope])
    assert ((draws.mean(0) - expected).abs() < 5 * error).all()  # false alarm: 1e-6
    assert (expected.abs() > 5 * error).all()
