"""Parameters of components get their gradient wherever they are kept."""

import functools
import gc
import weakref

import pyro.distributions.transforms as pyro_transforms
import pytest
import torch
from torch.distributions import (
    Categorical,
    Distribution,
    ExpTransform,
    Gamma,
    Independent,
    Laplace,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    Uniform,
    constraints,
)
from torch.utils.checkpoint import checkpoint

from pyro_mixtures import Mixture, MixtureSameFamily
from tests.components.maps import (
    D,
    Holder,
    K,
    Shift,
    base_parameters,
    each_transform,
    loss_of,
    mixture_of,
)
from tests.registry import gradients, leaves, randn, relative_error

TOLERANCE = 2e-3
"""For maps with kinks, whose integrals have an error of the square of a grid's step."""


@pytest.fixture(autouse=True)
def _double_precision():
    """Pyro's transforms make tensors of the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@each_transform
def test_gradients_are_exact(make):
    """By integration over a grid before the map, of the weights' as well."""
    base, (transform, more) = base_parameters(), make()
    parameters = {**base, **more}
    step = 0.05
    axis = torch.arange(-7, 7, step)
    before = torch.cartesian_prod(axis, axis)
    normals = Independent(Normal(base["loc"], base["scale"]), 1)
    weights = Categorical(logits=base["logits"])
    reference = torch.distributions.MixtureSameFamily(weights, normals)
    mass = reference.log_prob(before).exp() * step**2
    before, mass = before[mass > 1e-12], mass[mass > 1e-12]
    exact = gradients((mass * cost(transform(before))).sum(), parameters)
    after = transform(before).detach().requires_grad_()
    (slope,) = torch.autograd.grad((mass.detach() * cost(after)).sum(), after)
    moved = mixture_of(base, transform).reparameterize(after)
    actual = gradients((moved * slope).sum(), parameters)
    assert all(value.abs().max() > 0 for value in exact.values())
    assert relative_error(actual, exact) < TOLERANCE


def cost(z):
    return (z / 2).sin().prod(-1) + z.square().mean(-1) / 8


def coupling_by(function):
    """Of a class of Pyro's, with a network of the user's."""
    return pyro_transforms.AffineCoupling(1, function)


class Within(Shift):
    """Of a domain that does not tell which way it goes."""

    domain = constraints.interval(2.0, 3.0)
    codomain = constraints.real

    @property
    def sign(self):
        raise NotImplementedError

    def _call(self, x):
        return (x - 2).logit()

    def _inverse(self, y):
        return y.sigmoid() + 2

    def log_abs_det_jacobian(self, x, y):
        return -(x - 2).log() - (3 - x).log()


def test_a_map_without_a_sign():
    """Is a map of numbers whose ends do not tell it, either."""
    base = Uniform(torch.full((K,), 2.0), torch.full((K,), 3.0))
    logits = torch.zeros(K, requires_grad=True)
    q = MixtureSameFamily(Categorical(logits=logits), TransformedDistribution(base, [Within()]))
    with pytest.raises(NotImplementedError, match=r"sign of their slope, but Within\(\) does not"):
        q.rsample((3,)).sum().backward()


HIDDEN = {
    "closure": lambda w: Shift(lambda: w),
    "closure in a partial function": lambda w: Shift(functools.partial(lambda x: x * w, 2.0)),
    "closure in Pyro's class": lambda w: coupling_by(lambda x: (x * w[:1], x * w[1:])),
    "object of an unknown class": lambda w: Shift(Holder(w)),
    "method of an unknown class": lambda w: Shift(Holder(w).__call__),
}


@pytest.mark.parametrize("hide", HIDDEN.values(), ids=HIDDEN)
def test_tensors_that_cannot_be_found(hide):
    """Are an error, for no gradient would reach them; without a gradient they may be anywhere."""
    w = randn(D).requires_grad_()
    base = base_parameters()
    z = mixture_of(base, hide(w)).rsample((3,))
    with pytest.raises(NotImplementedError, match=r"shape \(2,\) that is none: make it an attr"):
        z.sum().backward()
    z = mixture_of(base, hide(w.detach())).rsample((3,))
    assert all(x.abs().max() > 0 for x in gradients(loss_of(z), base).values())


