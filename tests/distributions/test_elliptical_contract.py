"""What every elliptical law keeps: shapes, densities, moments and what Pyro does with it."""

import copy
import pickle

import pyro
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyro import poutine
from torch.distributions import MultivariateNormal, constraints, kl_divergence

from tests.elliptical import LAWS, each_law, laws, sample_at, sampled
from tests.pairwise import in_pairs
from tests.registry import assert_same, gradients, leaves, randn, relative_error, repeated

SIZES = st.integers(1, 3)
SHAPES = st.lists(SIZES, max_size=2).map(tuple)
EXACT = {"rtol": 1e-10, "atol": 1e-12}

each_normal = laws(lambda law: issubclass(law.distribution, MultivariateNormal))


@given(
    law=st.sampled_from(list(LAWS.values())),
    data=st.data(),
    batch_shape=SHAPES,
    sample_shape=SHAPES,
    D=SIZES,
    M=SIZES,
)
def test_shapes_and_broadcasting(law, data, batch_shape, sample_shape, D, M):
    """Parameters that broadcast equal those repeated in full: density and gradient."""
    parameters = law.parameters(batch_shape, D=D, M=M)
    letters = law.distribution._parameter_shapes()
    for name, value in parameters.items():
        alike = st.sets(st.sampled_from(range(len(batch_shape)))) if batch_shape else st.just(())
        for dim in data.draw(alike):
            value = value.narrow(dim, 0, 1)
        absent = data.draw(st.integers(0, len(batch_shape)))
        for _ in range(absent):
            value = value[0]
        parameters[name] = value
    parameters = leaves(parameters)
    batches = [x.shape[: x.dim() - len(letters[name])] for name, x in parameters.items()]
    batch_shape = torch.broadcast_shapes(*batches)
    full = repeated(parameters, batch_shape, law)
    q, explicit = law.build(parameters), law.build(full)
    assert (q.batch_shape, q.event_shape) == (batch_shape, (D,))
    z = q.rsample(sample_shape)
    assert z.shape == (*sample_shape, *batch_shape, D)
    assert q.log_prob(z).shape == (*sample_shape, *batch_shape)

    points = z.detach()
    torch.testing.assert_close(q.log_prob(points), explicit.log_prob(points), **EXACT)
    actual = gradients(sample_at(q, points), sampled(parameters), points.cos())
    repeats = gradients(sample_at(explicit, points), sampled(full), points.cos())
    for name, value in actual.items():
        torch.testing.assert_close(value, repeats[name].sum_to_size(value.shape), **EXACT)


@given(
    law=st.sampled_from(list(LAWS.values())),
    value_shape=st.sampled_from([(), (2,), (3, 1), (3, 2), (4, 1, 1), (4, 3, 2), (5, 1, 3, 1)]),
    batch_shape=st.sampled_from([(), (2,), (3, 1), (3, 2), (1, 1)]),
    D=SIZES,
)
def test_densities(law, value_shape, batch_shape, D):
    """Of any value that broadcasts, with gradients of the value and all parameters."""
    parameters = law.parameters(batch_shape, D=D)
    value = (2 * randn(*value_shape, D)).requires_grad_()
    actual, expected = (build(parameters).log_prob(value) for build in (law.build, law.reference))
    parameters.pop("control_var", None)
    assert_same(actual, expected, {**parameters, "value": value})


@pytest.mark.parametrize("name", ["avf_normal", "omt_normal", "avf_student_t"])
@pytest.mark.parametrize("expanded", [None, (4, 2, 3)])
def test_moments(name, expanded):
    law = LAWS[name]
    parameters = law.parameters((2, 3))
    q, reference = law.build(parameters), law.reference(parameters)
    if expanded is not None:
        q, reference = q.expand(expanded), reference.expand(expanded)
    for moment in ("mean", "variance", "stddev", "covariance_matrix", "precision_matrix"):
        expected = getattr(reference, moment)
        actual = getattr(q, moment)
        assert actual.shape == expected.shape, moment
        torch.testing.assert_close(actual, expected, **EXACT)


def test_moments_that_do_not_exist():
    law = LAWS["avf_student_t"]
    parameters = law.parameters((3,))
    parameters["df"] = torch.tensor([0.5, 1.5, 3.0]).double()
    q = law.build(parameters)
    assert q.mean.isnan().all(-1).tolist() == [True, False, False]
    assert q.variance.isnan().all(-1).tolist() == [True, False, False]
    assert q.variance.isinf().all(-1).tolist() == [False, True, False]


@each_normal
@pytest.mark.parametrize("expanded", [(2,), (3, 2)])
def test_entropy_and_divergence(law, expanded):
    one, other = (law.parameters((2,), seed=seed) for seed in (1, 2))
    p, q = (law.build(parameters).expand(expanded) for parameters in (one, other))
    exact_p, exact_q = (law.reference(x).expand(expanded) for x in (one, other))
    assert isinstance(q, MultivariateNormal)
    given = {**one, **{f"other_{name}": value for name, value in other.items()}}
    assert_same(q.entropy(), exact_q.entropy(), given)
    for left, right in ((p, q), (p, exact_q), (exact_p, q)):
        assert_same(kl_divergence(left, right), kl_divergence(exact_p, exact_q), given)


