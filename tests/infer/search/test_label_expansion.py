"""Mixtures with all copies of their modes, from mixtures with some of them."""

import math

import pytest
import torch

from pyro_mixtures.distributions import MixtureOfDiagNormals, MixtureOfNormals
from pyro_mixtures.infer.search.evaluations import Evaluations
from pyro_mixtures.infer.search.label_expansion import (
    expanded,
    folded,
    is_symmetric,
    label_report,
    num_found,
)
from pyro_mixtures.infer.search.label_images import (
    image_normals,
    inverse,
    symmetrized_log_prob,
)
from pyro_mixtures.infer.search.model_log_density import ModelLogDensity
from pyro_mixtures.infer.search.symmetries import label_symmetries
from tests.infer.search.test_symmetries import groups, mixture, numbered_sites


def one_mode(model):
    """A density, its symmetry, and a Normal at one of its modes."""
    torch.manual_seed(0)
    density = ModelLogDensity(model)
    (symmetry,) = label_symmetries(density)
    starts = density.prior_draws(50)
    z = starts[density(starts).argmax()].clone().requires_grad_()
    optimizer = torch.optim.LBFGS([z], max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = -density(z.unsqueeze(0)).sum()
        value.backward()
        return value

    optimizer.step(loss)
    hessian = Evaluations(density).hessians(z.detach().unsqueeze(0))
    covariance = torch.linalg.inv(-hessian)
    normal = MixtureOfNormals(
        z.detach().unsqueeze(0), torch.linalg.cholesky(covariance), torch.zeros(1).double()
    )
    return density, symmetry, normal


def elbo(density, q):
    torch.manual_seed(1)
    z = q.sample((4000,))
    return float((density(z) - q.log_prob(z)).mean())


def joined(*mixtures):
    parts = [(each.locs, each.scale_tril, each.log_weights) for each in mixtures]
    return MixtureOfNormals(*map(torch.cat, zip(*parts, strict=True)))


@pytest.mark.parametrize("model", [mixture, numbered_sites])
def test_one_mode_gives_all(model):
    density, symmetry, normal = one_mode(model)
    copies = symmetry.num_permutations
    evaluations = Evaluations(density)
    result = expanded(normal, symmetry, evaluations)
    assert len(result.mixture.locs) == copies
    torch.testing.assert_close(
        result.mixture.log_weights, torch.full((copies,), -math.log(copies)).double()
    )
    assert result.evaluations == evaluations.count == 1100
    gained = elbo(density, result.mixture) - elbo(density, normal)
    assert gained == pytest.approx(math.log(copies), abs=0.15)
    # 4 standard errors of two estimates
    error = 4 * math.hypot(result.elbo_error, 0.02)
    assert result.elbo == pytest.approx(elbo(density, result.mixture), abs=error)
    assert is_symmetric(result.mixture, symmetry)
    assert num_found(result.mixture, symmetry) == copies


def test_components_at_several_copies_serve_all():
    """One of each of two copies, both too narrow: together they are better, at every copy."""
    density, symmetry, normal = one_mode(mixture)
    permutation = (2, 0, 1)
    locs, scale_tril = image_normals(normal.locs, normal.scale_tril, symmetry, permutation)
    shift = 0.7 * scale_tril[:, :, -1]
    both = joined(
        MixtureOfNormals(normal.locs, 0.8 * normal.scale_tril, torch.zeros(1).double()),
        MixtureOfNormals(locs + shift, 0.8 * scale_tril, torch.zeros(1).double()),
    )
    assert num_found(both, symmetry) == 2
    result = expanded(both, symmetry, Evaluations(density))
    assert result.found == 2
    alone = expanded(
        MixtureOfNormals(both.locs[:1], both.scale_tril[:1], torch.zeros(1).double()),
        symmetry,
        Evaluations(density),
    )
    assert elbo(density, result.mixture) > elbo(density, alone.mixture)
    assert str(result).startswith(
        "the labels of weights, locs, scales (3) are exchangeable: up to 6 copies of each mode;"
        " 2 of 6 were found, all are in 12 components with an ELBO of"
    )


def test_rearranged_coordinates_have_exact_images():
    _, symmetry, normal = one_mode(numbered_sites)
    locs, scale_tril = image_normals(normal.locs, normal.scale_tril, symmetry, (1, 0))
    matrix = torch.tensor([[0.0, 0.0, 1.0], [0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]).double()
    torch.testing.assert_close(locs, normal.locs @ matrix.T)
    torch.testing.assert_close(
        scale_tril[0] @ scale_tril[0].T, matrix @ normal.covariance_matrix @ matrix.T
    )


def test_images_of_narrow_normals_are_of_first_order():
    _, symmetry, normal = one_mode(mixture)
    narrow, permutation = 1e-4 * normal.scale_tril, (1, 2, 0)
    locs, scale_tril = image_normals(normal.locs, narrow, symmetry, permutation)
    torch.testing.assert_close(locs, symmetry.image(normal.locs, permutation))
    derivative = torch.autograd.functional.jacobian(
        lambda z: symmetry.image(z.unsqueeze(0), permutation).squeeze(0), normal.locs[0]
    )
    expected = derivative @ narrow[0] @ narrow[0].T @ derivative.T
    torch.testing.assert_close(scale_tril[0] @ scale_tril[0].T, expected, rtol=1e-3, atol=1e-12)


def test_labels_within_one_mode_have_no_copies():
    """Groups without data: exchangeable, and nothing to add."""
    torch.manual_seed(0)
    density = ModelLogDensity(groups)
    (symmetry,) = label_symmetries(density)
    wide = torch.diag(torch.tensor([0.5, 1, 1, 1, 1, 1]).double())
    normal = MixtureOfNormals(torch.zeros(1, 6).double(), wide[None], torch.zeros(1).double())
    assert is_symmetric(normal, symmetry)
    assert len(expanded(normal, symmetry, Evaluations(density)).mixture.locs) == 1


def test_the_heaviest_are_kept_below_the_cap():
    density, symmetry, normal = one_mode(mixture)
    far = MixtureOfNormals(normal.locs + 1.0, normal.scale_tril, torch.zeros(1).double())
    result = expanded(joined(far, normal), symmetry, Evaluations(density), max_components=11)
    assert len(result.mixture.locs) == 6
    distances = (result.mixture.locs - normal.locs).square().sum(-1)
    torch.testing.assert_close(distances.min(), torch.zeros(()).double())
    with pytest.raises(ValueError, match="at most 5 permutations.* but got 6 of 3 labels"):
        expanded(normal, symmetry, Evaluations(density), max_components=5)


def test_the_same_seed_gives_the_same_mixture():
    density, symmetry, normal = one_mode(mixture)
    state = torch.get_rng_state()
    first, second = (expanded(normal, symmetry, Evaluations(density), seed=3) for _ in range(2))
    assert torch.equal(first.mixture.locs, second.mixture.locs)
    assert first.elbo == second.elbo
    assert torch.equal(torch.get_rng_state(), state)


def test_inverse_permutations():
    permutation = (2, 0, 1)
    _, symmetry, normal = one_mode(mixture)
    there = symmetry.image(normal.locs, permutation)
    torch.testing.assert_close(symmetry.image(there, inverse(permutation)), normal.locs)


@pytest.mark.parametrize("model", [mixture, numbered_sites])
def test_the_symmetrized_density_is_that_of_permuted_draws(model):
    density, symmetry, normal = one_mode(model)
    z = normal.sample((20,))
    value = symmetrized_log_prob(normal, symmetry, z)
    last = list(symmetry.permutations())[-1]
    image = symmetry.image(z, last)
    change = symmetry.log_jacobian(z) - symmetry.log_jacobian(image)
    torch.testing.assert_close(symmetrized_log_prob(normal, symmetry, image) + change, value)
    if symmetry.rearranges:
        copies = expanded(normal, symmetry, Evaluations(density)).mixture
        torch.testing.assert_close(copies.log_prob(z), value)


def test_the_report_tells_what_is_missing():
    density, symmetry, normal = one_mode(mixture)
    assert label_report(normal, symmetry) == f"{symmetry}; 1 found; expand_labels() adds the rest"
    assert label_report(normal, symmetry, max_components=5).endswith(
        "; too many to add the missing ones"
    )
    every = expanded(normal, symmetry, Evaluations(density)).mixture
    assert label_report(every, symmetry).endswith("; the mixture has them all")


def test_other_mixtures_are_refused():
    density, symmetry, normal = one_mode(numbered_sites)
    diagonal = MixtureOfDiagNormals(normal.locs, normal.stddev.unsqueeze(0), normal.log_weights)
    with pytest.raises(ValueError, match="a MixtureOfNormals .* got a MixtureOfDiagNormals"):
        expanded(diagonal, symmetry, Evaluations(density))
    with pytest.raises(ValueError, match=r"batch shape \(2,\)"):
        num_found(normal.expand((2,)), symmetry)


def test_copies_that_overlap_share_the_mass():
    """Labels that data hardly tell apart: a copy has mass in the others' place."""
    torch.manual_seed(0)
    density = ModelLogDensity(groups)
    (symmetry,) = label_symmetries(density)
    locs = torch.zeros(2, 6).double()
    locs[0, 1], locs[1, 2] = 0.6, 0.6
    scale_tril = torch.diag(torch.tensor([0.5, 0.6, 0.6, 0.6, 0.6, 0.6]).double()).expand(2, 6, 6)
    both = MixtureOfNormals(locs, scale_tril, torch.zeros(2).double())
    result = expanded(both, symmetry, Evaluations(density))
    assert is_symmetric(result.mixture, symmetry)
    assert elbo(density, result.mixture) > elbo(density, both)


def test_points_without_mass_count_for_nothing():
    density, symmetry, normal = one_mode(numbered_sites)
    locs = torch.cat([normal.locs, normal.locs + 20])
    both = MixtureOfNormals(locs, normal.scale_tril.expand(2, 3, 3), torch.zeros(2).double())

    def cut(z):
        return torch.where((z < 15).all(-1), density(z), -math.inf)

    result = expanded(both, symmetry, Evaluations(cut))
    assert len(result.mixture.locs) == 2
    assert math.isfinite(result.elbo)


def test_components_without_an_image_are_left_out():
    """Far wider than the simplex, of which draws have weights that underflow."""
    density, symmetry, normal = one_mode(lambda: mixture(4))
    wide = MixtureOfNormals(normal.locs, 1e4 * normal.scale_tril, torch.zeros(1).double())
    _, scale_tril = image_normals(wide.locs, wide.scale_tril, symmetry, (3, 2, 1, 0))
    assert scale_tril.isnan().all()
    result = expanded(joined(normal, wide), symmetry, Evaluations(density))
    assert len(result.mixture.locs) == 24


def test_folded_components_are_at_one_copy():
    density, symmetry, normal = one_mode(mixture)
    every = expanded(normal, symmetry, Evaluations(density)).mixture
    one = folded(every, symmetry)
    assert num_found(one, symmetry) == 1
    torch.testing.assert_close(one.log_weights, every.log_weights)
    # images of images are not exact, but near: the copies are tens of nats apart
    torch.testing.assert_close(one.locs, one.locs[:1].expand(6, 8), atol=0.1, rtol=0.0)
