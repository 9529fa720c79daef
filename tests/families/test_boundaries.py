"""Ends of supports, tails and extreme parameters: finite, and in float32 what it is in float64."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Kumaraswamy, Laplace

from pyro_mixtures import MixtureSameFamily
from tests.families.components import Components, real_line
from tests.families.registry import COMPONENTS, cost_gradients, each_components
from tests.pairwise import in_pairs
from tests.registry import Parameters, gradients, leaves, relative_error

DTYPES = (torch.float32, torch.float64)
BOTH_PRECISIONS = 1e-3

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def gradients_at(family: Components, parameters: Parameters, points: Tensor, **options):
    """Of a random linear cost, and log densities; all have to be finite."""
    mixture = family.mixture(parameters, **options)
    log_prob = mixture.log_prob(points)
    assert log_prob.isfinite().all()
    torch.manual_seed(0)
    pull = torch.randn(points.shape, dtype=torch.float64).to(points.dtype)
    values = gradients(mixture.reparameterize(points), parameters, pull)
    for name, value in values.items():
        assert value.isfinite().all(), name
    return values


def assert_precisions_agree(family: Components, parameters: Parameters, points: Tensor) -> None:
    """Of parameters and points of single precision."""
    low = gradients_at(family, parameters, points.float())
    high = gradients_at(family, leaves(parameters, torch.float64), points.float().double())
    assert relative_error(low, high) < BOTH_PRECISIONS


def extreme_points(dtype: torch.dtype) -> Tensor:
    """In the open unit interval, those next to its ends among them."""
    bounds = torch.finfo(dtype)
    near_zero = torch.tensor(
        [bounds.tiny, bounds.tiny * 1e3, 1e-30, 1e-9, bounds.eps], dtype=dtype
    )
    near_one = 1 - torch.tensor([bounds.eps / 2, bounds.eps, 1e-4, 0.5, 0.7], dtype=dtype)
    return torch.cat([near_zero, near_one])


def small_shapes(*names: str, K: int = 3, D: int = 1) -> Parameters:
    """Of densities with poles at the ends."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        name: 0.05 * 18 ** torch.rand(K, D, generator=generator, dtype=torch.float64)
        for name in names
    }
    return leaves({**shapes, "logits": torch.linspace(-1, 1, K, dtype=torch.float64)})


@in_pairs
@each_dtype
@pytest.mark.parametrize("name", ["gamma", "beta", "kumaraswamy", "inverse_gamma", "weibull"])
@pytest.mark.parametrize("weight_gradient", ["pathwise", "hybrid"])
def test_poles(name, weight_gradient, dtype):
    family = COMPONENTS[name]
    names = [name for name in family.parameters() if name != "logits"]
    parameters = leaves(small_shapes(*names), dtype)
    points = extreme_points(dtype)
    if family.interval(parameters)[1] == math.inf:
        points = torch.cat([points, torch.tensor([1.0, 30.0, 1e3, 1e4], dtype=dtype)])
    if name == "inverse_gamma":
        points = points[points > 1e-30]  # beyond, its logarithm overflows
    points = points.unsqueeze(-1)
    if name == "kumaraswamy":  # torch's density is not finite next to the ends
        points = points[family.reference(parameters).log_prob(points).isfinite()]
    gradients_at(family, parameters, points, weight_gradient=weight_gradient)


@each_dtype
@pytest.mark.parametrize("concentration", [1e-3, 0.02, 0.2])
def test_tiny_concentrations(concentration, dtype):
    """Of a Dirichlet law: nearly all samples are vertices."""
    family = COMPONENTS["dirichlet"]
    parameters = small_shapes("concentration", D=4)
    parameters["concentration"] = parameters["concentration"] / 0.2 * concentration
    parameters = leaves(parameters, dtype)
    tiny = torch.finfo(dtype).tiny
    vertices = torch.eye(4, dtype=dtype).clamp_min(tiny)
    points = torch.cat([vertices, family.component_samples(parameters, 10).flatten(0, 1)])
    gradients_at(family, parameters, points.clamp_min(tiny))


ENDS = {
    "uniform": "low",
    "pareto": "scale",
    "von_mises": -math.pi,
    "half_normal": 0.0,
    "half_cauchy": 0.0,
    "exponential": 0.0,
}


@each_dtype
@pytest.mark.parametrize(("name", "end"), ENDS.items(), ids=ENDS)
def test_at_an_end(name, end, dtype):
    """Samples of single precision come to lie there: 2 in 10 million half-Normal ones."""
    family = COMPONENTS[name]
    parameters = family.parameters(K=3, D=2, dtype=dtype)
    at = parameters[end].detach().squeeze(0) if isinstance(end, str) else torch.full((2,), end)
    points = torch.stack([at.to(dtype), at.to(dtype)])
    points[1, 1] += 0.5
    gradients_at(family, parameters, points)


@each_dtype
def test_points_where_a_component_has_no_mass(dtype):
    """So near to an end of the interval that its distribution function rounds to zero."""
    a = torch.tensor([0.4, 4.0], dtype=dtype, requires_grad=True)
    b = torch.tensor([1.2, 0.9], dtype=dtype, requires_grad=True)
    logits = torch.zeros(2, dtype=dtype, requires_grad=True)
    parameters = {"concentration1": a, "concentration0": b, "logits": logits}
    mixture = MixtureSameFamily(Categorical(logits=logits), Kumaraswamy(a, b))
    for value in (1e-2, 1e-4, 1e-6, 1e-8):
        points = torch.tensor(value, dtype=dtype)
        assert mixture.log_prob(points).isfinite()
        actual = cost_gradients(mixture, points, parameters)
        assert all(gradient.isfinite().all() for gradient in actual.values()), value


