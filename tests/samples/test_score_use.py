"""A sample knows in each backward pass whether the loss uses its score term."""

import copy
import gc
import pickle
import warnings
import weakref

import pytest
import torch
from torch.distributions import Categorical, Laplace
from torch.distributions.transforms import ExpTransform
from torch.utils.checkpoint import checkpoint

from pyro_mixtures.distributions import (
    MixtureOfDiagNormals,
    MixtureSameFamily,
    TransformedDistribution,
    UnusedScoreWarning,
)
from pyro_mixtures.numerics.score_use import completed
from tests.pairwise import in_pairs, in_turn
from tests.registry import leaves, relative_error

LOCS = torch.tensor([[-2.0], [-1.2], [2.5]], dtype=torch.float64)
LOGITS = torch.tensor([0.4, -0.3, 0.1], dtype=torch.float64)
POINTS = torch.linspace(-4, 4, 9, dtype=torch.float64).unsqueeze(-1)


def normals(parameters, **options):
    return MixtureOfDiagNormals(
        parameters["locs"], torch.ones(3, 1).double(), parameters["logits"], **options
    )


def others(parameters, **options):
    components = Laplace(parameters["locs"], torch.ones(3, 1).double())
    weights = Categorical(logits=parameters["logits"])
    return MixtureSameFamily(weights, torch.distributions.Independent(components, 1), **options)


each_kind = pytest.mark.parametrize("build", [normals, others])
each_gradient = pytest.mark.parametrize("weight_gradient", ["clustered", "hybrid"])


def fresh():
    return leaves({"locs": LOCS, "logits": LOGITS})


def cost(z):
    return (z.squeeze(-1) / 2).sin() + z.squeeze(-1).square() / 9


def surrogate(mixture, z, uses_score):
    value = cost(z)
    score = mixture.score_parts(z).score_function
    return (value + value.detach() * score if uses_score else value).sum()


def gradients(loss, parameters, **options):
    values = torch.autograd.grad(loss, list(parameters.values()), **options)
    return dict(zip(parameters, values, strict=True))


def expected(build, weight_gradient, uses_score):
    """In a graph of its own; alone the samples are those of a pathwise mixture."""
    parameters = fresh()
    given = weight_gradient if uses_score else "pathwise"
    mixture = build(parameters, weight_gradient=given)
    return gradients(surrogate(mixture, mixture.reparameterize(POINTS), uses_score), parameters)


@each_kind
@each_gradient
@pytest.mark.parametrize("first", [False, True])
def test_a_graph_that_is_run_twice(build, weight_gradient, first):
    """With another loss each time."""
    parameters = fresh()
    mixture = build(parameters, weight_gradient=weight_gradient)
    z = mixture.reparameterize(POINTS)
    losses = {uses_score: surrogate(mixture, z, uses_score) for uses_score in (False, True)}
    differ = relative_error(
        expected(build, weight_gradient, False), expected(build, weight_gradient, True)
    )
    assert differ > 0.01
    for uses_score in (first, not first, first):
        actual = gradients(losses[uses_score], parameters, retain_graph=True)
        assert relative_error(actual, expected(build, weight_gradient, uses_score)) < 1e-12


@in_pairs
@each_kind
@each_gradient
@pytest.mark.parametrize("uses_score", [False, True])
@pytest.mark.parametrize("names", [["locs"], ["logits"], ["logits", "locs"]])
def test_gradients_of_some_parameters(build, weight_gradient, uses_score, names):
    parameters = fresh()
    mixture = build(parameters, weight_gradient=weight_gradient)
    loss = surrogate(mixture, mixture.reparameterize(POINTS), uses_score)
    actual = gradients(loss, {name: parameters[name] for name in names})
    exact = expected(build, weight_gradient, uses_score)
    assert relative_error(actual, {name: exact[name] for name in names}) < 1e-12


