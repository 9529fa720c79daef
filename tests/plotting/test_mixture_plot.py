"""Figures of mixtures: lines hold the masses that they say, for all families; errors."""

import math

import matplotlib.pyplot as plt
import numpy
import pytest
import torch
from matplotlib.axes import Axes
from torch.distributions import (
    Categorical,
    Gamma,
    Independent,
    Laplace,
    MultivariateNormal,
    Normal,
)

from pyro_mixtures import Mixture, MixtureOfDiagNormals, MixtureOfNormals, MixtureSameFamily
from pyro_mixtures.plotting import plot_mixture, plot_pairs
from pyro_mixtures.plotting.marginal import Marginal
from tests.families.registry import each_components
from tests.registry import FAMILIES, each_family


def labelled(ax: Axes, start: str):
    (line,) = (line for line in ax.lines if str(line.get_label()).startswith(start))
    return line


def vertices(line) -> torch.Tensor:
    points = torch.as_tensor(numpy.asarray(line.get_xydata()))
    return points[points.isfinite().all(-1)]


def contours(ax: Axes, color: str) -> list[torch.Tensor]:
    """Vertices of the lines of one colour that are drawn."""
    found = [vertices(line) for line in ax.lines if line.get_color() == color]
    return [points for points in found if len(points)]


def draw(mixture, *args, **options) -> Axes:
    _, ax = plt.subplots()
    assert plot_mixture(mixture, *args, ax=ax, **options) is ax
    ax.figure.canvas.draw()
    return ax


def masses(points: torch.Tensor, law) -> torch.Tensor:
    """What the region holds on whose border the points lie, by a million draws."""
    heights = law.log_prob(law.sample((1_000_000,))).sort().values
    level = law.log_prob(points.to(heights)).detach()
    return 1 - torch.searchsorted(heights, level) / len(heights)


@pytest.mark.parametrize("family", [FAMILIES["diag_normals"], FAMILIES["normals_shared"]])
def test_contours_hold_what_they_say(family):
    """Levels are quantiles of 4000 draws: 0.04 is 5 of their standard errors."""
    parameters = family.parameters(K=3, D=2)
    mixture, reference = family.build(parameters), family.reference(parameters)
    ax = draw(mixture)
    found = contours(ax, "C0")
    assert len(found) == 3
    for points, mass in zip(found, (0.95, 0.8, 0.5), strict=True):
        of_points = masses(points, reference)
        assert (of_points - mass).abs().max() < 0.04
    assert ax.get_xlabel() == "coordinate 0"
    assert ax.get_ylabel() == "coordinate 1"


@each_family
def test_marginals_of_normals_are_exact(family):
    """The contours of coordinates 3 and 1 are those of the mixture of these."""
    parameters = family.parameters(K=3, D=5)
    mixture = family.build(parameters)
    ax = draw(mixture, (3, 1))
    outer, *_ = contours(ax, "C0")
    density = mixture.marginal([3, 1]).log_prob(outer).exp()
    assert density.std() < 0.02 * density.mean()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("coordinate 3", "coordinate 1")


@each_family
def test_a_density_and_its_parts(family):
    parameters = family.parameters(K=3, D=4)
    mixture = family.build(parameters)
    ax = draw(mixture, -1)
    marginal = mixture.marginal([3])
    x, y = vertices(labelled(ax, "mixture")).T
    expected = marginal.log_prob(x.unsqueeze(-1)).exp().detach()
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-9)
    parts = [vertices(line)[:, 1] for line in ax.lines if line.get_color() == "C1"]
    assert len(parts) == 3
    torch.testing.assert_close(torch.stack(parts).sum(0), y, rtol=1e-6, atol=1e-9)
    assert 0.9 < torch.trapezoid(y, x) <= 1.001
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("coordinate 3", "density")


@each_components
def test_other_families(family):
    """Drawn where all coordinates are wanted, without warnings; refused where not."""
    _, mixture = family.example(seed=1)
    size = mixture.event_shape.numel()
    normal = getattr(mixture, "_normals", None) is not None
    if size > 2 and not normal:
        with pytest.raises(NotImplementedError, match=f"all {size} coordinates"):
            draw(mixture)
        return
    ax = draw(mixture, reference=mixture.sample((500,)))
    assert ax.get_legend() is not None
    (low, high), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    assert math.isfinite(low + high + bottom + top)


