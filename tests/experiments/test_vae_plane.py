"""Posteriors in the plane by a grid: evidence, divergences, modes, and their figure."""

import math

import pytest
import torch

from experiments.vae import completion, fits, images, plane, plane_figures
from pyro_mixtures.distributions import MixtureOfDiagNormals

SIZES = fits.Sizes(latent=2, encoder=(8,), decoder=(8,))


@pytest.fixture(scope="module")
def data():
    return images.load("digits")


def model_of(data, features):
    """A model whose first pixels have these logits, and the others 0."""
    whole, _, _ = fits.start(fits.Candidate(reading="digits", sizes=SIZES), data, 0)
    count = features(torch.zeros(1, 2)).shape[1]
    output = torch.nn.Linear(count, 64)
    torch.nn.init.eye_(output.weight)
    torch.nn.init.zeros_(output.bias)
    whole.decoder.body, whole.decoder.output = features, output
    return completion.frozen(whole, 64)


class Sides(torch.nn.Module):
    """Two pixels tell the signs of the two coordinates."""

    def forward(self, z):
        return 3 * z


class Far(torch.nn.Module):
    """One pixel is on where the first coordinate is far from zero."""

    def forward(self, z):
        return 6 * z[..., :1].abs() - 8


def density(mixture):
    return plane.normalized(mixture.log_prob(plane.points().unsqueeze(1)).T.double())[1]


def normal(locs, scales):
    """A batch ``(N,)`` of one Normal each."""
    locs, scales = torch.tensor(locs), torch.tensor(scales)
    return MixtureOfDiagNormals(
        locs.unsqueeze(-2), scales.unsqueeze(-2), torch.zeros(len(locs), 1)
    )


def test_the_evidence_is_that_of_quadrature_and_of_importance_sampling(data):
    model = model_of(data, Sides())
    halves = torch.zeros(4, 32)
    halves[1, 0] = halves[2, 1] = halves[3, :2] = 1.0
    evidence, log_p = plane.posterior(model, halves)
    # by symmetry each of the two pixels is on with probability one half
    assert torch.allclose(evidence, torch.full((4,), -32 * math.log(2)).double(), atol=1e-5)
    cell = (plane.axis()[1] - plane.axis()[0]).item() ** 2
    assert torch.allclose(cell * log_p.exp().sum(-1), torch.ones(4).double())
    mean = cell * log_p.exp() @ plane.points().double()
    assert torch.allclose(mean.sign(), 2.0 * halves[:, :2].double() - 1)
    assert torch.allclose(mean.abs(), mean.abs()[:1, :1].expand(4, 2), atol=1e-6)

    whole, _, _ = fits.start(fits.Candidate(reading="digits", sizes=SIZES), data, 0)
    torch.nn.init.normal_(whole.decoder.output.weight, std=0.7)
    model = completion.frozen(whole, 64)
    halves = completion.upper(data.test.images[:5])
    exact = plane.posterior(model, halves)[0]
    torch.manual_seed(0)
    logits = model.decoder(torch.randn(40_000, 2))  # draws of the prior
    pixels = torch.distributions.Bernoulli(logits=logits).log_prob(halves.unsqueeze(1)).sum(-1)
    ratios = (pixels - exact.unsqueeze(1)).exp()
    error = ratios.std(1) / len(logits) ** 0.5
    assert error.max() < 0.1
    assert ((ratios.mean(1) - 1).abs() < 5 * error).all()


def test_divergences_of_normals_are_the_known_ones():
    q, p = (
        normal([[0.3, -1.0], [2.0, 0.0]], [[0.1, 0.5], [0.6, 0.08]]),
        normal([[0.0, -1.2], [1.5, 0.1]], [[0.4, 0.3], [0.7, 0.2]]),
    )
    ratio = (q.coord_scale / p.coord_scale).square()
    apart = ((q.locs - p.locs) / p.coord_scale).square()
    expected = 0.5 * (ratio + apart - 1 - ratio.log()).sum((-1, -2))
    found = plane.divergence(density(q), density(p))
    assert torch.allclose(found, expected.double(), rtol=1e-4)