@each_kind
@each_gradient
def test_several_samples_of_one_mixture(build, weight_gradient):
    """Of which the loss uses the score terms of some."""
    parameters = fresh()
    mixture = build(parameters, weight_gradient=weight_gradient)
    samples = [mixture.reparameterize(POINTS) for _ in range(3)]
    loss = sum(surrogate(mixture, z, use) for z, use in zip(samples, (1, 0, 1), strict=True))
    actual = gradients(loss, parameters)
    with_score, alone = (expected(build, weight_gradient, use) for use in (True, False))
    total = {name: 2 * with_score[name] + alone[name] for name in parameters}
    assert relative_error(actual, total) < 1e-12


@in_pairs
@each_kind
@each_gradient
@pytest.mark.parametrize("uses_score", [False, True])
@pytest.mark.parametrize("way", ["create_graph", "checkpoint", "jit"])
def test_other_ways_to_differentiate(build, weight_gradient, uses_score, way):
    def step(locs, logits):
        mixture = build({"locs": locs, "logits": logits}, weight_gradient=weight_gradient)
        return surrogate(mixture, mixture.reparameterize(POINTS), uses_score)

    parameters = fresh()
    inputs = tuple(parameters.values())
    match way:
        case "create_graph":
            actual = gradients(step(*inputs), parameters, create_graph=True)
        case "checkpoint":
            actual = gradients(checkpoint(step, *inputs, use_reentrant=False), parameters)
        case "jit":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's, of tracing
                traced = torch.jit.trace(step, inputs, check_trace=False)
            actual = gradients(traced(*inputs), parameters)
    assert relative_error(actual, expected(build, weight_gradient, uses_score)) < 1e-6


@in_turn
@each_kind
@each_gradient
@pytest.mark.filterwarnings("default")  # torch warns about its own code
@pytest.mark.parametrize("uses_score", [False, True])
def test_compiled(build, weight_gradient, uses_score):
    torch._dynamo.reset()

    def step(locs, logits):
        parameters = {"locs": locs, "logits": logits}
        mixture = build(parameters, weight_gradient=weight_gradient, validate_args=False)
        return surrogate(mixture, mixture.reparameterize(POINTS), uses_score)

    parameters = fresh()
    compiled = torch.compile(step, backend="aot_eager")
    actual = gradients(compiled(*parameters.values()), parameters)
    assert relative_error(actual, expected(build, weight_gradient, uses_score)) < 1e-8


@each_kind
@each_gradient
def test_the_warning(build, weight_gradient):
    """Where the samples carry the whole gradient of weights that are learned, and nowhere else."""
    parameters = fresh()
    mixture = build(parameters, weight_gradient=weight_gradient)
    with pytest.warns(UnusedScoreWarning, match="weight_gradient='pathwise'"):
        gradients(surrogate(mixture, mixture.reparameterize(POINTS), False), parameters)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnusedScoreWarning)
        parameters = fresh()
        mixture = build(parameters, weight_gradient=weight_gradient)
        gradients(surrogate(mixture, mixture.reparameterize(POINTS), True), parameters)
        fixed = {"locs": parameters["locs"], "logits": LOGITS}
        mixture = build(fixed, weight_gradient=weight_gradient)
        mixture.reparameterize(POINTS).sum().backward()
        near = {"locs": 0.1 * parameters["locs"], "logits": parameters["logits"]}
        if weight_gradient == "clustered":  # of one group
            build(near).reparameterize(POINTS).sum().backward()


@each_kind
def test_values_that_are_no_samples(build):
    """They have no gradient that a score term could complete."""
    mixture = build(fresh())
    z = mixture.reparameterize(POINTS)
    assert isinstance(mixture.score_parts(z).score_function, torch.Tensor)
    other = build(fresh())
    for value in (z.detach(), z.clone(), z[:3], POINTS):
        assert mixture.score_parts(value).score_function == 0
    assert other.score_parts(z).score_function == 0
    with torch.no_grad():
        assert mixture.score_parts(mixture.rsample((3,))).score_function == 0
        z.add_(1.0)
    assert mixture.score_parts(z).score_function == 0