def test_half_of_each_component():
    """Of one Normal, the ellipse of radius sqrt(2 log 2); the strength follows the weights."""
    locs = torch.tensor([[0.0, 0.0], [0.0, 7.0], [90.0, 0.0]])
    scales = torch.tensor([[1.0, 2.0], [1e-3, 1e-3], [1.0, 1.0]])
    logits = torch.tensor([0.75, 0.25, 0.0]).log()
    for wrap in (lambda q: q, full, apart, alike):
        ax = draw(wrap(MixtureOfDiagNormals(locs, scales, logits)))
        lines = component_lines(ax)
        assert len(lines) == 2  # one without weight is not drawn
        for line, loc, scale in zip(lines, locs, scales, strict=False):
            radius = ((line - loc) / scale).norm(dim=-1)
            assert (radius - math.sqrt(2 * math.log(2))).abs().max() < 0.1
        (drawn,) = ax.collections
        assert [color[-1] for color in drawn.get_color()] == pytest.approx(
            [1, 0.2 + 0.8 / math.sqrt(3)]
        )
        assert ax.get_xlim()[1] < 90


def component_lines(ax: Axes) -> list[torch.Tensor]:
    (drawn,) = ax.collections
    points = [torch.as_tensor(numpy.asarray(path.vertices)) for path in drawn.get_paths()]
    return [line[line.isfinite().all(-1)] for line in points]


def full(q):
    return MixtureOfNormals(q.locs, q.coord_scale.diag_embed(), q.component_logits)


def alike(q):
    """As torch's mixture, with components that are known to be Normal."""
    components = Independent(Normal(q.locs, q.coord_scale), 1)
    return MixtureSameFamily(Categorical(logits=q.component_logits), components)


def apart(q):
    """As a mixture of distributions of their own."""
    parts = zip(q.locs, q.coord_scale, strict=True)
    components = [Independent(Normal(*part), 1) for part in parts]
    return Mixture(Categorical(logits=q.component_logits), components)


@pytest.mark.parametrize("kind", ["diagonal", "full", "gamma"])
def test_many_components(kind, monkeypatch):
    """Each is evaluated on a grid of its own, not all of them on the grid of each."""
    count, evaluations = 60, []
    components = Independent(Gamma(1 + 9 * torch.rand(count, 2), torch.ones(count, 2)), 1)
    mixture = MixtureSameFamily(Categorical(torch.ones(count)), components)
    if kind != "gamma":
        mixture = MixtureOfDiagNormals(
            torch.randn(count, 2), torch.ones(count, 2), torch.zeros(count)
        )
        mixture = full(mixture) if kind == "full" else mixture
    for name in ("component_log_prob", "own_log_prob"):
        count_results(monkeypatch, Marginal, name, evaluations)
    assert len(component_lines(draw(mixture))) == count
    assert sum(evaluations) < count * (200**2 + 4 * 4000 + 60**2 + 4000)


def count_results(monkeypatch, owner, name, counts):
    original = getattr(owner, name)

    def counted(self, points):
        result = original(self, points)
        counts.append(result.size)
        return result

    monkeypatch.setattr(owner, name, counted)


def test_an_exchange_of_coordinates_of_other_families():
    components = Independent(Gamma(torch.tensor([[2.0, 9.0], [3.0, 7.0]]), torch.ones(2, 2)), 1)
    mixture = MixtureSameFamily(Categorical(torch.ones(2)), components)
    first, second = (contours(draw(mixture, dims), "C0")[0] for dims in ((0, 1), (1, 0)))
    low, high = mixture.log_prob(first), mixture.log_prob(second.flip(-1))
    torch.testing.assert_close(low.mean(), high.mean(), rtol=0, atol=0.05)
    assert first[:, 0].mean() < first[:, 1].mean()
    assert second[:, 0].mean() > second[:, 1].mean()


