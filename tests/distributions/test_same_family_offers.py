"""A mixture of Normals offers the same by whatever constructor, however it was expanded."""

import functools
import math

import pytest
import torch
from torch.distributions import Categorical

from pyro_mixtures import MixtureSameFamily, kl_bounds
from pyro_mixtures.diagnostics import component_summary
from pyro_mixtures.estimators import (
    graves,
    gumbel_hard,
    gumbel_soft,
    implicit,
    marginalized,
    stratified,
)
from pyro_mixtures.estimators.strata import component_samples
from pyro_mixtures.plotting.marginal import Marginal
from tests.distributions.test_same_family_normals import NORMALS, diagonal
from tests.registry import beside_its_score, gradients, relative_error
from tests.samples.test_blending import knowing

SHAPES = {
    "alone": ((), lambda q: q),
    "batch": ((2,), lambda q: q),
    "added": ((2,), lambda q: q.expand((4, 2)).expand((3, 4, 2))),
    "repeated": ((1,), lambda q: q.expand((4, 2))),
}

each_make = pytest.mark.parametrize(
    "make", [*NORMALS.values(), functools.partial(diagonal, (1,))], ids=[*NORMALS, "column"]
)
each_shape = pytest.mark.parametrize("shape", SHAPES)


def both(make, shape, **options):
    """Parameters, the mixture, and the same of its own class, over vectors."""
    batch_shape, expand = SHAPES[shape]
    parameters, components, build = make(batch_shape=batch_shape, spread=1.5)
    mixture = MixtureSameFamily(Categorical(logits=parameters["logits"]), components, **options)
    return parameters, *(expand(q) for q in (mixture, build(**options)))


def vectors(x, q):
    """``(*X, *E) -> (*X, D)``."""
    return x.unsqueeze(-1).flatten(x.dim() - len(q.event_shape))


def events(z, q):
    """``(*X, D) -> (*X, *E)``."""
    return z.reshape(z.shape[:-1] + q.event_shape)


def numbers(*shape):
    """The same ones at each call."""
    return torch.linspace(-1.3, 1.9, math.prod(shape), dtype=torch.float64).reshape(shape).sin()


def points(q, first=3):
    return 2 * numbers(first, *q.batch_shape, q.event_shape.numel())


def same_numbers(function, q):
    torch.manual_seed(3)
    return function(q)


def of_linear(image):
    """What the law of a part or an image, a mixture of the same class, does."""
    z = points(image)
    moved = vectors(same_numbers(lambda image: image.rsample((2,)), image), image)
    return image.log_prob(events(z, image)), moved, vectors(image.mean, image)


def moments(q):
    return vectors(q.mean, q), vectors(q.variance, q), q.covariance_matrix


def densities(q):
    z = events(points(q), q)
    return q.log_prob(z), q.component_log_prob(z), q.responsibilities(z)


def cdfs(q):
    probabilities = points(q).tanh().square().clamp(0.01, 0.99)
    return q.marginal_cdf(points(q)), q.marginal_icdf(probabilities)


def number_cdfs(q):
    z = points(q)
    probabilities = z.squeeze(-1).tanh().square().clamp(0.01, 0.99)
    return q.cdf(events(z, q)), vectors(q.icdf(probabilities), q)


def bounds(q):
    dim = q.event_shape.numel()
    own, other = q.marginal(range(dim)), q.affine(1 + numbers(dim).square())
    pairs = ((own, other), (other, own), (q, q))
    return [*q.entropy_bounds(), *(x for pair in pairs for x in kl_bounds(*pair))]


def marginals(q):
    dim = q.event_shape.numel()
    dims = [[0], -1, list(reversed(range(dim)))]
    return [x for each in dims for x in of_linear(q.marginal(each))]


def conditionals(q):
    known = 2 * numbers(*q.batch_shape, 1)
    return [
        *of_linear(q.condition([0], known[..., :1])),
        *of_linear(q.condition(-1, 2 * numbers(5, *(1 for _ in q.batch_shape), 1))),
    ]


def images(q):
    dim = q.event_shape.numel()
    vector, matrix = 1 + numbers(dim).square(), torch.eye(dim)[: max(1, dim - 1)] + numbers(dim)
    return [
        *of_linear(q.affine(-vector)),
        *of_linear(q.affine(vector, numbers(*q.batch_shape, dim))),
        *of_linear(q.affine(matrix, numbers(matrix.shape[0]))),
    ]


def weight_gradients(q):
    results = []
    for name in ("pathwise", "clustered", "hybrid"):
        each = q.with_weight_gradient(name)
        z = each.rsample((3,))
        score = torch.as_tensor(each.score_parts(z).score_function)
        results += [vectors(z, q), score.expand(3, *q.batch_shape)]
    return results


