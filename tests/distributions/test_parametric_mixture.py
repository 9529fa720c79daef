"""What mixtures of named tensors keep beyond the contract: densities of components, scores."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical, Normal

from tests.pairwise import in_pairs
from tests.registry import (
    FAMILIES,
    each_family,
    each_transport,
    gradients,
    leaves,
    relative_error,
    repeated,
    sample_at,
)

SIZES = st.integers(1, 3)
SHAPES = st.lists(SIZES, max_size=2).map(tuple)
EXACT = {"rtol": 1e-10, "atol": 1e-12}


@given(
    family=st.sampled_from(list(FAMILIES.values())),
    data=st.data(),
    batch_shape=SHAPES,
    sample_shape=SHAPES,
    K=SIZES,
    D=SIZES,
)
def test_shapes_and_broadcasting(family, data, batch_shape, sample_shape, K, D):
    """Parameters that broadcast equal those repeated in full: density and gradient."""
    parameters = family.parameters(batch_shape, K=K, D=D)
    for name, value in parameters.items():
        for dim in (
            data.draw(st.sets(st.sampled_from(range(len(batch_shape))))) if batch_shape else ()
        ):
            value = value.narrow(dim, 0, 1)
        parameters[name] = value
    parameters = leaves(parameters)
    letters = family.distribution._parameter_shapes()
    batch_shape = torch.broadcast_shapes(
        *(value.shape[: value.dim() - len(letters[name])] for name, value in parameters.items())
    )
    full = repeated(parameters, batch_shape, family)
    transport = data.draw(st.sampled_from(list(family.distribution.transports)))
    mixture, explicit = (family.build(p, transport=transport) for p in (parameters, full))
    assert mixture.batch_shape == batch_shape
    assert mixture.event_shape == (D,)
    assert mixture.num_components == K
    z = mixture.rsample(sample_shape)
    assert z.shape == (*sample_shape, *batch_shape, D)
    assert mixture.log_prob(z).shape == (*sample_shape, *batch_shape)
    assert mixture.component_log_prob(z).shape == (*sample_shape, *batch_shape, K)
    assert mixture.mean.shape == mixture.variance.shape == (*batch_shape, D)

    points = z.detach()
    torch.testing.assert_close(mixture.log_prob(points), explicit.log_prob(points), **EXACT)
    actual = gradients(sample_at(mixture, points), parameters, points.cos())
    repeats = gradients(sample_at(explicit, points), full, points.cos())
    for name, value in parameters.items():
        expected = repeats[name].sum_to_size(value.shape)
        torch.testing.assert_close(actual[name], expected, **EXACT)


@given(
    family=st.sampled_from(list(FAMILIES.values())),
    value_shape=st.sampled_from([(), (2,), (3, 1), (3, 2), (4, 1, 1), (4, 3, 2), (5, 1, 3, 1)]),
    batch_shape=st.sampled_from([(), (2,), (3, 1), (3, 2), (1, 1)]),
    D=SIZES,
)
def test_densities(family, value_shape, batch_shape, D):
    """Of any value that broadcasts, against torch's classes."""
    parameters = family.parameters(batch_shape, K=3, D=D)
    mixture, reference = family.build(parameters), family.reference(parameters)
    value = 2 * torch.randn(*value_shape, D, dtype=torch.float64)
    expected = reference.log_prob(value)
    torch.testing.assert_close(mixture.log_prob(value), expected, **EXACT)
    components = reference.component_distribution.log_prob(value.unsqueeze(-2))
    torch.testing.assert_close(mixture.component_log_prob(value), components, **EXACT)
    joint = reference.mixture_distribution.logits + components
    bayes = (joint - expected.unsqueeze(-1)).exp()
    torch.testing.assert_close(mixture.responsibilities(value), bayes, **EXACT)
    actual = gradients(mixture.log_prob(value), parameters)
    assert relative_error(actual, gradients(expected, parameters)) < 1e-10


@each_family
def test_marginals(family):
    """A coordinate of a Normal is Normal, whatever the family's covariances."""
    parameters = family.parameters((2,), K=3, D=3, spread=3.0)
    mixture, reference = family.build(parameters), family.reference(parameters)
    component = reference.component_distribution
    value = 3 * torch.randn(5, 2, 3, dtype=torch.float64)
    cdf = Normal(component.mean, component.stddev).cdf(value.unsqueeze(-2))
    weights = reference.mixture_distribution.probs.unsqueeze(-1)
    torch.testing.assert_close(mixture.marginal_cdf(value), (weights * cdf).sum(-2), **EXACT)
    probability = torch.rand(5, 2, 3, dtype=torch.float64)
    quantile = mixture.marginal_icdf(probability)
    torch.testing.assert_close(mixture.marginal_cdf(quantile), probability, **EXACT)
    assert (mixture.marginal_icdf(0.0) == -math.inf).all()
    assert (mixture.marginal_icdf(1.0) == math.inf).all()


