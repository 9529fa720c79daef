"""Divergences of pairs of Normals, and bounds of the entropies of mixtures."""

import math
from fractions import Fraction

import numpy
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from pyro_mixtures.distributions import MixtureOfDiagNormals
from pyro_mixtures.normals import bounds
from tests.pairwise import in_pairs
from tests.registry import each_family, gradients, grid

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def double(values):
    return torch.tensor(values, dtype=torch.float64)


# pairs of Normals


def scale_of(kind, K, D, *batch):
    """Standard deviations or Cholesky factors, of each component or of all."""
    K = 1 if "shared" in kind else K
    scale = 0.5 + torch.rand(*batch, K, D, dtype=torch.float64)
    if "full" in kind:
        return scale.diag_embed() + torch.randn(*batch, K, D, D, dtype=torch.float64).tril(-1)
    return scale


def torch_normal(locs, scales):
    factor = scales if scales.dim() > locs.dim() else scales.diag_embed()
    return MultivariateNormal(locs, scale_tril=factor.expand(*locs.shape, locs.shape[-1]))


KINDS = ["diag", "diag shared", "full", "full shared"]


@in_pairs
@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("batches", [((), ()), ((2, 3), (2, 3)), ((3,), (2, 1)), ((4,), ())])
def test_pairs(first, second, batches):
    """Of sets of different size: against torch's divergence and covariances of sums."""
    D, batch = 3, torch.broadcast_shapes(*batches)
    locs, other_locs = (
        torch.randn(*shape, K, D, dtype=torch.float64)
        for shape, K in zip(batches, (4, 2), strict=True)
    )
    scales, other_scales = scale_of(first, 4, D, *batches[0]), scale_of(second, 2, D, *batches[1])
    pairs = (locs, scales, other_locs, other_scales)
    p = torch_normal(locs, scales).expand((*batches[0], 4))
    q = torch_normal(other_locs, other_scales).expand((*batches[1], 2))
    p = MultivariateNormal(p.loc.unsqueeze(-2), scale_tril=p.scale_tril.unsqueeze(-3))
    q = MultivariateNormal(q.loc.unsqueeze(-3), scale_tril=q.scale_tril.unsqueeze(-4))

    divergence = kl_divergence(p.expand((*batch, 4, 2)), q.expand((*batch, 4, 2)))
    torch.testing.assert_close(bounds.kl_divergences(*pairs), divergence, **EXACT)
    total = p.covariance_matrix + q.covariance_matrix
    overlap = MultivariateNormal(p.loc, total).log_prob(q.loc)
    torch.testing.assert_close(bounds.log_overlaps(*pairs), overlap, **EXACT)
    # sqrt(f) is a multiple of the Normal with twice the covariance
    mean_overlap = MultivariateNormal(p.loc, 2 * total).log_prob(q.loc)
    volumes = torch.logdet(p.covariance_matrix) + torch.logdet(q.covariance_matrix)
    distance = -mean_overlap - volumes / 4 - D / 2 * math.log(8 * math.pi)
    torch.testing.assert_close(bounds.bhattacharyya_distances(*pairs), distance, **EXACT)
    entropy = torch_normal(locs, scales).entropy()
    actual = bounds.entropies(locs, scales).expand(entropy.shape)
    torch.testing.assert_close(actual, entropy, **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_by_integration(kind):
    """The definitions, on a line."""
    step = 0.02
    points = torch.arange(-20, 20, step, dtype=torch.float64).unsqueeze(-1)
    pairs = (double([[0.3], [-1.0]]), scale_of(kind, 2, 1), double([[2.0]]), double([[0.7]]))
    p, q = torch_normal(*pairs[:2]), torch_normal(*pairs[2:])
    log_p, log_q = p.log_prob(points.unsqueeze(-2)), q.log_prob(points.unsqueeze(-2))

    def integral(values):
        return values.sum(0, keepdim=True).mT * step  # (2, 1)

    for function, expected in [
        (bounds.kl_divergences, integral(log_p.exp() * (log_p - log_q))),
        (bounds.bhattacharyya_distances, -integral(((log_p + log_q) / 2).exp()).log()),
        (bounds.log_overlaps, integral((log_p + log_q).exp()).log()),
    ]:
        torch.testing.assert_close(function(*pairs), expected, **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_pairs(kind):
    """Also where Normals coincide."""
    locs, scales = torch.zeros(2, 2, dtype=torch.float64), scale_of(kind, 2, 2)
    locs[1] = 1
    pairs = [x.clone().requires_grad_() for x in (locs, scales, locs, scales)]
    for function in (bounds.kl_divergences, bounds.bhattacharyya_distances, bounds.log_overlaps):
        torch.autograd.gradcheck(
            lambda a, b, c, d, function=function: function(
                a, b.tril() if "full" in kind else b, c, d.tril() if "full" in kind else d
            ),
            pairs,
        )


# components that are ill-conditioned, or have no density: dead ones of fits that went wrong


FUNCTIONS = (bounds.kl_divergences, bounds.bhattacharyya_distances, bounds.log_overlaps)


@pytest.mark.parametrize("widest", [1e2, 1e5, 1e10, 1e150])
def test_axes_of_very_different_lengths(widest):
    """The sum of the covariances has no Cholesky factor; the same as diagonals is exact."""
    torch.manual_seed(0)
    locs, scales = torch.randn(3, 20, dtype=torch.float64), scale_of("diag", 3, 20)
    axes = double([widest]).pow(torch.linspace(-1, 1, 20, dtype=torch.float64))
    scales[1] = scales[1] * axes[torch.randperm(20)]
    full = scales.diag_embed()
    for function in FUNCTIONS:
        expected = function(locs, scales, locs, scales)
        torch.testing.assert_close(function(locs, full, locs, full), expected, **EXACT)


def exactly(tensor):
    return numpy.vectorize(Fraction, otypes=[object])(tensor.numpy())


def exact_distance(locs, factor, other_locs, other_factor):
    """Bhattacharyya distance of two Normals, by elimination of rational numbers."""
    first, second = exactly(factor), exactly(other_factor)
    offset = exactly(locs) - exactly(other_locs)
    rows = numpy.column_stack([(first @ first.T + second @ second.T) / 2, offset])
    log_volume, square = 0.0, Fraction(0)
    for index in range(len(rows)):
        pivot = rows[index, index]
        log_volume += math.log(pivot.numerator) - math.log(pivot.denominator)
        square += rows[index, -1] ** 2 / pivot
        rows[index + 1 :] -= numpy.outer(rows[index + 1 :, index] / pivot, rows[index])
    for diagonal in (factor.diagonal(), other_factor.diagonal()):
        log_volume -= float(diagonal.log().sum())
    return float(square) / 8 + log_volume / 2


@pytest.mark.parametrize("size", [1e3, 1e6, 1e9, 1e12])
def test_ill_conditioned_triangles(size):
    """Rows as long as those of a guide that diverged, in both orders."""
    torch.manual_seed(0)
    locs, scales = torch.randn(2, 5, dtype=torch.float64), scale_of("full", 2, 5)
    scales[1] = scales[1] * size ** double([0.1, 1.0, -0.2, 0.6, 0.3]).unsqueeze(-1)
    expected = exact_distance(locs[0], scales[0], locs[1], scales[1])
    found = bounds.bhattacharyya_distances(locs, scales, locs, scales)
    rounding = max(1e-7, size * 2.0**-49)  # times the condition of one in units of the other
    assert found[0, 1].item() == pytest.approx(expected, abs=rounding)
    assert found[1, 0].item() == pytest.approx(expected, abs=rounding)


def test_derivatives_where_the_sum_has_no_factor():
    torch.manual_seed(0)
    locs, scales = torch.randn(2, 3, dtype=torch.float64), scale_of("full", 2, 3)
    scales[1, 1] *= 1e5
    pairs = [x.requires_grad_() for x in (locs, scales.tril())]
    distance = bounds.bhattacharyya_distances(*pairs, *pairs)
    found = torch.autograd.grad(distance[0, 1], pairs)
    half = bounds.bhattacharyya_distances(*pairs, *pairs)
    other = torch.autograd.grad(half[1, 0], pairs)  # in units of the other
    for value, expected in zip(found, other, strict=True):
        torch.testing.assert_close(value.tril(), expected.tril(), rtol=1e-5, atol=1e-8)


NO_DENSITY = {
    "zero": 0.0,
    "negative": -1.0,
    "infinite": math.inf,
    "nan": math.nan,
}


@in_pairs
@pytest.mark.parametrize("kind", ["diag", "full"])
@pytest.mark.parametrize("value", list(NO_DENSITY.values()), ids=list(NO_DENSITY))
@pytest.mark.parametrize("where", ["one scale", "all scales", "below the diagonal", "loc"])
def test_components_without_density(kind, value, where):
    """Pairs of the others are as without them, and so are bounds if they have no weight."""
    torch.manual_seed(0)
    locs, scales = torch.randn(4, 3, dtype=torch.float64), scale_of(kind, 4, 3)
    if where == "loc" or (where == "below the diagonal" and kind == "diag"):
        if math.isfinite(value):
            return
        locs[1, 0] = value
    elif where == "below the diagonal":
        if math.isfinite(value):
            return
        scales[1, 2, 0] = value
    elif kind == "full":
        scales[1].diagonal()[0 if where == "one scale" else slice(None)] = value
    else:
        scales[1, 0 if where == "one scale" else slice(None)] = value
    kept = [0, 2, 3]
    sound = (locs[kept], scales[kept])
    assert bounds.are_degenerate(locs, scales).tolist() == [False, True, False, False]
    for function in FUNCTIONS:
        found = function(locs, scales, locs, scales)
        torch.testing.assert_close(found[kept][:, kept], function(*sound, *sound), **EXACT)
        far = math.nan if function is bounds.log_overlaps else math.inf
        expected = torch.full((4,), far, dtype=torch.float64)
        torch.testing.assert_close(found[1], expected, equal_nan=True)
        torch.testing.assert_close(found[:, 1], expected, equal_nan=True)

    weights = double([1.0, 0.0, 2.0, 1.0]).log().log_softmax(-1)
    entropy = bounds.mixture_entropy_bounds(weights, locs, scales)
    expected = bounds.mixture_entropy_bounds(weights[kept], *sound)
    torch.testing.assert_close(entropy, expected, **EXACT)
    divergence = bounds.mixture_kl_bounds(weights, locs, scales, weights, locs, scales)
    expected = bounds.mixture_kl_bounds(weights[kept], *sound, weights[kept], *sound)
    torch.testing.assert_close(divergence, expected, **EXACT)

    weights = double([1.0, 1e-9, 2.0, 1.0]).log().log_softmax(-1)
    for bound in bounds.mixture_entropy_bounds(weights, locs, scales):
        assert bound == -math.inf if value == 0 else bound.isnan()
    lower, upper = bounds.mixture_kl_bounds(weights, locs, scales, weights, locs, scales)
    assert lower.isnan()
    assert upper == math.inf


def test_gradients_of_the_others_are_finite():
    torch.manual_seed(0)
    locs, scales = torch.randn(3, 2, dtype=torch.float64), scale_of("full", 3, 2)
    scales[1] = 0.0
    pairs = [x.requires_grad_() for x in (locs, scales)]
    kept = torch.tensor([0, 2])
    for function in FUNCTIONS:
        total = function(*pairs, *pairs)[kept][:, kept].sum()
        assert all(g[kept].isfinite().all() for g in torch.autograd.grad(total, pairs))


def test_the_entropy_of_an_ill_conditioned_dead_component():
    """Its distance from itself is zero, not what substitution makes of it."""
    torch.manual_seed(0)
    locs, scales = torch.randn(3, 20, dtype=torch.float64), scale_of("full", 3, 20)
    scales[1].diagonal().copy_(torch.logspace(-10, 10, 20, dtype=torch.float64))
    weights = double([1.0, 1e-9, 1.0]).log().log_softmax(-1)
    found = bounds.mixture_entropy_bounds(weights, locs, scales)
    expected = bounds.mixture_entropy_bounds(weights[::2], locs[::2], scales[::2])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


# entropies


def entropy_on_a_grid(reference):
    points, volume = grid(reference)
    log_prob = reference.log_prob(points)
    return -(log_prob.exp() * log_prob).sum() * volume


@in_pairs
@each_family
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("spread", [0.2, 1.0, 3.0])
def test_entropy_bounds(family, D, spread):
    for seed in range(5):
        parameters = family.parameters(K=4, D=D, spread=spread, seed=seed)
        lower, upper = family.build(parameters).entropy_bounds()
        exact = entropy_on_a_grid(family.reference(parameters))
        assert lower < exact < upper
        assert upper - lower < 1.5


@each_family
@pytest.mark.parametrize("batch_shape", [(), (2, 3)])
def test_entropy_of_one_component(family, batch_shape):
    parameters = family.parameters(batch_shape, K=1, D=3)
    expected = family.components(parameters).entropy().squeeze(-1)
    for bound in family.build(parameters).entropy_bounds():
        torch.testing.assert_close(bound, expected, **EXACT)


@each_family
def test_entropy_of_components_that_coincide(family):
    parameters = family.parameters((5,), K=3, D=2)
    with torch.no_grad():
        for name, letters in family.distribution.component_parameters.items():
            if "K" in letters and name in parameters:
                dim = letters.index("K") - len(letters)
                parameters[name][:] = parameters[name].narrow(dim, 0, 1)
    expected = family.components(parameters).entropy()[..., 0]
    for bound in family.build(parameters).entropy_bounds():
        torch.testing.assert_close(bound, expected, **EXACT)
        assert all(g.isfinite().all() for g in gradients(bound, parameters).values())


@each_family
def test_entropy_of_components_far_apart(family):
    apart = {"spread": 1e4} if "locs" in family.parameters() else {"scales": (1e-18, 1e18)}
    parameters = family.parameters((5,), K=3, D=2, **apart)
    mixture = family.build(parameters)
    weights = mixture.log_weights.exp()
    within = (weights * family.components(parameters).entropy()).sum(-1)
    expected = within - (weights * mixture.log_weights).sum(-1)
    for bound in mixture.entropy_bounds():
        torch.testing.assert_close(bound, expected, rtol=1e-6, atol=1e-6)


@each_family
def test_entropy_without_weight(family):
    """Components of weight zero are of no account."""
    parameters = family.parameters((2,), K=3)
    letters = family.distribution._parameter_shapes()
    fewer = {
        name: value.narrow(letters[name].index("K") - len(letters[name]), 0, 2)
        if "K" in letters[name]
        else value
        for name, value in parameters.items()
    }
    with torch.no_grad():
        parameters["component_logits"][:, 2] = -torch.inf
    bounds_of_all = family.build(parameters).entropy_bounds()
    for bound, expected in zip(bounds_of_all, family.build(fewer).entropy_bounds(), strict=True):
        torch.testing.assert_close(bound, expected, **EXACT)
        assert all(g.isfinite().all() for g in gradients(bound, parameters).values())


def test_entropy_with_an_infinitely_far_component_without_weight():
    locs = double([[0.0], [2.0], [1e200]])
    q = MixtureOfDiagNormals(locs, torch.ones(3, 1), double([0.0, 0.0, -torch.inf]))
    expected = MixtureOfDiagNormals(locs[:2], torch.ones(2, 1), torch.zeros(2)).entropy_bounds()
    torch.testing.assert_close(q.entropy_bounds(), expected)


@each_family
def test_entropy_derivatives(family):
    parameters = family.parameters((2,), K=3)

    def entropy_bounds(*values):
        given = dict(zip(parameters, values, strict=True))
        if family.has_full_factors:
            given["scale_tril"] = given["scale_tril"].tril()
        return family.build(given).entropy_bounds()

    torch.autograd.gradcheck(entropy_bounds, list(parameters.values()))