@each_kind
def test_a_sample_can_be_pickled(build):
    """And copied, once it is detached: what is known of it stays behind."""
    mixture = build({"locs": LOCS, "logits": LOGITS})
    z = mixture.rsample((3,))
    for twin in (copy.deepcopy(z), pickle.loads(pickle.dumps(z))):
        assert torch.equal(twin, z)
        assert mixture.score_parts(twin).score_function == 0


@in_pairs
@each_kind
@each_gradient
@pytest.mark.parametrize("way", ["stack", "where", "product", "jacobian", "compiled apart"])
@pytest.mark.filterwarnings("default")  # torch warns about its own code
def test_a_score_term_that_takes_no_part(build, weight_gradient, way):
    """But gets a gradient of zeros, for torch puts these in place of none."""
    parameters = fresh()
    mixture = build(parameters, weight_gradient=weight_gradient, validate_args=False)
    z = mixture.reparameterize(POINTS)
    alone, beside = surrogate(mixture, z, False), surrogate(mixture, z, True)
    match way:
        case "stack":
            actual = gradients(torch.stack([beside, alone])[1], parameters)
        case "where":
            actual = gradients(torch.where(torch.tensor(False), beside, alone), parameters)
        case "product":
            actual = gradients(alone + 0.0 * (beside - alone), parameters)
        case "jacobian":
            both = torch.stack([beside, alone])
            rows = gradients(
                both, parameters, grad_outputs=torch.eye(2).double(), is_grads_batched=True
            )
            exact = expected(build, weight_gradient, True)
            assert relative_error({name: x[0] for name, x in rows.items()}, exact) < 1e-12
            actual = {name: x[1] for name, x in rows.items()}
        case "compiled apart":
            torch._dynamo.reset()

            def parts(locs, logits):
                parameters = {"locs": locs, "logits": logits}
                mixture = build(parameters, weight_gradient=weight_gradient, validate_args=False)
                z = mixture.reparameterize(POINTS)
                return z, mixture.score_parts(z).score_function

            z, _ = torch.compile(parts, backend="aot_eager")(*parameters.values())
            actual = gradients(cost(z).sum(), parameters)
    assert relative_error(actual, expected(build, weight_gradient, False)) < 1e-8


@each_kind
def test_samples_are_saved_and_loaded(build, tmp_path):
    """By torch, which loads nothing but tensors by default."""
    for mixture in (build({"locs": LOCS, "logits": LOGITS}), build(fresh())):
        for z in (mixture.sample((3,)), mixture.rsample((3,))):
            torch.save(z, tmp_path / "z.pt")
            loaded = torch.load(tmp_path / "z.pt")
            assert torch.equal(loaded, z)
            assert mixture.score_parts(loaded).score_function == 0


@each_kind
@pytest.mark.parametrize("cache_size", [None, 0, 1])
def test_a_step_is_freed_at_once(build, cache_size):
    """No cycle holds a sample: not with the mixture, its record, or a transform's last point."""
    parameters = fresh()
    gc.disable()
    try:
        q = build(parameters)
        if cache_size is not None:
            q = TransformedDistribution(q, [ExpTransform(cache_size=cache_size)])
        z = q.rsample((5,))
        parts = q.score_parts(z)
        (z.sum() + parts.score_function.sum() + parts.entropy_term.sum()).backward()
        watched = weakref.ref(z), weakref.ref(q)
        del q, z, parts
        assert [each() for each in watched] == [None, None]
    finally:
        gc.enable()


def test_a_cost_of_zero_may_be_a_part():
    """Where the completion has the rest: for draws of which ``Trace_ELBO`` knows no cost."""
    receipt = torch.zeros((), requires_grad=True)
    logits = torch.zeros(3, requires_grad=True)
    score, completion = completed(logits, receipt, torch.tensor([1.0, 2.0, 3.0]))
    (0.0 * score + completion).sum().backward()
    assert logits.grad.tolist() == [1.0, 2.0, 3.0]
    assert receipt.grad > 0