def test_the_reference_is_behind_and_outliers_are_outside():
    mixture = MixtureOfDiagNormals(torch.zeros(1, 3), torch.ones(1, 3), torch.zeros(1))
    reference = torch.randn(10_000, 3)
    reference[:20] *= 1000
    ax = draw(mixture, (0, 2), reference=reference)
    points = vertices(labelled(ax, "reference"))
    assert len(points) <= 3000
    assert torch.equal(points[1].float(), reference[4, [0, 2]])
    assert max(abs(end) for end in (*ax.get_xlim(), *ax.get_ylim())) < 10
    assert labelled(ax, "reference") is ax.lines[0]


def test_a_reference_with_weights():
    """It is what they make of it: here they take the half of it that is far off away."""
    mixture = MixtureOfDiagNormals(torch.zeros(1, 2), torch.ones(1, 2), torch.zeros(1))
    reference = torch.randn(2000, 2)
    reference[::2] += 50
    weights = torch.ones(2000)
    weights[::2] = 0
    ax = draw(mixture, reference=reference, reference_weights=weights)
    assert ax.get_xlim()[1] < 10
    points = vertices(labelled(ax, "reference"))
    assert points.max() < 10
    ax = draw(mixture, 1, reference=reference, reference_weights=3 * weights)
    assert sum(patch.get_height() * patch.get_width() for patch in ax.patches) > 0.95


def test_modes_of_little_weight_are_in_view():
    """Those of one percent and more, though 95 percent of the mixture are elsewhere."""
    locs = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 90.0]])
    weights = torch.tensor([0.965, 0.03, 0.005])
    for wrap in (lambda q: q, full):
        mixture = wrap(MixtureOfDiagNormals(locs, torch.ones(3, 2), weights.log()))
        ax = draw(mixture)
        assert ax.get_xlim()[1] > 50
        assert ax.get_ylim()[1] < 90
        assert draw(mixture, 0).get_xlim()[1] > 50


@pytest.mark.parametrize("scale", [0.0, math.nan, 1e-12, 1e12])
@pytest.mark.parametrize("weight", [0.1, 1e-30])
def test_components_that_went_wrong(scale, weight):
    """The others are drawn as without them."""
    scales = torch.eye(3, dtype=torch.float64).repeat(3, 1, 1)
    scales[2] *= scale
    weights = torch.tensor([0.5, 0.5, weight], dtype=torch.float64).log()
    locs = torch.tensor([[0.0] * 3, [9.0] * 3, [4.0] * 3], dtype=torch.float64)
    ax = draw(MixtureOfNormals(locs, scales, weights, validate_args=False))
    assert all(math.isfinite(end) for end in (*ax.get_xlim(), *ax.get_ylim()))
    assert len(component_lines(ax)) >= 2


def test_a_reference_that_the_mixture_misses_is_in_view():
    mixture = MixtureOfDiagNormals(torch.zeros(1, 2), torch.ones(1, 2), torch.zeros(1))
    ax = draw(mixture, reference=(10 + torch.randn(500, 2)).tolist())
    assert ax.get_xlim()[0] < -2
    assert ax.get_xlim()[1] > 12


def test_a_histogram_has_the_area_of_its_points():
    mixture = MixtureOfDiagNormals(torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(1))
    reference = torch.randn(4000)
    reference[:40] = 1e6
    ax = draw(mixture, reference=reference)
    area = sum(patch.get_height() * patch.get_width() for patch in ax.patches)
    low, high = ax.get_xlim()
    assert area == pytest.approx(((reference > low) & (reference < high)).double().mean().item())


def test_numbers():
    components = [Normal(0.0, 1.0), Laplace(3.0, 0.5)]
    ax = draw(Mixture(Categorical(torch.ones(2)), components), reference=numpy.random.rand(100))
    assert ax.get_xlabel() == "coordinate 0"


def test_normal_components_of_any_class_have_marginals():
    laws = MultivariateNormal(torch.randn(3, 4), torch.eye(4).expand(3, 4, 4))
    ax = draw(MixtureSameFamily(Categorical(torch.ones(3)), laws), (2, -1))
    assert ax.get_ylabel() == "coordinate 3"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_any_scale(dtype, scale):
    locs = scale * torch.randn(20, 5, dtype=dtype)
    factors = scale * torch.eye(5, dtype=dtype)
    mixture = MixtureOfNormals(locs, factors.expand(20, 5, 5), torch.randn(20, dtype=dtype))
    ax = draw(mixture, reference=mixture.sample((100,)))
    assert len(contours(ax, "C0")) == 3
    low, high = ax.get_xlim()
    assert 2 * scale < high - low < 20 * scale


