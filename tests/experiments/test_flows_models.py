"""The models of the experiment with flows: couplings, bases, RAD."""

import math

import pytest
import torch

from experiments.flows import densities
from experiments.flows.bases import BASES, PARAMETERS, Base, Flow, plane_model
from experiments.flows.coupling import Coupling, count, couplings, spread_widths
from experiments.flows.rad import RAD, Fold
from pyro_mixtures import MixtureOfDiagNormals


@pytest.fixture(scope="module")
def points():
    return densities.data("ring", 500)[0]


def shaken(module, size=0.5):
    """With parameters at random places."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += size * torch.randn_like(parameter)
    return module


def square(side, extent):
    """Midpoints of cells ``(side^2, 1, 2)``, and the volume of one."""
    line = extent * ((2 * torch.arange(side) + 1) / side - 1)
    points = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 1, 2)
    return points, (2 * extent / side) ** 2


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("dimension", [2, 4])
def test_a_coupling_has_its_inverse_and_jacobian(dimension, first):
    torch.manual_seed(0)
    coupling = Coupling(3, dimension, 5, first=first).double()
    x = torch.randn(7, 3, dimension).double()
    assert torch.equal(coupling(x), x)
    shaken(coupling)
    y = coupling(x)
    torch.testing.assert_close(coupling._inverse(y), x)
    volume = coupling.log_abs_det_jacobian(x, y)
    assert volume.shape == (7, 3)
    torch.testing.assert_close(coupling.log_abs_det_jacobian(x.clone(), y.clone()), volume)
    jacobian = torch.autograd.functional.jacobian(coupling, x)  # (7, 3, D, 7, 3, D)
    for sample, copy in ((0, 0), (4, 2)):
        own = jacobian[sample, copy, :, sample, copy]
        torch.testing.assert_close(own.det().abs().log(), volume[sample, copy])
        assert not bool(jacobian[sample, copy, :, sample - 1].any())
        assert not bool(jacobian[sample, copy, :, sample, copy - 1].any())


def test_copies_are_fits_of_their_own(points):
    torch.manual_seed(0)
    for name in BASES:
        model = shaken(plane_model(name, points, 2), 0.1)
        batch = points[:20].reshape(10, 2, 2)
        model.log_prob(batch)[:, 0].sum().backward()
        for each in model.parameters():
            assert bool(each.grad[0].isfinite().all()), name
            assert not bool(each.grad[1].any()), name


def test_models_have_as_many_parameters_and_all_have_gradients(points):
    torch.manual_seed(0)
    for name in BASES:
        model = plane_model(name, points, 2)
        assert PARAMETERS - 3 <= count(model) <= PARAMETERS, name
        for coupling in model.modules():
            if isinstance(coupling, Coupling):
                shaken(coupling, 0.1)
        (-model.log_prob(points[:200].reshape(100, 2, 2)).mean()).backward()
        for place, parameter in model.named_parameters():
            if parameter.shape[-1] > 1 or "logits" not in place:  # weights of one component
                assert bool(parameter.grad.any()), (name, place)


def test_widths_that_leave_nothing():
    assert sum(spread_widths(8, 2, 1997)) == (1997 - 16) // 4
    with pytest.raises(ValueError, match="8 couplings.*20"):
        spread_widths(8, 2, 20)


def test_a_fold_and_its_preimages():
    torch.manual_seed(0)
    fold = shaken(Fold(2, 2)).double()
    x = 2 * torch.randn(2000, 2, 2).double()
    value, piece, log_volume = fold(x)
    assert set(piece.unique().tolist()) == set(range(9))
    torch.testing.assert_close(fold.inverse(value, piece), x)
    has = fold.has_preimage(value)  # (2000, 2, 9)
    assert bool(has.gather(-1, piece.unsqueeze(-1)).all())
    for k in range(9):
        there = fold.inverse(value, torch.full_like(piece, k))
        again, found, _ = fold(there)
        torch.testing.assert_close(found == k, has[..., k])
        torch.testing.assert_close(again[has[..., k]], value[has[..., k]])
    moved = x + 1e-6
    steps = ((fold(moved)[0] - value).abs() / 1e-6).log().sum(-1)
    same = fold(moved)[1] == piece
    torch.testing.assert_close(steps[same], log_volume[same], atol=1e-6, rtol=1e-6)


@pytest.fixture(scope="module")
def rad():
    torch.manual_seed(3)
    return shaken(RAD(1, 4, 600), 0.1)


def test_rad_integrates_to_one(rad):
    cells, volume = square(600, 9.0)
    with torch.no_grad():
        total = rad.log_prob(cells).exp().sum() * volume
    assert total.item() == pytest.approx(1, abs=3e-3)


def test_rad_has_the_density_of_its_samples(rad):
    """Counts of 100,000 samples in 36 cells, and outside; the largest z-score of 37 of 4.5."""
    torch.manual_seed(0)
    samples = rad.sample(100_000)[:, 0]
    fine, volume = square(600, 3.0)
    with torch.no_grad():
        mass = rad.log_prob(fine).exp().reshape(6, 100, 6, 100).sum((1, 3)) * volume  # (6, 6)
    inside = (samples.abs() < 3).all(-1)
    cell = ((samples[inside] + 3).floor()).long()
    counts = torch.zeros(36).index_add(0, 6 * cell[:, 0] + cell[:, 1], torch.ones(len(cell)))
    shares = torch.cat([counts, 100_000 - counts.sum().unsqueeze(0)]) / 100_000
    expected = torch.cat([mass.flatten(), 1 - mass.sum().unsqueeze(0)])
    errors = (expected * (1 - expected) / 100_000).sqrt() + 5e-5
    assert ((shares - expected) / errors).abs().max() < 4.5
    assert expected.max() < 0.5


def test_the_pieces_of_rad_sum_to_the_density_of_the_value(rad):
    """The sum over preimages of p(x_k) |dx_k / dz| is p(z)."""
    torch.manual_seed(0)
    with torch.no_grad():
        value = torch.randn(50, 1, 2)
        total = torch.zeros(50, 1)
        for piece in range(9):
            x = rad.fold.inverse(value, torch.full((50, 1), piece))
            log_volume = -rad.fold(x)[2]
            for transform in rad.outer:
                y = transform(x)
                log_volume = log_volume + transform.log_abs_det_jacobian(x, y)
                x = y
            density = (rad.log_prob(x) + log_volume).exp()
            total += torch.where(rad.fold.has_preimage(value)[..., piece], density, 0.0)
        expected, z = torch.zeros(50, 1), value
        for transform in reversed(rad.inner):
            before = transform._inverse(z)
            expected, z = expected - transform.log_abs_det_jacobian(before, z), before
        expected += torch.distributions.Normal(rad.loc, rad.log_scale.exp()).log_prob(z).sum(-1)
    torch.testing.assert_close(total.log(), expected, atol=1e-4, rtol=1e-4)


def test_the_relaxed_base_has_the_mean_density_of_relaxed_choices():
    torch.manual_seed(0)
    start = MixtureOfDiagNormals(
        torch.tensor([[-1.0, 0.0], [1.0, 1.0]]),
        torch.tensor([[0.5, 1.0], [1.0, 0.4]]),
        torch.tensor([0.3, 0.0]),
    )
    flow = Flow(Base([start], nested=20_000), [])
    z = torch.randn(30, 1, 2)
    gumbel = torch.distributions.Gumbel(0.0, 1.0).sample((20_000, 2))
    choice = ((start.component_logits + gumbel) / 0.5).softmax(-1)
    normals = torch.distributions.Normal(choice @ start.locs, choice @ start.coord_scale)
    each = normals.log_prob(z).sum(-1)  # (30, 20_000)
    expected = each.logsumexp(-1, keepdim=True) - math.log(20_000)
    with torch.no_grad():
        torch.testing.assert_close(flow.log_prob(z), expected, atol=0.06, rtol=0)
    assert (start.log_prob(z) - expected).abs().max() > 0.3  # another density


@pytest.mark.parametrize("name", densities.DENSITIES)
def test_data_are_standardized_and_seeds_differ(name):
    training, test = densities.data(name, 4000)
    assert training.shape == test.shape == (4000, 2)
    for each in (training, test):
        torch.testing.assert_close(each.mean(0), torch.zeros(2), atol=0.06, rtol=0)
        torch.testing.assert_close(each.std(0), torch.ones(2), atol=0.05, rtol=0)
    assert not bool((training == test).any())


def test_flows_start_at_a_mixture_that_fits(points):
    model = plane_model("K = 9", points, 2)
    expected = MixtureOfDiagNormals.from_samples(points, 9, seed=0).log_prob(points)
    found = model.log_prob(points.unsqueeze(1).expand(-1, 2, -1))
    torch.testing.assert_close(found[:, 0], expected)


def test_couplings_move_each_coordinate():
    torch.manual_seed(0)
    x = torch.randn(5, 1, 4)
    y = x
    for transform in shaken(couplings(1, 4, [3, 3])):
        y = transform(y)
    assert bool((y != x).all())