@in_pairs
@each_dtype
@each_components
@pytest.mark.parametrize("of_dims", [min, max])
def test_tiny_weights(family, of_dims, dtype):
    parameters = family.parameters(K=4, D=of_dims(family.dims), dtype=dtype)
    with torch.no_grad():
        parameters["logits"].copy_(torch.tensor([0.0, -200.0, -torch.inf, 1.0]))
    points = interior(family, parameters, 5, dtype)
    values = gradients_at(family, parameters, points)
    assert values["logits"][2] == 0


def interior(family: Components, parameters: Parameters, count: int, dtype: torch.dtype) -> Tensor:
    """Samples of all components that are not rounded to an end."""
    points = family.component_samples(parameters, count).flatten(0, 1)
    low, high = (torch.as_tensor(end, dtype=dtype).detach() for end in family.interval(parameters))
    room = torch.minimum(points - low, high - points)
    inside = (room > 1e4 * torch.finfo(dtype).eps * points.abs()).reshape(len(points), -1).all(-1)
    assert inside.any()
    return points[inside]


@each_components
@pytest.mark.parametrize("of_dims", [min, max])
def test_precisions_agree(family, of_dims):
    parameters = leaves(family.parameters(K=3, D=of_dims(family.dims)), torch.float32)
    assert_precisions_agree(family, parameters, interior(family, parameters, 20, torch.float32))


LIGHT = ("normal", "laplace", "logistic", "multivariate_normal", "low_rank_normal")
HEAVY = ("cauchy", "student_t", "multivariate_student_t", "mixed_real", "mixed_elliptical")
LIGHT_ABOVE = ("half_normal", "exponential", "gamma", "chi2", "weibull")
HEAVY_ABOVE = ("half_cauchy", "pareto", "inverse_gamma")
FAR = {
    **dict.fromkeys(LIGHT, (-60.0, -20.0, 20.0, 60.0)),
    **dict.fromkeys(HEAVY, (-1e6, -1e3, 1e3, 1e6)),
    **dict.fromkeys(LIGHT_ABOVE, (40.0, 100.0)),
    **dict.fromkeys(HEAVY_ABOVE, (1e3, 1e6)),
    "gumbel": (-5.0, 60.0),
    "log_normal": (1e3, 1e6),
    "mixed_positive": (1e3, 1e6),
}
NEAR = {
    **dict.fromkeys(LIGHT, (-8.0, 8.0)),
    **dict.fromkeys(HEAVY, (-1e3, 1e3)),
    **dict.fromkeys(LIGHT_ABOVE, (6.0, 12.0)),
    **dict.fromkeys(HEAVY_ABOVE, (1e2, 1e3)),
    "gumbel": (-2.0, 15.0),
    "log_normal": (10.0, 20.0),
    "mixed_positive": (10.0, 20.0),
}


def out_in_one(places, D: int, dtype: torch.dtype) -> Tensor:
    points = torch.full((len(places), D), 1.7, dtype=dtype)
    points[:, 0] = torch.tensor(places)
    return points


@in_pairs
@each_dtype
@pytest.mark.parametrize("name", FAR)
@pytest.mark.parametrize("D", [1, 3])
def test_far_tails(name, D, dtype):
    """Some 40 standard deviations or a million scales out, in one coordinate. Where several are
    as unlikely, the product of the hub's marginals exceeds the density by more than numbers hold.
    """
    parameters = COMPONENTS[name].parameters(K=3, D=D, dtype=dtype)
    gradients_at(COMPONENTS[name], parameters, out_in_one(FAR[name], D, dtype))


@pytest.mark.parametrize("name", NEAR)
@pytest.mark.parametrize("D", [1, 3])
def test_precisions_agree_in_tails(name, D):
    parameters = COMPONENTS[name].parameters(K=3, D=D, dtype=torch.float32)
    for point in out_in_one(NEAR[name], D, torch.float32).split(1):
        assert_precisions_agree(COMPONENTS[name], parameters, point)


APART = [
    pytest.param(family, D, id=f"{name}-{D}")
    for name, family in COMPONENTS.items()
    for D in family.dims
    # the samples of others round to the ends
    if D in (1, 3) and family.interval is real_line and "loc" in family.parameters(D=D)
]


@each_dtype
@pytest.mark.parametrize(("family", "D"), APART)
def test_components_far_apart(family, D, dtype):
    parameters = family.parameters(K=3, D=D, spread=1e4, dtype=dtype)
    gradients_at(family, parameters, interior(family, parameters, 5, dtype))


def test_scale_gradients_keep_their_digits():
    """Of components near the points, beside one whose distance hides them in single precision."""
    points = Laplace(0.0, 1.0).sample((1000,))
    results = []
    for dtype in DTYPES:
        loc = torch.tensor([0.0, 1.0, 1e5], dtype=dtype)
        scale = torch.tensor([1.0, 2.0, 1.0], dtype=dtype, requires_grad=True)
        weights = Categorical(torch.ones(3, dtype=dtype))
        z = MixtureSameFamily(weights, Laplace(loc, scale)).reparameterize(points.to(dtype))
        results.append(gradients(z.mean(), {"scale": scale})["scale"])
    low, high = results
    torch.testing.assert_close(low.double(), high, rtol=BOTH_PRECISIONS, atol=0.0)
