"""Flows on mixtures: exact gradients, components in data space, what does not fit."""

import contextlib
import copy
import itertools
import pickle

import pyro.distributions as dist
import pyro.distributions.transforms as flows
import pytest
import torch
from pyro.nn import AutoRegressiveNN, DenseNN
from torch import nn
from torch.distributions import (
    AffineTransform,
    Categorical,
    ComposeTransform,
    ExpTransform,
    Laplace,
    SoftmaxTransform,
    StickBreakingTransform,
)

from pyro_mixtures.distributions import (
    GaussianScaleMixture,
    GumbelSoftmaxMixtureOfDiagNormals,
    Mixture,
    MixtureFlow,
    MixtureOfDiagNormals,
    MixtureOfNormals,
    MixtureSameFamily,
    TransformedDistribution,
    UnusedScoreWarning,
)
from tests.pairwise import in_pairs
from tests.registry import (
    COSTS,
    FAMILIES,
    gradients,
    randn,
    relative_error,
    sample_at,
)


def tanh_coupling(size):
    half = size // 2
    return flows.AffineCoupling(half, DenseNN(half, [8], [size - half] * 2, nn.Tanh()))


def tanh_autoregressive(size):
    return flows.AffineAutoregressive(AutoRegressiveNN(size, [8], nonlinearity=nn.Tanh()))


TRANSFORMS = {
    "affine coupling": tanh_coupling,
    "spline coupling": lambda size: flows.spline_coupling(size, None, [8], 4),
    "autoregressive": tanh_autoregressive,
    "spline autoregressive": lambda size: flows.spline_autoregressive(size, [8], 4),
    "neural autoregressive": lambda size: flows.neural_autoregressive(size, [8], width=4),
    "block autoregressive": lambda size: flows.block_autoregressive(size, hidden_factors=[4]),
    "planar": flows.Planar,
    "splines": lambda size: flows.Spline(size, count_bins=4),
    "permuted": lambda size: flows.iterated(2, lambda: tanh_coupling(size)),
    "of torch": lambda size: [AffineTransform(0.5, 0.2), ExpTransform()],
}
CAN_INVERT = [
    name
    for name in TRANSFORMS
    # Pyro inverts "autoregressive" in single precision alone
    if name not in ("autoregressive", "neural autoregressive", "block autoregressive", "planar")
]
each_transform = pytest.mark.parametrize("name", TRANSFORMS)
each_invertible = pytest.mark.parametrize("name", CAN_INVERT)


def transforms(name, size=2):
    torch.manual_seed(1)
    made = TRANSFORMS[name](size)
    made = made if isinstance(made, list) else [made]
    return [each.double() if isinstance(each, nn.Module) else each for each in made]


def trained(made):
    """Parameters of transforms, by name."""
    modules = [each for each in made if isinstance(each, nn.Module)]
    return dict(nn.ModuleList(modules).named_parameters())


def diagonal(**options):
    parameters = FAMILIES["diag_normals"].parameters()
    return MixtureOfDiagNormals(**parameters, **options), parameters


def student_t():
    parameters = {"logits": randn(3), "locs": 2 * randn(3, 2), "df": torch.tensor([4.0, 5.0, 9.0])}
    parameters = {k: v.double().requires_grad_() for k, v in parameters.items()}
    components = dist.StudentT(parameters["df"].unsqueeze(-1), parameters["locs"]).to_event(1)
    return MixtureSameFamily(Categorical(logits=parameters["logits"]), components), parameters


def full():
    parameters = FAMILIES["normals"].parameters()
    return MixtureOfNormals(**parameters), parameters


def sizes():
    parameters = FAMILIES["scale_mixture"].parameters()
    return GaussianScaleMixture(**parameters), parameters


def relaxed(**options):
    parameters = FAMILIES["diag_normals"].parameters()
    return GumbelSoftmaxMixtureOfDiagNormals(**parameters, temperature=0.5, **options), parameters


BASES = {"diagonal": diagonal, "full": full, "sizes": sizes, "student t": student_t}


# ------------------------------------------------------------------------------------- gradients


