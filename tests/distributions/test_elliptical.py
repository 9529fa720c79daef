"""What elliptical distributions keep beyond the contract: moments, divergences, score parts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal, kl_divergence

from tests.elliptical import LAWS, each_law, laws
from tests.pairwise import in_pairs
from tests.registry import assert_same, gradients, randn, relative_error

SIZES = st.integers(1, 3)
SHAPES = st.lists(SIZES, max_size=2).map(tuple)
EXACT = {"rtol": 1e-10, "atol": 1e-12}

each_normal = laws(lambda law: issubclass(law.distribution, MultivariateNormal))


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
