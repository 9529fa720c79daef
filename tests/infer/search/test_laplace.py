"""Which optima are kept, and which new ones are found from them."""

import torch

from pyro_mixtures.infer.search.climbing import Ascents
from pyro_mixtures.infer.search.crossing import crossed
from pyro_mixtures.infer.search.evaluations import Evaluations
from pyro_mixtures.infer.search.laplace import laplace
from pyro_mixtures.infer.search.mode_search import ModeSearch
from pyro_mixtures.infer.search.natural_normals import FullNormals


def ends(points, log_density):
    values = log_density(points)
    order = values.argsort(descending=True)
    return Ascents(points[order], values[order], torch.ones(len(points), dtype=torch.bool))


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def two_normals(z):
    """The one at 5 is lower."""
    near, far = ((z + sign).square().sum(-1) for sign in (5.0, -5.0))
    return torch.stack([-near / 2, -far / 2 - 3], -1).logsumexp(-1)


def test_the_highest_ends_of_ascents_are_not_all_of_one_mode():
    """Of 300 ends 299 lie about the higher optimum, where ascents were cut off a little early."""
    dimension = 8
    points = torch.cat([0.1 * noise(299, dimension) - 5.0, torch.full((1, dimension), 5.0)])
    evaluations = Evaluations(two_normals)
    normals, optima, rest = laplace(
        evaluations, ends(points, two_normals), torch.ones(dimension).double(), FullNormals, 60
    )
    assert optima.points[:, 0].sign().tolist() == [-1.0, 1.0]
    assert len(normals) == 2
    assert len(rest) == 0
    assert evaluations.count == 2 * dimension


def test_points_that_ascents_have_not_left_are_the_rest():
    points = torch.cat([0.1 * noise(20, 4) - 5.0, torch.full((1, 4), 5.0)])
    found = ends(points, two_normals)
    found.converged[-1] = False
    _, optima, rest = laplace(
        Evaluations(two_normals), found, torch.ones(4).double(), FullNormals, 60
    )
    assert len(optima.points) == 1
    torch.testing.assert_close(rest, points[-1:])


def wells(z):
    return (-z.pow(4) + 6 * z.square() + z / 2).sum(-1)


def test_children_of_optima_have_the_best_of_all_of_many_wells():
    """One of 2^16; no parent has more than 14 of the 16 better wells."""
    rights = torch.rand(100, 16, generator=torch.Generator().manual_seed(1)) < 0.6
    parents = torch.where(rights, 1.75, -1.71).double()
    assert int(rights.sum(-1).max()) <= 14
    evaluations = Evaluations(wells)
    found = crossed(
        evaluations,
        ends(parents, wells),
        torch.ones(16).double(),
        torch.Generator().manual_seed(0),
        parents=100,
        max_count=10_000,
    )
    assert bool((found.points[0] > 0).all())
    assert len(found.points) > 200


def test_optima_that_have_no_good_children_cost_one_evaluation_each():
    locs = 20 * noise(40, 6)

    def log_density(z):
        return -torch.cdist(z, locs).square().amin(-1)

    evaluations = Evaluations(log_density)
    found = crossed(
        evaluations,
        ends(locs, log_density),
        torch.ones(6).double(),
        torch.Generator().manual_seed(0),
        parents=100,
        max_count=10_000,
    )
    assert len(found.points) == 40
    assert evaluations.count == 40


def test_one_mode_in_many_dimensions_needs_no_local_fits():
    """All ascents end at one proper optimum: its Laplace approximation is where to begin."""

    def log_density(z):
        return -(z.square().sum(-1) / 2 + (z - 1).exp().sum(-1))

    search = ModeSearch(log_density, 3 * noise(300, 40), seed=0)
    search.step()
    assert len(search.parts) == 2  # the other is as wide as the prior
    assert search.evaluations.count < 300 * 30 + 10 * 40