def exact_and_found(made, size, weight_gradient, cost, *, with_score, apart=0.0, step=0.1):
    """Gradients of the mean of a cost, by one sum over a grid of base points."""
    family = FAMILIES["diag_normals"]
    parameters = family.parameters(D=size, scales=(0.5, 0.9))
    family.move_away(parameters, slice(2, 3), apart)
    learned = {**parameters, **trained(made)}
    axis = torch.arange(-8, 10 + apart, step, dtype=torch.float64)
    points = torch.cartesian_prod(*[axis] * size).reshape(-1, size)
    base = family.build(parameters, weight_gradient=weight_gradient)
    mass = base.log_prob(points).exp() * step**size
    moved = points
    for transform in made:
        moved = transform(moved)
    exact = gradients(mass @ cost(moved), learned)
    q = MixtureFlow(base, made)
    y = sample_at(q, points)
    loss = cost(y)
    if with_score:
        loss = loss + loss.detach() * q.score_parts(y).score_function
    return exact, gradients(mass.detach() @ loss, learned)


@pytest.mark.parametrize("weight_gradient", ["clustered", "pathwise", "hybrid"])
@pytest.mark.parametrize("size", [1, 2])
def test_gradients_are_exact(weight_gradient, size):
    """Smooth transforms: of weights, components and transforms, under costs of any shape."""
    made = [AffineTransform(randn(size), 0.4)]
    if size > 1:
        made += transforms("affine coupling") + transforms("autoregressive") + transforms("planar")
    for name in ("cosine", "quartic", "product"):
        exact, found = exact_and_found(
            made, size, weight_gradient, COSTS[name], with_score=weight_gradient != "pathwise"
        )
        assert relative_error(found, exact) < 1e-8, name


@pytest.mark.parametrize("with_score", [False, True])
def test_gradients_between_groups(with_score):
    """Of components apart, with the score function and by the samples alone."""
    made = transforms("affine coupling")
    cost = COSTS["cosine"]
    with pytest.warns(UnusedScoreWarning) if not with_score else contextlib.nullcontext():
        exact, found = exact_and_found(
            made, 2, "clustered", cost, with_score=with_score, apart=7.0
        )
    assert relative_error(found, exact) < 1e-6


@pytest.mark.parametrize(("name", "size"), [("splines", 1), ("spline coupling", 2)])
def test_gradients_of_splines(name, size):
    """Whose slopes bend at the knots: the sum over the grid is less exact."""
    made = transforms(name, size)
    with torch.no_grad():
        for value in trained(made).values():
            value *= 0.3  # less steep
    exact, found = exact_and_found(
        made, size, "pathwise", COSTS["cosine"], with_score=False, step=0.03
    )
    assert relative_error(found, exact) < 2e-3


@in_pairs
@each_transform
@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("sample_shape", [(), (4,)])
def test_densities_of_draws(name, kind, sample_shape):
    """That of the very sample is the base's less the volume, as by autograd, with all gradients.

    A draw later has another one in between, which transforms with a memory take for the last.
    """
    base, parameters = BASES[kind]()
    made = transforms(name)
    q = MixtureFlow(base, made)
    y = q.rsample(sample_shape)
    found = q.log_prob(y)
    q.rsample(sample_shape)
    torch.testing.assert_close(q.log_prob(y), found)
    torch.testing.assert_close(q.score_parts(y).log_prob, found)
    z = q._known_way(y)[0]

    def moved(point):
        for transform in made:
            point = transform(point)
        return point

    points = z.reshape(-1, 2).detach()
    jacobians = torch.stack([torch.autograd.functional.jacobian(moved, x) for x in points])
    expected = base.log_prob(z) - jacobians.slogdet()[1].reshape(sample_shape)
    torch.testing.assert_close(found, expected)
    learned = {**parameters, **trained(made)}
    slopes = gradients(found.sum() + y.sum(), learned)
    assert all(slope.isfinite().all() for slope in slopes.values())
    assert all(slopes[name].any() for name in trained(made)) or "spline" in name


# ------------------------------------------------------------------------------------- densities