@in_pairs
@each_transport
@pytest.mark.parametrize("weight_gradient", ["pathwise", "clustered", "hybrid"])
@pytest.mark.parametrize(
    ("batch_shape", "expanded"),
    [
        ((), (4,)),
        ((2,), (3, 2)),
        ((3, 1), (3, 4)),
        ((3, 1), (2, 3, 4)),
        ((1,), (1, 1)),
        ((2,), (2,)),
    ],
)
def test_expand(family, transport, weight_gradient, batch_shape, expanded):
    """The same as parameters repeated in memory: density, samples' gradient and score term."""
    parameters = family.parameters(batch_shape, K=4, D=2, spread=2.5)
    options = {"transport": transport, "weight_gradient": weight_gradient}
    full = repeated(parameters, expanded, family)
    mixture = family.build(parameters, **options).expand(expanded)
    explicit = family.build(full, **options)
    assert type(mixture) is family.distribution
    assert mixture.batch_shape == expanded
    assert mixture.rsample((5,)).shape == (5, *expanded, 2)
    torch.testing.assert_close(mixture.mean, explicit.mean, **EXACT)
    points = explicit.sample((5,))

    def outputs(q, p):
        parts = q.score_parts(points)
        score = (torch.as_tensor(parts.score_function) * points.sum(-1)).sum()
        z = sample_at(q, points)
        assert torch.equal(z, points)
        surrogate = (z * points.cos()).sum() + score
        return parts.log_prob, gradients(parts.log_prob, p), gradients(surrogate, p)

    log_prob, *actual = outputs(mixture, parameters)
    expected_log_prob, *expected = outputs(explicit, full)
    torch.testing.assert_close(log_prob, expected_log_prob, **EXACT)
    for values, repeats in zip(actual, expected, strict=True):
        sums = {k: v.sum_to_size(parameters[k].shape) for k, v in repeats.items()}
        assert relative_error(values, sums) < 1e-10


@each_transport
def test_reparameterize(family, transport):
    """The gradients of ``rsample`` for samples drawn elsewhere, whose own history is cut."""
    parameters = family.parameters((2,))
    mixture = family.build(parameters, transport=transport).expand((3, 2))
    points = mixture.rsample((5,))
    z = mixture.reparameterize(points)
    assert torch.equal(z, points)
    expected = gradients(sample_at(mixture, points.detach()), parameters, points.detach().cos())
    assert relative_error(gradients(z, parameters, points.detach().cos()), expected) < 1e-12


@each_transport
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda q: pickle.loads(pickle.dumps(q))])
def test_copies(family, transport, duplicate):
    parameters = {name: value.detach() for name, value in family.parameters((2,)).items()}
    options = {"transport": transport, "weight_gradient": "clustered"}
    for mixture in (family.build(parameters, **options), family.build(parameters).expand((3, 2))):
        value = mixture.sample((4,))
        twin = duplicate(mixture)
        assert (twin.transport, twin.weight_gradient) == (
            mixture.transport,
            mixture.weight_gradient,
        )
        assert torch.equal(twin.log_prob(value), mixture.log_prob(value))
        assert twin.sample((4,)).shape == value.shape


@each_transport
def test_score_parts(family, transport):
    parameters = family.parameters(K=4, spread=3.0)
    points = family.build(parameters).sample((6,))
    log_prob = family.reference(parameters).log_prob(points)
    for weight_gradient in ("pathwise", "clustered", "hybrid"):
        mixture = family.build(parameters, transport=transport, weight_gradient=weight_gradient)
        parts = mixture.score_parts(sample_at(mixture, points))
        torch.testing.assert_close(parts.log_prob, log_prob, **EXACT)
        assert parts.entropy_term is parts.log_prob
    # the last one is the plain score function of the logits, with the samples' labels averaged out
    score = gradients(parts.score_function, parameters)["component_logits"]
    torch.testing.assert_close(score, gradients(log_prob, parameters)["component_logits"], **EXACT)
    # a value from elsewhere has no gradient that a score term could complete
    assert mixture.score_parts(points).score_function == 0


@each_family
def test_index_frequencies_and_dead_components(family):
    """Never a component of weight zero, though it stands first, last or in between."""
    parameters = family.parameters(K=5, D=1, **family.apart)
    equal = {**parameters, "component_logits": torch.zeros(5, dtype=torch.float64)}
    logits = torch.tensor([-torch.inf, 0, -torch.inf, 1, -torch.inf]).double()
    z = family.build({**parameters, "component_logits": logits}).sample((10_000,))
    origin = family.build(equal).responsibilities(z).argmax(-1)
    counts = origin.bincount(minlength=5) / 10_000
    assert counts[[0, 2, 4]].sum() == 0
    expected = Categorical(logits=torch.tensor([0.0, 1.0])).probs.to(counts)
    assert (counts[[1, 3]] - expected).abs().max() < 0.022  # 5 standard errors