def twice(mixture, parameters):
    loss = loss_of(mixture().rsample((5,)))
    first = gradients(loss, parameters)  # which retains the graph
    second = gradients(loss, parameters)
    return {name: (first[name] + second[name]) / 2 for name in parameters}


def checkpointed(mixture, parameters):
    def step():
        return loss_of(mixture().rsample((5,)))

    return gradients(checkpoint(step, use_reentrant=False), parameters)


def copied(mixture, parameters):
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone):
        loss = loss_of(mixture().rsample((5,)))
    return gradients(loss, parameters)


def batched(mixture, parameters):
    loss = loss_of(mixture().rsample((5,)))
    rows = torch.autograd.grad(
        loss, list(parameters.values()), torch.tensor([1.0, 3.0]), is_grads_batched=True
    )
    return {name: (x[1] - x[0]) / 2 for name, x in zip(parameters, rows, strict=True)}


def one_by_one(mixture, parameters):
    loss = loss_of(mixture().rsample((5,)))
    return {name: gradients(loss, {name: x})[name] for name, x in parameters.items()}


def with_density_between(mixture, parameters):
    """Which makes transforms and distributions remember things, of a graph that is gone then."""
    q = mixture()
    z = q.rsample((5,))
    others = [x for name, x in parameters.items() if name != "logits"]
    torch.autograd.grad(q.log_prob(torch.randn(4, D)).sum(), others, allow_unused=True)
    return gradients(loss_of(z), parameters)


def with_density_before(mixture, parameters):
    """Whose graph is gone, at the very points, where nothing is drawn."""
    points = mixture().rsample((5,)).detach()
    torch.manual_seed(1)
    density = mixture().log_prob(points).sum()
    torch.autograd.grad(density, list(parameters.values()), allow_unused=True)
    q = mixture(validate_args=False)  # whose checks would ask the transforms
    return gradients(loss_of(q.reparameterize(points)), parameters)


WAYS = (
    *(twice, checkpointed, copied, batched, one_by_one),
    *(with_density_between, with_density_before),
)


@each_transform
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_ways_to_differentiate(make, way):
    base, (transform, more) = base_parameters(), make()
    parameters = {**base, **more}

    def mixture(**options):
        torch.manual_seed(1)
        return mixture_of(base, transform, **options)

    expected = gradients(loss_of(mixture().rsample((5,))), parameters)
    assert relative_error(way(mixture, parameters), expected) < 1e-12


@pytest.mark.parametrize("name", ["conditional coupling", "conditional autoregressive"])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_over_contexts(name):
    make = {
        "conditional coupling": pyro_transforms.conditional_affine_coupling,
        "conditional autoregressive": pyro_transforms.conditional_affine_autoregressive,
    }[name]
    transform = make(D, 4, [5])
    base = {name: x.detach() for name, x in base_parameters().items()}
    points, contexts = randn(5, D), randn(3, 4)

    def loss(base, context):
        q = mixture_of(base, transform.condition(context), validate_args=False)
        return loss_of(q.reparameterize(points))

    Distribution.set_default_validate_args(False)
    each = [torch.func.grad(loss, (0, 1))(base, context) for context in contexts]
    actual = torch.func.vmap(torch.func.grad(loss, (0, 1)), (None, 0))(base, contexts)
    expected = {name: torch.stack([one[0][name] for one in each]) for name in base}
    expected["context"] = torch.stack([one[1] for one in each])
    assert relative_error({**actual[0], "context": actual[1]}, expected) < 1e-10


@pytest.mark.parametrize("given", ["covariance_matrix", "precision_matrix", "scale_tril"])
@pytest.mark.parametrize("when", ["never", "before", "between"])
def test_attributes_that_torch_computes_lazily(given, when):
    torch.manual_seed(2)
    factor = 0.3 * randn(K, D, D).tril() + torch.eye(D)
    matrix = factor if given == "scale_tril" else factor @ factor.mT
    parameters = leaves({"loc": randn(K, D), "matrix": matrix, "logits": randn(K)})
    results = []
    for now in ("never", when):
        normals = MultivariateNormal(
            parameters["loc"],
            **{
                given: parameters["matrix"].tril()
                if given == "scale_tril"
                else parameters["matrix"]
            },
        )
        weights = Categorical(logits=parameters["logits"])
        q = MixtureSameFamily(weights, TransformedDistribution(normals, [Shift(torch.ones(D))]))
        torch.manual_seed(1)
        inner = q.component_distribution.base_dist

        def look(inner=inner):
            return inner.scale_tril, inner.covariance_matrix, inner.precision_matrix

        if now == "before":
            look()
        z = q.rsample((5,))
        if now == "between":
            look()
        results.append(gradients(loss_of(z) + q.log_prob(z).sum(), parameters))
    assert relative_error(*results) < 1e-12