@in_pairs
@each_invertible
@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("batch_shape", [(), (3,)])
def test_components_at_a_point(name, kind, batch_shape):
    """Each is that component moved by the transforms, of drawn points and others."""
    base, _ = BASES[kind]()
    base = base.expand(batch_shape)
    made = transforms(name)
    q = MixtureFlow(base, made)
    assert (q.batch_shape, q.event_shape, q.num_components) == (batch_shape, (2,), 3)
    drawn = q.rsample((5,))
    for y in (drawn, drawn.detach(), drawn[0].detach(), drawn[:1].detach().expand(2, *q.shape())):
        each = q.component_log_prob(y)
        assert each.shape == (*y.shape[:-1], 3)
        joint = q.log_weights + each
        torch.testing.assert_close(joint.logsumexp(-1), q.log_prob(y), rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(joint.softmax(-1), q.responsibilities(y), rtol=1e-5, atol=1e-8)
    reference = dist.TransformedDistribution(base, made)
    torch.testing.assert_close(q.log_prob(y), reference.log_prob(y.clone()))
    assert torch.equal(q.component_logits, base.component_logits)


@pytest.mark.parametrize("kind", ["diagonal", "full", "sizes"])
def test_each_component_has_a_mass_of_one(kind):
    base, _ = BASES[kind]()
    q = MixtureFlow(base, transforms("permuted"))
    axis = torch.linspace(-15, 15, 500, dtype=torch.float64)
    y = torch.cartesian_prod(axis, axis)
    mass = q.component_log_prob(y).exp().sum(0) * (axis[1] - axis[0]) ** 2
    torch.testing.assert_close(mass, torch.ones_like(mass), rtol=1e-3, atol=0)


def test_an_autoregressive_flow_at_a_point():
    """Its inverse takes coordinate by coordinate."""
    torch.manual_seed(0)
    base = MixtureOfDiagNormals(torch.randn(2, 3), torch.ones(2, 3), torch.zeros(2))
    q = MixtureFlow(base, flows.affine_autoregressive(3, [8]))
    y = q.rsample((5,))
    found = q.component_log_prob(y.detach())
    torch.testing.assert_close(found, q.component_log_prob(y), rtol=1e-4, atol=1e-4)


def test_events_that_change_their_size_or_have_none():
    base, _ = diagonal()
    simplex = MixtureFlow(base, StickBreakingTransform())
    y = simplex.sample((4,))
    assert y.shape == (4, 3)
    assert simplex.component_log_prob(y).shape == (4, 3)
    numbers = MixtureSameFamily(Categorical(torch.ones(2)), Laplace(torch.zeros(2), torch.ones(2)))
    positive = MixtureFlow(numbers, [ExpTransform()])
    y = positive.rsample((4,))
    assert positive.component_log_prob(y).shape == (4, 2)
    assert (positive.event_shape, y.shape) == ((), (4,))


def test_a_flow_on_a_flow_and_none_at_all():
    base, _ = diagonal()
    made = transforms("affine coupling")
    twice = MixtureFlow(MixtureFlow(base, made), ExpTransform())
    y = twice.sample((5,))
    at_once = MixtureFlow(base, [*made, ExpTransform()])
    torch.testing.assert_close(twice.component_log_prob(y), at_once.component_log_prob(y))
    plain = MixtureFlow(base, [])
    z = plain.rsample((5,))
    assert torch.equal(plain.log_prob(z), base.log_prob(z))
    assert torch.equal(plain.component_log_prob(z), base.component_log_prob(z))


def test_samples_with_the_number_of_their_component():
    base, _ = diagonal()
    base = MixtureOfDiagNormals(20 * base.locs, base.coord_scale, base.component_logits)
    q = MixtureFlow(base, transforms("affine coupling"))
    y, index = q.sample_with_index((50,))
    assert torch.equal(q.responsibilities(y).argmax(-1), index)


@each_invertible
def test_data_after_a_step_of_the_transform(name):
    """Transforms that keep their last inverse have it of the parameters before the step."""
    base, _ = diagonal()
    made = transforms(name)
    learned = list(trained(made).values())
    q = MixtureFlow(base, made)
    data = q.sample((6,))
    for _ in range(2):
        q.log_prob(data).sum().backward()
        with torch.no_grad():
            for each in learned:
                each += 0.1 * torch.randn_like(each)
    torch.testing.assert_close(q.log_prob(data), q.log_prob(data.clone()))


def with_hidden_parameters():
    """Transforms, and what they hold in functions."""
    torch.manual_seed(0)
    network = DenseNN(1, [4], [1, 1]).double()
    conditional = flows.conditional_affine_coupling(2, 3, hidden_dims=[4]).double()
    spline = flows.Spline(2, count_bins=4).double()
    loc = torch.zeros(2, dtype=torch.float64)
    return {
        "tensor": (AffineTransform(loc, 2.0), [loc]),
        "closure": (flows.AffineCoupling(1, lambda x: network(x)), list(network.parameters())),
        "context": (
            conditional.condition(torch.ones(3).double()),
            list(conditional.parameters()),
        ),
        "inverse": (spline.inv, list(spline.parameters())),
        "module": (spline, list(spline.parameters())),
    }


@pytest.mark.parametrize("name", ["tensor", "closure", "context", "inverse", "module"])
def test_a_draw_after_a_step_of_the_transform(name):
    """Its way is none of the transform's any more, wherever that has its parameters."""
    base, _ = diagonal()
    transform, parameters = with_hidden_parameters()[name]
    q = MixtureFlow(base, transform)
    y = q.rsample((6,))
    assert q._known_way(y) is not None
    with torch.no_grad():
        for each in parameters:
            each += 0.5
    torch.testing.assert_close(q.log_prob(y), q.log_prob(y.detach().clone()))
    assert q.score_parts(y).score_function == 0


def test_slope_of_the_density_at_a_point():
    """Of a draw without a gradient of its own that is made to have one."""
    base, _ = diagonal()
    base = MixtureOfDiagNormals(
        base.locs.detach(), base.coord_scale.detach(), base.component_logits.detach()
    )
    q = MixtureFlow(base, [AffineTransform(0.0, 2.0)])
    y = q.rsample((5,)).requires_grad_()
    (slope,) = torch.autograd.grad(q.log_prob(y).sum(), y)
    z = (y / 2).detach().requires_grad_()
    (expected,) = torch.autograd.grad(base.log_prob(z).sum(), z)
    torch.testing.assert_close(slope, expected / 2)


# ---------------------------------------------------------------------------- the relaxed baseline


@pytest.mark.parametrize("kind", [MixtureFlow, TransformedDistribution])
def test_nested_densities_know_the_choice_of_a_draw(kind):
    """As on the relaxed mixture alone; without it a draw far from all others had next to none."""
    narrow = {
        "locs": 100 * torch.arange(3.0, dtype=torch.float64).unsqueeze(-1).expand(3, 2),
        "coord_scale": torch.full((3, 2), 1e-3, dtype=torch.float64),
        "component_logits": torch.zeros(3, dtype=torch.float64),
    }
    base = GumbelSoftmaxMixtureOfDiagNormals(**narrow, temperature=1.0, num_nested=2)
    q = kind(base, [AffineTransform(0.0, 0.01)])
    y = q.rsample((100,))
    own, other = q.log_prob(y), q.log_prob(y.clone())
    assert own.min() > 0
    assert other.median() < -1000


def test_a_relaxed_base():
    base, parameters = relaxed(num_nested=10)
    made = transforms("affine coupling")
    q = MixtureFlow(base, made)
    learned = {**parameters, **trained(made)}

    def loss():
        torch.manual_seed(3)
        y = q.rsample((200,))
        return (q.log_prob(y) + y.sum(-1).cos()).mean()

    found = gradients(loss(), learned)
    for name, value in learned.items():
        direction = randn(*value.shape)
        with torch.no_grad():
            value += 1e-6 * direction
            above = loss()
            value -= 2e-6 * direction
            below = loss()
            value += 1e-6 * direction
        slope = (found[name] * direction).sum()
        torch.testing.assert_close(slope, (above - below) / 2e-6, rtol=1e-4, atol=1e-6)
    for method in (q.component_log_prob, q.responsibilities):
        with pytest.raises(NotImplementedError, match="one component each, but got GumbelSoft"):
            method(q.sample((2,)))
    with pytest.raises(NotImplementedError, match="one component each, but got GumbelSoft"):
        q.sample_with_index()
    unrelaxed = MixtureFlow(q.base_dist.mixture, q.transforms)  # what the error says
    assert unrelaxed.component_log_prob(q.sample((2,))).shape == (2, 3)


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("name", ["planar", "block autoregressive", "neural autoregressive"])
def test_transforms_without_an_inverse(name):
    """Densities of draws and none of other points, by an error that says what to do."""
    base, _ = diagonal()
    made = transforms(name)
    kind = type(made[0]).__name__
    for each in (made, [ComposeTransform(made), AffineTransform(0.0, 2.0)]):
        q = MixtureFlow(base, each)
        y = q.rsample((4,))
        assert q.component_log_prob(y).isfinite().all()
        methods = (q.log_prob, q.component_log_prob, q.responsibilities, q.score_parts)
        for method, point in itertools.product(methods, (y.detach(), y + 1, y[:1])):
            with pytest.raises(NotImplementedError, match=f"but got {kind}, which.*{kind}.inv"):
                method(point)
    back = MixtureFlow(base, [made[0].inv])
    assert back.log_prob(torch.zeros(4, 2).double()).shape == (4,)
    for method in (back.rsample, back.sample, back.sample_with_index):
        with pytest.raises(NotImplementedError, match=f"{kind}.inv.*densities alone"):
            method()


@pytest.mark.parametrize(
    "made",
    [
        lambda: flows.spline_coupling(4),
        lambda: tanh_coupling(3),
        lambda: flows.affine_autoregressive(3),
        lambda: flows.Permute(torch.tensor([1, 0, 2])),
        lambda: tanh_coupling(2).float(),
    ],
    ids=["spline coupling", "coupling", "autoregressive", "permutation", "dtype"],
)
def test_sizes_that_show_with_points(made):
    base, _ = diagonal()
    q = MixtureFlow(base, made())
    with pytest.raises(ValueError, match=r"Expected transforms .*\(2,\).*but "):
        q.rsample()
    with pytest.raises(ValueError, match=r"Expected transforms .*\(2,\).*but "):
        q.log_prob(torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("made", [flows.Planar(3), flows.Spline(3)])
def test_sizes_that_are_broadcast(made):
    """By Pyro's transforms; Pyro's class would return the wrong density."""
    base = MixtureOfDiagNormals(torch.zeros(2, 1), torch.ones(2, 1), torch.zeros(2))
    q = MixtureFlow(base, made)
    with pytest.raises(ValueError, match=r"(?s)\(5, 1\).*but "):
        q.rsample((5,))


@pytest.mark.parametrize(
    ("made", "match"),
    [
        (lambda: AffineTransform(torch.zeros(3), 1.0), r"events of shape \(2,\), those"),
        (lambda: AffineTransform(torch.zeros(3, 2), 1.0, event_dim=2), "at most 1 dimensions"),
        (lambda: flows.HaarTransform(dim=-2), "at most 1 dimensions.*got HaarTransform"),
        (lambda: SoftmaxTransform(), "bijective transforms.*got SoftmaxTransform"),
        (lambda: [ExpTransform(), torch.exp], "transforms of torch.distributions, Pyro or zuko"),
        (lambda: flows.conditional_spline(2, 3), r"ConditionalSpline: call its condition"),
    ],
)
def test_transforms_that_do_not_fit(made, match):
    base, _ = diagonal()
    with pytest.raises(ValueError, match=match):
        MixtureFlow(base, made())


def test_one_event_is_not_made_of_another():
    base = MixtureOfDiagNormals(torch.zeros(2, 1), torch.ones(2, 1), torch.zeros(2))
    with pytest.raises(ValueError, match=r"events of shape \(1,\), those of the base, but got"):
        MixtureFlow(base, AffineTransform(torch.zeros(3), 1.0, event_dim=1))


def test_bases_that_are_none():
    base, _ = diagonal()
    for other in (base.to_event(0).expand((3,)).to_event(1), dist.Normal(0.0, 1.0), None):
        with pytest.raises(ValueError, match="base_mixture to be a mixture of pyro_mixtures"):
            MixtureFlow(other, ExpTransform())
    spike = Mixture(
        Categorical(torch.ones(2)),
        [dist.Delta(torch.tensor(0.0)), dist.Normal(0, 1)],
        weight_gradient="hybrid",
    )
    with pytest.raises(NotImplementedError, match=r"atoms \(Delta\)"):
        MixtureFlow(spike, AffineTransform(0.0, 2.0))


# ------------------------------------------------------------------------------------- copies


def test_copies():
    base, _ = diagonal()
    base = MixtureOfDiagNormals(base.locs.detach(), base.coord_scale.detach(), torch.zeros(3))
    q = MixtureFlow(base, transforms("of torch"))
    y = q.sample((3,))
    for copied in (copy.deepcopy(q), pickle.loads(pickle.dumps(q)), q.expand((3,))):
        assert type(copied) is MixtureFlow
        torch.testing.assert_close(copied.component_log_prob(y), q.component_log_prob(y))