def blends(q):
    """By shares that were learned, in a loss with the score term and in one without."""
    q = q.blended(knowing([0.9, 0.3, 0.4], [1.0, 1.0, 1.0]))
    z = q.rsample((3,))
    beside = vectors(beside_its_score(q, z), q)
    z = q.rsample((3,))
    return vectors(z, q), q.score_parts(z).score_function, beside


def estimators(q):
    def cost(z):
        return (vectors(z, q) * numbers(q.event_shape.numel())).sum(-1).cos()

    samples = [estimate(q).rsample((4,)) for estimate in (stratified, implicit)]
    return *(vectors(z, q) for z in samples), marginalized(q, cost, num_samples=3)


def graves_samples(q):
    return (vectors(graves(q).rsample((3,)), q),)


def gumbel_samples(q):
    return gumbel_soft(q).rsample((3,)), gumbel_hard(q).rsample((3,))


def strata(q):
    return (vectors(component_samples(q, (3,)), q),)


def summary(q):
    found = component_summary(q)
    return found.weights, found.overlaps, found.effective_components, found.distinct_components


FEATURES = {
    "moments": moments,
    "densities": densities,
    "cdfs": cdfs,
    "bounds": bounds,
    "marginals": marginals,
    "conditionals": conditionals,
    "images": images,
    "weight gradients": weight_gradients,
    "blends": blends,
    "estimators": estimators,
    "strata": strata,
    "summary": summary,
    "cdf and icdf": number_cdfs,
    "graves": graves_samples,
    "gumbel": gumbel_samples,
}


def serves(feature, q):
    """Whether a mixture of the classes with tensors has it."""
    is_diagonal = q.components.scale.own.kind == "diagonal"
    return {
        "cdf and icdf": q.event_shape.numel() == 1,
        "conditionals": q.event_shape.numel() > 1,
        "graves": is_diagonal,
        "gumbel": is_diagonal,
    }.get(feature, True)


@each_make
@each_shape
def test_what_normals_offer(make, shape):
    """Values, and the gradients of all parameters, of samples by the same random numbers."""
    torch.manual_seed(0)
    parameters, mixture, own = both(make, shape)
    assert mixture.batch_shape == own.batch_shape
    assert torch.equal(mixture.groups, own.groups)
    for name, feature in FEATURES.items():
        if not serves(name, own):
            errors = [refusal(feature, q) for q in (mixture, own)]
            assert errors[0].replace("MixtureSameFamily", type(own).__name__) == errors[1]
            continue
        if name == "gumbel" and len(mixture.event_shape) != 1:
            assert "mixture of vectors for the estimator 'gumbel_soft'" in refusal(
                feature, mixture
            )
            continue
        values, expected = (same_numbers(feature, q) for q in (mixture, own))
        torch.testing.assert_close(list(values), list(expected), rtol=1e-10, atol=1e-12)
        if any(x.requires_grad for x in expected):
            error = relative_error(*(all_gradients(x, parameters) for x in (values, expected)))
            assert error < 1e-10, name
    if len(mixture.event_shape) == 1:
        torch.testing.assert_close(kl_bounds(mixture, own), kl_bounds(own, own))


def refusal(feature, q):
    """The words of an error."""
    with pytest.raises((NotImplementedError, ValueError)) as caught:
        feature(q)
    return str(caught.value)


def all_gradients(values, parameters):
    return gradients(
        sum((x * numbers(*x.shape)).sum() for x in values if x.requires_grad), parameters
    )


@each_make
@each_shape
def test_parts_are_of_the_same_class(make, shape):
    """With its options, and have parts themselves."""
    options = {"transport": "telescoping", "weight_gradient": "hybrid"}
    _, mixture, _ = both(make, shape, **options)
    dim = mixture.event_shape.numel()
    parts = [mixture.marginal(range(dim)), mixture.affine(torch.eye(dim)[:1].double())]
    if dim > 1:
        parts.append(mixture.condition([0], torch.zeros(1).double()))
    for part in parts:
        assert type(part) is MixtureSameFamily
        assert (part.transport, part.weight_gradient) == ("telescoping", "hybrid")
        assert part.batch_shape == mixture.batch_shape
        torch.testing.assert_close(part.marginal([0]).mean, part.mean[..., :1])


@each_make
def test_plotted_marginals(make):
    torch.manual_seed(0)
    _, mixture, own = both(make, "alone")
    if len(mixture.event_shape) > 1:
        with pytest.raises(ValueError, match="numbers or vectors"):
            Marginal(mixture, 0)
        return
    dims = range(min(2, mixture.event_shape.numel()))
    mine, theirs = Marginal(mixture, dims), Marginal(own, dims)
    for name in ("draws", "component_draws"):
        assert getattr(mine, name) == pytest.approx(getattr(theirs, name), rel=1e-10, abs=1e-12)
    for name, at in (("log_prob", mine.draws[:5]), ("own_log_prob", mine.component_draws[:5])):
        expected = getattr(theirs, name)(at)
        assert getattr(mine, name)(at) == pytest.approx(expected, rel=1e-10, abs=1e-12)