def different(loc, scale):
    """One component after the other."""
    scales = (scale, scale.exp())
    return [Independent(Laplace(x, y), 1) for x, y in zip(loc, (*scales, scale), strict=True)]


@pytest.mark.parametrize("needs_gradient", [True, False])
@pytest.mark.parametrize("name", ["loc", "scale", "shift"])
@pytest.mark.parametrize("several", [False, True])
def test_changes_in_place(name, needs_gradient, several):
    """Between draw and backward pass, as of every tensor that is saved for that."""
    tensors = {"loc": randn(K, D), "scale": torch.ones(D), "shift": randn(D)}
    if needs_gradient:
        tensors[name].requires_grad_()
    loc, scale, shift = tensors.values()
    logits = torch.zeros(K, requires_grad=True)
    weights = Categorical(logits=logits)
    if several:
        transform = Shift(shift)
        parts = [TransformedDistribution(x, [transform]) for x in different(loc, scale)]
        q = Mixture(weights, parts)
    else:
        components = Independent(Laplace(loc, scale), 1)
        q = MixtureSameFamily(weights, TransformedDistribution(components, [Shift(shift)]))
    z = q.rsample((3,))
    with torch.no_grad():
        tensors[name].mul_(1.5)
    with pytest.raises(RuntimeError, match="modified (by an )?inplace"):
        z.sum().backward()


@each_transform
def test_a_step_is_freed_at_once(make):
    """Also where a map outlives the step and remembers its last points: those of one step."""
    base, (transform, more) = base_parameters(), make()
    gc.disable()
    try:
        watched = []
        for _ in range(3):
            q = mixture_of(base, transform)
            z = q.rsample((5,))
            (loss_of(z) + q.log_prob(z).sum()).backward()
            watched.append([weakref.ref(each) for each in (q, q.components, z)])
            del q, z
        assert all(each() is None for each in watched[0] + watched[1])
        assert all(x.grad.isfinite().all() for x in more.values())
    finally:
        gc.enable()


@each_transform
def test_no_points_wait_for_the_collector(make):
    """Though transforms and their inverses, and some transforms of Pyro's, hold themselves."""
    base, (transform, _) = base_parameters(), make()
    count = 1000
    loss_of(mixture_of(base, transform).rsample((count,))).backward()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        loss_of(mixture_of(base, transform).rsample((count,))).backward()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        sizes = [thing.numel() for thing in gc.garbage if isinstance(thing, torch.Tensor)]
        assert max(sizes, default=0) < count
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("make", [Gamma, Normal], ids=["Gamma", "Normal"])
def test_a_tensor_that_two_attributes_share(make):
    shared = (1.0 + torch.rand(K, D)).requires_grad_()
    components = make(shared, 1.0)
    setattr(
        components,
        list(make.arg_constraints)[1],
        getattr(components, list(make.arg_constraints)[0]),
    )
    q = MixtureSameFamily(
        Categorical(logits=torch.zeros(K)),
        TransformedDistribution(Independent(components, 1), [ExpTransform()]),
    )
    z = q.rsample((5,))
    (actual,) = torch.autograd.grad(z.log().sin().sum(), shared)
    apart = leaves({"a": shared, "b": shared})
    q = MixtureSameFamily(
        Categorical(logits=torch.zeros(K)),
        TransformedDistribution(Independent(make(*apart.values()), 1), [ExpTransform()]),
    )
    found = gradients(q.reparameterize(z.detach()).log().sin().sum(), apart)
    torch.testing.assert_close(actual, found["a"] + found["b"])