def test_modes_are_those_of_a_mixture_with_their_shares():
    locs = torch.tensor([[-1.0, 0.5], [1.0, -2.0], [3.0, 3.0]])
    weights = torch.tensor([0.6, 0.3, 0.1])
    apart = MixtureOfDiagNormals(
        locs.unsqueeze(0), torch.full((1, 3, 2), 0.2), weights.log().unsqueeze(0)
    )
    found = plane.modes(density(apart)[0])
    assert torch.allclose(plane.points()[list(found)], locs, atol=1e-5)
    # of the third, a sixth as high as the first, less lies above the floor
    assert list(found.values()) == pytest.approx([0.63, 0.30, 0.07], abs=0.02)
    low = torch.tensor([0.9, 0.06, 0.04]).log().unsqueeze(0)
    rare = MixtureOfDiagNormals(locs.unsqueeze(0), torch.full((1, 3, 2), 0.2), low)
    assert len(plane.modes(density(rare)[0])) == 2  # the third is below a twentieth


@pytest.mark.parametrize(("distance", "count"), [(0.4, 1), (0.44, 1), (0.6, 2)])
def test_a_small_drop_parts_no_modes(distance, count):
    """At 0.44 there are two maxima, parted by a drop to 0.9 of them."""
    locs = torch.tensor([[[-distance / 2, 0.0], [distance / 2, 0.0]]])
    mixture = MixtureOfDiagNormals(locs, torch.full((1, 2, 2), 0.175), torch.zeros(1, 2))
    shares = list(plane.modes(density(mixture)[0]).values())
    assert len(shares) == count
    assert sum(shares) == pytest.approx(1)
    if count == 2:
        assert shares == pytest.approx([0.5, 0.5], abs=0.05)


def test_a_mixture_has_both_modes_of_a_posterior_and_one_normal_has_one(data):
    model = model_of(data, Far())
    halves = torch.zeros(2, 32)
    halves[0, 0] = 1.0
    fitted = {
        f"K = {count}": (lambda rows, count=count: plane.alone(model, rows, count))
        for count in (1, 4)
    }
    found = plane.judge(model, {name: [each] for name, each in fitted.items()}, halves)
    assert found["modes"].tolist() == [2, 1]
    places, share = plane.heaviest(model, halves)
    assert share.tolist() == pytest.approx([0.5, 0.0], abs=0.01)
    first, second = plane.points()[places[0]]
    assert first[0] == pytest.approx(-second[0].item(), abs=0.06)
    assert places[1, 0] == places[1, 1]
    one, four = (found["encoders"][name] for name in fitted)
    assert one["modes_of_q"].tolist() == [1, 1]
    assert four["modes_of_q"].tolist() == [2, 1]
    # one half of the mass is missed: log 2 and what is not Normal
    assert 0.6 < one["kl"][0] < 0.85
    assert four["kl"][0] < 0.1
    rows = plane.rows(found, list(fitted))
    assert rows[1]["several_gain"] == pytest.approx((one["kl"] - four["kl"])[0].item())
    assert (rows[1]["one_images"], rows[1]["several_images"]) == (1, 1)
    lines = plane.table(rows).splitlines()
    assert len({line.count(" |") for line in lines[2:]}) == 1


def test_the_figure_has_a_panel_for_each_encoder_and_completions_of_the_last(
    data, tmp_path, monkeypatch
):
    model = model_of(data, Far())
    drawn = []
    monkeypatch.setattr(plane_figures.plt, "close", drawn.append)
    wide = normal([[0.0, 0.0]], [[1.5, 1.0]])
    two = MixtureOfDiagNormals(
        torch.tensor([[[-1.6, 0.0], [1.6, 0.0]]]),
        torch.full((1, 2, 2), 0.5),
        torch.tensor([[0.3, 0.7]]).log(),
    )
    rows = torch.zeros(1, 64)
    rows[0, 0] = 1.0
    path = tmp_path / "plane.png"
    plane_figures.plot_plane(path, model, {"one": lambda _: wide, "two": lambda _: two}, rows)
    (figure,) = drawn
    assert [ax.get_title() for ax in figure.axes][2:4] == ["one", "two"]
    texts = [[each.get_text() for each in ax.texts] for ax in figure.axes]
    assert texts == [[], ["1: 50 %", "2: 50 %"], ["1", "2"], ["1", "2"], ["70 %", "30 %"]]
    low, high = figure.axes[3].get_xlim()
    modes = sorted(line.get_xdata()[0] for line in figure.axes[3].lines[-2:])
    assert low < modes[0] < -1 < 1 < modes[1] < high
    assert path.stat().st_size > 10_000