def test_the_current_axes_and_the_random_numbers_of_the_caller():
    mixture = MixtureOfDiagNormals(torch.zeros(1, 2), torch.ones(1, 2), torch.zeros(1))
    _, ax = plt.subplots()
    before = torch.get_rng_state()
    assert plot_mixture(mixture) is ax
    assert torch.equal(torch.get_rng_state(), before)
    first = contours(draw(mixture), "C0")[0]
    torch.manual_seed(1)
    assert torch.equal(contours(draw(mixture), "C0")[0], first)


def test_generators_of_other_devices_are_not_touched(monkeypatch):
    def refuse(*args):
        raise AssertionError("seeds every device")

    monkeypatch.setattr(torch, "manual_seed", refuse)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    draw(MixtureOfDiagNormals(torch.zeros(2, 2), torch.ones(2, 2), torch.zeros(2)))


def five() -> MixtureOfDiagNormals:
    return MixtureOfDiagNormals(torch.randn(2, 5), torch.ones(2, 5), torch.zeros(2))


def test_pairs():
    mixture = five()
    axes = plot_pairs(mixture, (0, -1, 2), reference=mixture.sample((100,)))
    assert axes.shape == (3, 3)
    assert [axes[place] is None for place in ((0, 1), (0, 2), (1, 2))] == [True] * 3
    assert [ax.get_xlabel() for ax in axes[2]] == ["coordinate 0", "coordinate 4", "coordinate 2"]
    assert [axes[row, 0].get_ylabel() for row in (1, 2)] == ["coordinate 4", "coordinate 2"]
    for index in range(3):  # one scale for each coordinate
        ends = [axes[row, index].get_xlim() for row in range(index, 3)]
        ends += [axes[index, column].get_ylim() for column in range(index)]
        assert len(set(ends)) == 1
    (legend,) = axes[0, 0].figure.legends
    assert len(legend.get_texts()) == 3
    outer = contours(axes[2, 1], "C0")[0]
    density = mixture.marginal([4, 2]).log_prob(outer).exp()
    assert density.std() < 0.02 * density.mean()


@pytest.mark.parametrize(
    ("mixture", "options", "message"),
    [
        (Normal(0.0, 1.0), {}, "Expected mixture .* but got Normal"),
        (five().expand((3,)), {}, r"without batch, but got batch shape \(3,\)"),
        (five(), {"dims": (0, 1, 2)}, r"one or two coordinates, but got \(0, 1, 2\)"),
        (five(), {"dims": (0, 5)}, "5"),
        (five(), {"dims": (0, 0)}, "0"),
        (five(), {"dims": ()}, "dims"),
        (five(), {"reference": torch.zeros(9, 4)}, r"shape \(N, 5\), but got \(9, 4\)"),
        (five(), {"reference": torch.zeros(0, 5)}, r"shape \(N, 5\), but got \(0, 5\)"),
        (five(), {"reference": torch.full((9, 5), math.nan)}, "finite"),
        (five(), {"names": ["a", "b"]}, "names of all 5 coordinates, but got 2"),
        (
            five(),
            {"reference": torch.zeros(9, 5), "reference_weights": torch.ones(8)},
            r"weights of shape \(9,\), one of each draw, but got \(8,\)",
        ),
    ],
)
def test_mistakes(mixture, options, message):
    with pytest.raises(ValueError, match=message):
        plot_mixture(mixture, **options)
    assert not plt.get_fignums()  # no empty axes are left behind


def test_matrices_are_refused():
    components = Independent(Normal(torch.zeros(2, 3, 3), 1.0), 2)
    with pytest.raises(ValueError, match=r"event shape \(3, 3\)"):
        plot_mixture(MixtureSameFamily(Categorical(torch.ones(2)), components))


@pytest.mark.parametrize(
    ("dims", "message"), [((0,), "at least two"), ((0, 1, 1), "1"), ((0, 7), "7")]
)
def test_mistakes_in_pairs(dims, message):
    with pytest.raises(ValueError, match=message):
        plot_pairs(five(), dims)
    assert not plt.get_fignums()
