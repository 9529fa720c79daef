"""``log_prob`` of the sample just drawn leaves its densities to the backward pass, and only it."""

import contextlib
import copy
import pickle
import weakref
from unittest import mock

import pytest
import torch
from torch.func import grad, vmap
from torch.utils.checkpoint import checkpoint

from pyro_mixtures.components import Normals
from pyro_mixtures.components.compiled_normals import CompiledNormals
from tests.pairwise import in_pairs
from tests.registry import (
    each_family,
    each_transport,
    gradients,
    leaves,
    relative_error,
    sample_at,
)

TOLERANCE = 1e-10


def cost(z):
    return z.sum(-1).cos() + z.pow(3).sum(-1)


def elbo(mixture, z):
    return cost(z).sum() - mixture.log_prob(z).sum()


def separately(family, parameters, points, **options):
    """The gradient of the ELBO in two parts, by mixtures of their own: of the samples, from the
    slope there, and of the log density."""
    points = points.detach().clone().requires_grad_()
    mixture = family.build(parameters, **options)
    value = elbo(mixture, points)
    (slope,) = torch.autograd.grad(value, points, retain_graph=True)
    density = gradients(value, parameters)
    fresh = family.build(parameters, **options)
    sample = gradients(sample_at(fresh, points.detach()), parameters, slope)
    return {name: density[name] + sample[name] for name in parameters}


@contextlib.contextmanager
def counted(family):
    """Count the evaluations of the components' densities, by torch or by compiled loops."""
    count = mock.Mock()
    with contextlib.ExitStack() as stack:
        for cls, name in ((Normals, "log_prob"), (CompiledNormals, "evaluate")):
            method = getattr(cls, name)

            def counting(*args, method=method):
                count()
                return method(*args)

            stack.enter_context(mock.patch.object(cls, name, counting))
        yield count


@in_pairs
@each_transport
@pytest.mark.parametrize("weight_gradient", ["pathwise", "clustered", "hybrid"])
@pytest.mark.parametrize(
    ("batch_shape", "expanded", "sample_shape"),
    [((), (), ()), ((2,), (2,), (5,)), ((2,), (3, 2), ())],
)
def test_gradient_of_the_elbo(
    family, transport, weight_gradient, batch_shape, expanded, sample_shape
):
    """One evaluation of the components serves for both passes, and changes no gradient."""
    parameters = family.parameters(batch_shape, K=4)
    options = {"transport": transport, "weight_gradient": weight_gradient}
    mixture = family.build(parameters, **options).expand(expanded)
    z = mixture.rsample(sample_shape)
    with counted(family) as densities:
        actual = gradients(elbo(mixture, z), parameters)
    assert densities.call_count == 1
    assert relative_error(actual, separately(family, parameters, z, **options)) < TOLERANCE


@each_family
def test_through_wrappers(family):
    """As Pyro meets a mixture: with its batch made part of the event, and masked."""
    parameters = family.parameters((2, 3))
    for wrap in (lambda q: q.to_event(1), lambda q: q.mask(torch.tensor([True, False, True]))):
        mixture = wrap(family.build(parameters))
        z = mixture.rsample((5,))
        with counted(family) as densities:
            gradients(elbo(mixture, z), parameters)
        assert densities.call_count == 1


@each_family
def test_without_log_prob(family):
    """The backward pass computes what it needs, once for each."""
    parameters = family.parameters()
    z = family.build(parameters).rsample((5,))
    with counted(family) as densities:
        for _ in range(2):
            gradients(z, parameters)
    assert densities.call_count == 2


def shifted(mixture, z):
    mixture.log_prob(z + 1)


def shifted_copy(mixture, z):
    mixture.log_prob(z.detach().clone().add_(1))


def shifted_in_place(mixture, z):
    with torch.no_grad():
        mixture.log_prob(z.add_(1))
        z.sub_(1)


def second_sample(mixture, z):
    mixture.log_prob(mixture.rsample((5,)))


def first_after_second_sample(mixture, z):
    mixture.rsample((5,))
    mixture.log_prob(z)


def unlike_shape(mixture, z):
    mixture.log_prob(z.expand(3, *z.shape))


def without_gradient(mixture, z):
    with torch.no_grad():
        mixture.log_prob(z)


def changed_density(mixture, z):
    with torch.no_grad():
        mixture.log_prob(z).sub_(5)


def inference(mixture, z):
    with torch.inference_mode():
        mixture.log_prob(z)


def other_parameters(mixture, z):
    moved = copy.copy(mixture)
    moved.component_logits = torch.linspace(-1, 1, 3, dtype=torch.float64)
    moved.log_prob(z)