@each_law
@pytest.mark.parametrize(
    ("batch_shape", "expanded"),
    [((), (4,)), ((2,), (3, 2)), ((3, 1), (3, 4)), ((3, 1), (2, 3, 4)), ((2,), (2,))],
)
def test_expand(law, batch_shape, expanded):
    """The same as parameters repeated in memory: density and samples' gradient. On the left new
    dimensions are samples of one law."""
    parameters = law.parameters(batch_shape)
    full = repeated(parameters, expanded, law)
    q, explicit = law.build(parameters).expand(expanded), law.build(full)
    assert type(q) is law.distribution
    assert q.batch_shape == expanded
    assert q.rsample((5,)).shape == (5, *expanded, 3)
    points = explicit.sample((5,))
    torch.testing.assert_close(q.log_prob(points), explicit.log_prob(points), **EXACT)
    actual = gradients(sample_at(q, points), sampled(parameters), points.cos())
    repeats = gradients(sample_at(explicit, points), sampled(full), points.cos())
    sums = {k: v.sum_to_size(parameters[k].shape) for k, v in repeats.items()}
    assert relative_error(actual, sums) < 1e-10


@each_law
def test_expanded_twice(law):
    q = law.build(law.parameters((2,))).expand((3, 2)).expand((4, 3, 2))
    assert q.rsample((5,)).shape == (5, 4, 3, 2, 3)
    assert len(q.sample().unique()) == 4 * 3 * 2 * 3


@each_law
@pytest.mark.parametrize(("batch_shape", "sample_shape"), [((0,), (2,)), ((2,), (0,)), ((), (0,))])
def test_none_at_all(law, batch_shape, sample_shape):
    parameters = law.parameters(batch_shape)
    z = law.build(parameters).rsample(sample_shape)
    assert z.shape == (*sample_shape, *batch_shape, 3)
    for name, value in gradients(z, parameters).items():
        assert value.shape == parameters[name].shape
        assert (value == 0).all()
    assert law.build(parameters).log_prob(z.detach()).shape == z.shape[:-1]


@each_law
@pytest.mark.parametrize("batch_shape", [(), (2,), (3, 1)])
def test_sample_is_rsample_without_gradient(law, batch_shape):
    q = law.build(law.parameters(batch_shape))
    torch.manual_seed(1)
    z = q.rsample((4,))
    torch.manual_seed(1)
    sample = q.sample((4,))
    assert torch.equal(z, sample)
    assert z.requires_grad
    assert not sample.requires_grad
    assert q.has_rsample


@each_normal
def test_samples_are_those_of_torch(law):
    """With the same random numbers: results can be compared by a change of the class."""
    parameters = law.parameters((2,))
    torch.manual_seed(1)
    z = law.build(parameters).rsample()
    torch.manual_seed(1)
    torch.testing.assert_close(z, law.reference(parameters).rsample(), **EXACT)


@in_pairs
@each_law
@pytest.mark.parametrize("expanded", [None, (4, 2)])
@pytest.mark.parametrize("sample_shape", [(), (5,)])
def test_score_parts(law, expanded, sample_shape):
    """Of the sample just drawn: with all gradients of the density there, but those that a
    control variate would take for the model's."""
    parameters = law.parameters((2,))
    q = law.build(parameters)
    if expanded is not None:
        q = q.expand(expanded)
    z = q.rsample(sample_shape)
    for value in (z, z.detach(), q.sample(sample_shape)):  # known, and any other
        parts = q.score_parts(value)
        assert parts.score_function == 0
        assert parts.entropy_term is parts.log_prob
        torch.testing.assert_close(parts.log_prob, q.log_prob(value), **EXACT)
        actual = gradients(parts.log_prob.cos(), parameters)
        expected = gradients(q.log_prob(value).cos(), parameters)
        expected.pop("control_var", None)
        assert (actual.pop("control_var", torch.zeros(())) == 0).all()
        assert relative_error(actual, expected) < 1e-10
    parts = q.score_parts(z)
    with torch.no_grad():
        z.mul_(2)
        torch.testing.assert_close(q.score_parts(z).log_prob, q.log_prob(z), **EXACT)
        assert (q.score_parts(z).log_prob != parts.log_prob).all()


@each_law
def test_constraints(law):
    q = law.build(law.parameters())
    assert set(q.arg_constraints) == set(law.distribution._parameter_shapes())
    assert q.support is constraints.real_vector
    assert q.event_dim == 1
    for name, constraint in q.arg_constraints.items():
        assert constraint.check(getattr(q, name)).all()


@each_law
def test_to_event_and_mask(law):
    q = law.build(law.parameters((2, 4)))
    value = q.sample((5,))
    log_prob = q.log_prob(value)
    event = q.to_event(1)
    assert (event.batch_shape, event.event_shape) == ((2,), (4, 3))
    torch.testing.assert_close(event.log_prob(value), log_prob.sum(-1))
    mask = torch.tensor([True, False, True, True])
    torch.testing.assert_close(q.mask(mask).log_prob(value), log_prob * mask)


@each_law
def test_in_plates(law):
    parameters = law.parameters()

    def model():
        with pyro.plate("outer", 4, dim=-2), pyro.plate("inner", 5, dim=-1):
            return pyro.sample("z", law.build(parameters))

    trace = poutine.trace(model).get_trace()
    trace.compute_log_prob()
    site = trace.nodes["z"]
    assert site["value"].shape == (4, 5, 3)
    expected = law.reference(parameters).log_prob(site["value"])
    torch.testing.assert_close(site["log_prob"], expected, **EXACT)
    assert len({tuple(z.tolist()) for z in site["value"].flatten(0, 1)}) == 20
    assert all((g != 0).any() for g in gradients(site["value"].cos(), parameters).values())


@each_law
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda q: pickle.loads(pickle.dumps(q))])
def test_copies(law, duplicate):
    constants = {name: value.detach() for name, value in law.parameters((2,)).items()}
    for q in (law.build(constants), law.build(constants).expand((3, 2))):
        q.rsample()
        value = q.sample((4,))
        twin = duplicate(q)
        assert type(twin) is type(q)
        assert torch.equal(twin.log_prob(value), q.log_prob(value))
        assert twin.sample((4,)).shape == value.shape
