"""Divergences from and to mixtures of Normals: bounds of exact values, and exact where known."""

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Independent, Laplace, MultivariateNormal, Normal, kl_divergence

from pyro_mixtures.distributions import MixtureOfDiagNormals, MixtureOfNormals
from pyro_mixtures.normals.divergence import kl_bounds
from tests.registry import FAMILIES, each_family, gradients, grid

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def double(values):
    return torch.tensor(values, dtype=torch.float64)


each_pair = pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(FAMILIES[first], FAMILIES[second], id=f"{first}-{second}")
        for first in FAMILIES
        for second in FAMILIES
    ],
)


def divergence_on_a_grid(p, q):
    """By the grid of p, on which the logarithm of q is smooth enough."""
    points, volume = grid(p)
    log_p = p.log_prob(points)
    return (log_p.exp() * (log_p - q.log_prob(points))).sum() * volume


@each_pair
@pytest.mark.parametrize("D", [1, 2])
def test_kl_bounds(first, second, D):
    for seed, spread in enumerate([0.3, 1.0, 3.0]):
        p = first.parameters(K=3, D=D, seed=seed, spread=spread)
        q = second.parameters(K=4, D=D, seed=seed + 10, spread=spread, shift=0.0)
        lower, upper = kl_bounds(first.build(p), second.build(q))
        exact = divergence_on_a_grid(first.reference(p), second.reference(q))
        assert lower - 1e-9 < exact < upper


def normal_forms(loc, scale):
    """A diagonal Normal as each class that may stand for it."""
    return [
        Independent(Normal(loc, scale), 1),
        dist.Normal(loc, scale).to_event(1),
        MultivariateNormal(loc, scale_tril=scale.diag_embed()),
        dist.MultivariateNormal(loc, scale_tril=scale.diag_embed()),
        MixtureOfDiagNormals(
            loc.unsqueeze(-2), scale.unsqueeze(-2), loc.new_zeros(*loc.shape[:-1], 1)
        ),
    ]


@each_family
def test_divergence_from_and_to_a_normal(family):
    parameters = family.parameters(K=3, D=2)
    mixture, reference = family.build(parameters), family.reference(parameters)
    normals = normal_forms(double([0.3, 1.0]), double([1.1, 0.8]))
    exact = divergence_on_a_grid(reference, normals[0])
    single = {"locs": double([[0.3, 1.0]]), "coord_scale": double([[1.1, 0.8]])}
    single = FAMILIES["diag_normals"].reference({**single, "component_logits": double([0.0])})
    reverse = divergence_on_a_grid(single, reference)
    for normal in normals:
        lower, upper = kl_bounds(mixture, normal)
        assert lower - 1e-9 < exact < upper
        # the gap is that of the entropy alone
        entropy_lower, entropy_upper = mixture.entropy_bounds()
        if lower > 0:
            torch.testing.assert_close(upper - lower, entropy_upper - entropy_lower, **EXACT)
        lower, upper = kl_bounds(normal, mixture)
        assert lower - 1e-9 < reverse < upper


@pytest.mark.parametrize("batches", [((), ()), ((2, 3), (2, 3)), ((3,), (2, 1)), ((4,), ())])
def test_divergence_of_normals(batches):
    """Both bounds are exact, and broadcast."""
    arguments = [
        (torch.randn(*shape, 3).double(), 0.5 + torch.rand(*shape, 3).double())
        for shape in batches
    ]
    first, second = (Independent(Normal(*pair), 1) for pair in arguments)
    shape = torch.broadcast_shapes(*batches)
    expected = kl_divergence(first.expand(shape), second.expand(shape))
    for p in normal_forms(*arguments[0]):
        for q in normal_forms(*arguments[1]):
            lower, upper = kl_bounds(p, q)
            torch.testing.assert_close(lower, expected, **EXACT)
            torch.testing.assert_close(upper, expected, **EXACT)


@each_family
def test_divergence_of_a_mixture_from_itself(family):
    mixture = family.build(family.parameters((5,), K=3))
    lower, upper = kl_bounds(mixture, mixture)
    assert (lower == 0).all()
    assert (upper >= 0).all()
    # exact where no components overlap
    apart = {"spread": 1e4} if "locs" in family.parameters() else {"scales": (1e-18, 1e18)}
    mixture = family.build(family.parameters((5,), K=3, **apart))
    assert kl_bounds(mixture, mixture)[1].abs().max() < 1e-6