@in_pairs
@each_family
@pytest.mark.parametrize(
    "between",
    [
        shifted,
        shifted_copy,
        shifted_in_place,
        second_sample,
        first_after_second_sample,
        unlike_shape,
        without_gradient,
        changed_density,
        inference,
        other_parameters,
    ],
)
@pytest.mark.parametrize("create_graph", [False, True])
def test_nothing_between_changes_the_gradient(family, between, create_graph):
    """Of a sample, whatever else is evaluated before its backward pass."""
    parameters = family.parameters(K=3)
    mixture = family.build(parameters)
    z = mixture.rsample((5,))
    points = z.detach().clone()
    between(mixture, z)
    actual = torch.autograd.grad(
        z, list(parameters.values()), points.cos(), create_graph=create_graph
    )
    expected = gradients(sample_at(family.build(parameters), points), parameters, points.cos())
    assert relative_error(dict(zip(parameters, actual, strict=True)), expected) < TOLERANCE


@each_family
def test_changed_in_place(family):
    """A sample that was changed since is another value: the densities there are not its own."""
    parameters = family.parameters(K=3)
    mixture = family.build(parameters)
    z = mixture.rsample((5,))
    points = z.detach().clone()
    z.mul_(2)
    actual = gradients(elbo(mixture, z), parameters)
    fresh = sample_at(family.build(parameters), points)
    expected = gradients(elbo(family.build(parameters), 2 * fresh), parameters)
    assert relative_error(actual, expected) < TOLERANCE


@each_transport
def test_vmap(family, transport):
    """There tensors are wrapped: each mixture's gradient is its own."""
    batched = family.parameters((4,))

    def loss(parameters):
        mixture = family.build(parameters, transport=transport, validate_args=False)
        z = mixture.rsample((5,))
        return elbo(mixture, z), z

    actual, samples = vmap(grad(loss, has_aux=True), randomness="different")(batched)
    for b, points in enumerate(samples):
        parameters = leaves({name: value[b] for name, value in batched.items()})
        expected = separately(family, parameters, points, transport=transport)
        assert relative_error({k: v[b] for k, v in actual.items()}, expected) < TOLERANCE


@each_transport
@pytest.mark.parametrize("built", ["inside", "outside"])
def test_checkpoint(family, transport, built):
    """The second forward pass draws the same sample again, as another tensor."""
    parameters = family.parameters()
    outside = family.build(parameters, transport=transport)
    samples = []

    def step(*values):
        mixture = outside
        if built == "inside":
            mixture = family.build(dict(zip(parameters, values, strict=True)), transport=transport)
        samples.append(mixture.rsample((5,)))
        return elbo(mixture, samples[-1])

    value = checkpoint(step, *parameters.values(), use_reentrant=False)
    actual = gradients(value, parameters)
    assert torch.equal(samples[0], samples[1])
    expected = separately(family, parameters, samples[0], transport=transport)
    assert relative_error(actual, expected) < TOLERANCE


@each_family
def test_saved_tensors_that_are_copied(family):
    """Hooks that move saved tensors away and back return others of the same values."""
    parameters = family.parameters()
    mixture = family.build(parameters)
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone):
        z = mixture.rsample((5,))
        value = elbo(mixture, z)
    actual = gradients(value, parameters)
    assert relative_error(actual, separately(family, parameters, z)) < TOLERANCE


@each_family
@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda q: pickle.loads(pickle.dumps(q))]
)
def test_copies_after_a_sample(family, duplicate):
    """Its graph can neither be copied nor pickled, and the copy knows nothing of it."""
    parameters = {name: value.detach() for name, value in family.parameters().items()}
    for mixture in (family.build(parameters), family.build(parameters).expand((3,))):
        value = mixture.rsample((5,))
        mixture.log_prob(value)
        twin = duplicate(mixture)
        assert torch.equal(twin.log_prob(value), mixture.log_prob(value))


@each_family
def test_samples_are_not_held(family):
    """What is known of a sample is kept with the sample."""
    mixture = family.build(family.parameters())
    sample = weakref.ref(mixture.rsample((5,)))
    assert sample() is None


@each_family
def test_several_samples_of_one_mixture(family):
    """Each keeps what is known of it."""
    parameters = family.parameters(K=3)
    mixture = family.build(parameters, weight_gradient="pathwise")
    first, second = mixture.rsample((5,)), mixture.rsample((4,))
    with counted(family) as densities:
        actual = gradients(elbo(mixture, first) + elbo(mixture, second), parameters)
    assert densities.call_count == 2
    options = {"weight_gradient": "pathwise"}
    expected = [separately(family, parameters, z, **options) for z in (first, second)]
    total = {name: expected[0][name] + expected[1][name] for name in parameters}
    assert relative_error(actual, total) < TOLERANCE
