"""The hub of a displacement learns: its gradient, what it gains, and what it must not change."""

from unittest import mock

import pytest
import torch

from pyro_mixtures.distributions import AVFMixtureOfDiagNormals, MixtureOfDiagNormals
from pyro_mixtures.numerics import chunks
from pyro_mixtures.samples.blending import Blending
from pyro_mixtures.velocity.adaptive_displacement import (
    CAUTION,
    SMALL_RATE,
    Transported,
    log_share_slope,
    variance_gradient,
)
from pyro_mixtures.velocity.displacement import FARTHEST, departed, displacement, moment_matched
from tests.registry import (
    FAMILIES,
    beside_its_score,
    gradients,
    leaves,
    randn,
    same_group,
    sample_at,
)
from tests.velocity.test_continuity import LABELS, group_weights

FAMILY = FAMILIES["avf_diag_normals"]


def weight_gradients(z, grad, log_prob, within, weights, *components):
    """P, the gradients of the logits within their groups that come with each sample."""
    contributions = displacement(z, grad, log_prob, within, *components, precision=torch.float64)
    return weights * (contributions - contributions @ within.mT), contributions


@pytest.mark.parametrize("groups", ["one", "two"])
@pytest.mark.parametrize("samples", [1, 6])
@pytest.mark.parametrize("scales", [(0.5, 2.0), (1.0, 1.0), (0.999, 1.001)])
def test_gradient_by_finite_differences(groups, samples, scales):
    """Of half the summed squares, and of the price of the departure with the squares held."""
    parameters = FAMILY.parameters(K=4, D=3, scales=scales, spread=0.7)
    locs, stddev, control_var, logits = (value.detach() for value in parameters.values())
    z = FAMILY.build(parameters).sample((samples,))
    log_prob = FAMILY.reference(parameters).log_prob(z).unsqueeze(-1).detach()
    within, weights = group_weights(logits, groups), logits.softmax(-1).unsqueeze(0)
    values = (z, torch.randn_like(z), log_prob, within)
    labels = torch.tensor(LABELS[groups])
    same = (labels == labels.unsqueeze(-1)).double()

    def squares(control_var):
        return weight_gradients(*values, weights, locs, stddev, control_var)[0].square().sum(0)

    price = squares(control_var) @ same / 2 * CAUTION  # of each component's group
    share = logits.softmax(-1) / (logits.softmax(-1) @ same)

    def objective(control_var):
        departure = within @ control_var
        length = departure.square().sum((0, 2)).expand(4)
        # each group once: by the shares of its members
        return squares(control_var).sum() / 2 + (share * price * length).sum()

    step, expected = 1e-5, torch.zeros_like(control_var)
    for index in range(control_var.numel()):
        unit = torch.zeros(control_var.numel(), dtype=torch.float64)
        unit[index] = step
        unit = unit.reshape(control_var.shape)
        slope = (objective(control_var + unit) - objective(control_var - unit)) / (2 * step)
        expected.view(-1)[index] = slope
    contributions = weight_gradients(*values, weights, locs, stddev, control_var)[1]
    arguments = (*values, locs, stddev, control_var, contributions, weights)
    actual = variance_gradient(Transported(*arguments), precision=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7 * float(expected.norm()))
    with mock.patch.object(chunks, "MEMORY_BUDGET", 4000):
        sliced = variance_gradient(Transported(*arguments), precision=torch.float64)
    torch.testing.assert_close(sliced, actual, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weight_gradient", ["pathwise", "clustered"])
@pytest.mark.parametrize("batch_shape", [(), (2,)])
def test_backward_leaves_that_gradient(weight_gradient, batch_shape):
    parameters = FAMILY.parameters(batch_shape, K=4, D=3)
    q = FAMILY.build(parameters, weight_gradient=weight_gradient)
    z = q.sample((5,))
    sample = beside_its_score(q, sample_at(q, z))
    actual = gradients(sample, parameters, z.cos())["control_var"]
    z = z.movedim(0, -2)  # (*B, S, D)
    locs, stddev, control_var, logits = (value.detach() for value in parameters.values())
    weights = logits.softmax(-1).unsqueeze(-2)
    within = weights
    if weight_gradient == "clustered" and not same_group(q).all():
        within = logits.unsqueeze(-2).masked_fill(~same_group(q), -torch.inf).softmax(-1)
    components = (locs, stddev, control_var)
    log_prob = q.log_prob(z.movedim(-2, 0)).detach()
    log_prob = (log_prob.movedim(0, -1) if batch_shape else log_prob).unsqueeze(-1)
    values = (z, z.cos(), log_prob, within)
    contributions = weight_gradients(*values, weights, *components)[1]
    here = Transported(*values, *components, contributions, weights)
    expected = variance_gradient(here, precision=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-10)


def test_slope_of_the_share():
    """Of ``expm1(rate t) / expm1(rate)``, on both sides of where the series takes over."""
    rate = torch.tensor([-3.0, -0.1, -SMALL_RATE * 0.9, 0.0, SMALL_RATE, 0.1, 3.0]).double()
    nodes, step = torch.linspace(0.1, 1, 4).double().unsqueeze(-1), 1e-5

    def log_share(rate):
        return ((rate * nodes).expm1() / rate.expm1()).log()

    rate = torch.where(rate == 0, 1e-3, rate)
    expected = (log_share(rate + step) - log_share(rate - step)) / (2 * step)
    torch.testing.assert_close(log_share_slope(rate, nodes), expected, rtol=1e-6, atol=1e-7)
    assert (log_share_slope(torch.zeros(1).double(), nodes) == (nodes - 1) / 2).all()


def problem(K, D, seed=0):
    """Overlapping components, two standard deviations from each other."""
    generator = torch.Generator().manual_seed(seed)
    locs = torch.nn.functional.normalize(torch.randn(K, D, generator=generator), dim=-1)
    scales = (0.1 * torch.randn(K, D, generator=generator)).exp()
    logits = 0.5 * torch.randn(K, generator=generator)
    return 2**0.5 * locs, scales, logits


def square(z):
    return z.square().sum(-1)


@pytest.mark.parametrize(("K", "D", "factor"), [(10, 10, 2.0), (5, 30, 3.0)])
def test_learning_lowers_the_variance(K, D, factor):
    """Ratios of 0.3 and 0.1 were measured; a wrong sign would raise the variance."""
    torch.manual_seed(0)
    parameters = problem(K, D)
    control_var = torch.zeros(2, K, D, requires_grad=True)
    optimizer = torch.optim.Adam([control_var], lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        q = AVFMixtureOfDiagNormals(*parameters, control_var, validate_args=False)
        square(q.rsample((8,))).sum().backward()
        optimizer.step()

    def variance(control_var):
        torch.manual_seed(1)
        locs, scales, logits = (x.expand(4000, *x.shape) for x in parameters)
        logits = logits.clone().requires_grad_()
        q = AVFMixtureOfDiagNormals(locs, scales, logits, control_var.expand(4000, 2, K, D))
        z = q.rsample()
        point = z.detach().requires_grad_()
        (slope,) = torch.autograd.grad(square(point).sum(), point)
        return float(torch.autograd.grad(z, logits, slope)[0].var(0).sum())

    assert variance(control_var.detach()) * factor < variance(torch.zeros(2, K, D))


@pytest.mark.parametrize("weight_gradient", ["pathwise", "clustered", "hybrid"])
@pytest.mark.parametrize("sample_shape", [(), (5,)])
def test_zero_is_the_base_class(weight_gradient, sample_shape):
    parameters = FAMILY.parameters((2,), K=4, **FAMILY.groups)
    base = {name: value for name, value in parameters.items() if name != "control_var"}
    parameters["control_var"] = torch.zeros(2, 2, 4, 2).double().requires_grad_()
    q = AVFMixtureOfDiagNormals(**parameters, weight_gradient=weight_gradient)
    p = MixtureOfDiagNormals(**base, weight_gradient=weight_gradient)
    torch.manual_seed(0)
    z = q.rsample(sample_shape)
    torch.manual_seed(0)
    torch.testing.assert_close(z, p.rsample(sample_shape), rtol=0, atol=0)
    points = z.detach()
    actual = gradients(sample_at(q, points), parameters, points.cos())
    expected = gradients(sample_at(p, points), base, points.cos())
    del actual["control_var"]
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    fit = AVFMixtureOfDiagNormals.from_samples(randn(20, 2), 2, weight_gradient=weight_gradient)
    assert (fit.control_var == 0).all()


def test_frozen():
    """A ``control_var`` without gradient steers the hub at the cost of a plain mixture."""
    parameters = FAMILY.parameters(K=4, D=3)
    rest = {name: value for name, value in parameters.items() if name != "control_var"}
    frozen = FAMILY.build({**rest, "control_var": parameters["control_var"].detach()})
    points = frozen.sample((5,))
    expected = gradients(sample_at(FAMILY.build(parameters), points), parameters, points.cos())
    patched = "pyro_mixtures.components.normals.variance_gradient"
    with mock.patch(patched) as learning:
        actual = gradients(sample_at(frozen, points), rest, points.cos())
    assert not learning.called
    del expected["control_var"]
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_hub_keeps_near():
    """However far ``control_var`` went; and gradients stay finite there."""
    parameters = FAMILY.parameters(K=4, D=3)
    far = leaves({**parameters, "control_var": 1e4 * parameters["control_var"]})
    locs, scales, control_var, logits = (value.detach() for value in far.values())
    within = group_weights(logits, "one")
    matched = moment_matched(within, locs, scales)
    hub_loc, _, hub_scale = departed(*matched, within, control_var)
    departure = [(hub_loc - matched[0]) / matched[2], (hub_scale / matched[2]).log()]
    torch.testing.assert_close(torch.cat(departure).norm(), torch.tensor(FARTHEST).double())
    for name, value in gradients(FAMILY.build(far).rsample((5,)), far).items():
        assert value.isfinite().all(), name


def test_blended():
    """Transport and score function share the logits' gradient; the hub goes on learning."""
    parameters = FAMILY.parameters(K=4, D=3, spread=0.5)
    blending = Blending()
    for _ in range(3):
        q = FAMILY.build(parameters, weight_gradient="clustered").blended(blending)
        z = q.rsample((5,))
        score = q.score_parts(z).score_function
        surrogate = z.cos().sum() + (score * z.detach().cos().sum(-1)).sum()
        values = gradients(surrogate, parameters)
        blending.learn()
        assert all(value.isfinite().all() for value in values.values())
        assert (values["control_var"] != 0).any()
    assert blending.num_draws == 15
    assert (blending.shares(q.groups) < 1).any()


def test_reflection():
    """Coordinates that are turned round turn the hub's place and keep its scale."""
    q = FAMILY.build(FAMILY.parameters(K=3, D=2))
    turned = q.affine(torch.tensor([-2.0, 3.0]))
    place, scale = q.control_var.unbind(-3)
    sign = torch.tensor([-1.0, 1.0])
    torch.testing.assert_close(turned.control_var, torch.stack([sign * place, scale]))


def test_fits_can_go_on_to_learn():
    q = AVFMixtureOfDiagNormals.from_samples(torch.randn(50, 2), 2)
    control_var = q.control_var.requires_grad_()
    q.rsample((5,)).square().sum().backward()
    torch.optim.SGD([control_var], lr=0.1).step()
    assert (control_var != 0).any()