@each_pair
def test_divergences_of_batches(first, second):
    p, q = first.parameters((3,), K=2), second.parameters((2, 1), K=3)
    lower, upper = kl_bounds(first.build(p), second.build(q))
    assert lower.shape == upper.shape == (2, 3)
    one, other = (
        {name: value[0] for name, value in p.items()},
        {name: value[1, 0] for name, value in q.items()},
    )
    alone = kl_bounds(first.build(one), second.build(other))
    torch.testing.assert_close((lower[1, 0], upper[1, 0]), alone, **EXACT)


@each_pair
def test_divergences_without_weight(first, second):
    """Finite, with finite gradients, also where components coincide."""
    p, q = first.parameters((2,), K=3), second.parameters((2,), K=3)
    for parameters in (p, q):
        with torch.no_grad():
            parameters["component_logits"][:, 0] = -torch.inf
    everything = {f"{k} {name}": v for k, of in enumerate((p, q)) for name, v in of.items()}
    for bound in kl_bounds(first.build(p), second.build(q)):
        assert bound.isfinite().all()
        assert all(g.isfinite().all() for g in gradients(bound, everything).values())


@each_family
def test_no_gradients_above_the_diagonal(family):
    parameters = family.parameters(K=2, D=3)
    mixture = family.build(parameters)
    other = FAMILIES["normals"].build(FAMILIES["normals"].parameters(D=3))
    for bounds in (kl_bounds(mixture, other), kl_bounds(other, mixture)):
        gradient = gradients(bounds[1], parameters).get("scale_tril", torch.zeros(3, 3))
        assert torch.equal(gradient, gradient.tril())


@each_family
def test_divergence_derivatives(family):
    p = family.parameters((2,), K=3, spread=3.0)
    q = family.parameters((2,), K=2, seed=1, spread=3.0)

    def both(*values):
        built = []
        for names, own in ((list(p), values[: len(p)]), (list(q), values[len(p) :])):
            given = dict(zip(names, own, strict=True))
            if family.has_full_factors:
                given["scale_tril"] = given["scale_tril"].tril()
            built.append(family.build(given))
        return kl_bounds(*built)

    torch.autograd.gradcheck(both, [*p.values(), *q.values()])


def test_far_components_of_extreme_scales_in_single_precision():
    locs = torch.tensor([[0.0, 0.0], [1e6, 1e6], [3.0, -1e3]], requires_grad=True)
    scale_tril = torch.diag_embed(torch.tensor([[1e-5, 1e5], [1.0, 1.0], [1e4, 1e-4]]))
    p = MixtureOfNormals(locs, scale_tril.requires_grad_(), torch.zeros(3))
    q = MixtureOfDiagNormals(locs, torch.ones(3, 2), torch.zeros(3))
    for bound in (*p.entropy_bounds(), *kl_bounds(p, q), *kl_bounds(q, p)):
        assert bound.dtype == torch.float32
        assert bound.isfinite()
        for gradient in torch.autograd.grad(bound, (locs, scale_tril), retain_graph=True):
            assert gradient.isfinite().all()


def test_dtypes_are_promoted():
    single = FAMILIES["diag_normals"].build(
        FAMILIES["diag_normals"].parameters(dtype=torch.float32)
    )
    full = FAMILIES["normals"].build(FAMILIES["normals"].parameters())
    assert kl_bounds(single, full)[1].dtype == torch.float64
    assert kl_bounds(full, single)[1].dtype == torch.float64
    assert kl_bounds(single, single)[1].dtype == torch.float32


@each_family
def test_other_distributions_are_refused(family):
    mixture = family.build(family.parameters(D=2))
    other = Independent(Laplace(torch.zeros(2), torch.ones(2)), 1)
    for pair in ((mixture, other), (other, mixture)):
        with pytest.raises(NotImplementedError, match="not for Independent.*Laplace"):
            kl_bounds(*pair)
    with pytest.raises(ValueError, match=r"same event shape, but got \(2,\) and \(3,\)"):
        kl_bounds(mixture, Independent(Normal(torch.zeros(3), torch.ones(3)), 1))


@each_family
def test_torchs_divergence_is_for_what_is_exact(family):
    """So ``TraceMeanField_ELBO``, which takes it where there is one, keeps to the ELBO."""
    mixture = family.build(family.parameters(D=2))
    normal = Independent(Normal(torch.zeros(2).double(), torch.ones(2).double()), 1)
    for pair in ((mixture, normal), (normal, mixture), (mixture, mixture)):
        with pytest.raises(NotImplementedError):
            kl_divergence(*pair)
