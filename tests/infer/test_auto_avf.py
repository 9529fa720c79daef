"""The guides with adaptive velocity fields, and the one with optimal transport."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    SVI,
    RenyiELBO,
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoMultivariateNormal, init_to_value
from torch.distributions import constraints

from pyro_mixtures.diagnostics import elbo_gradient_variance
from pyro_mixtures.distributions import AVFMultivariateNormal, AVFMultivariateStudentT
from pyro_mixtures.infer import (
    AutoAVFMultivariateNormal,
    AutoAVFMultivariateStudentT,
    AutoOMTMultivariateNormal,
    avf_optim_args,
)
from tests.pairwise import in_turn

LOC = torch.tensor([1.0, -2.0, 0.5])
SCALE_TRIL = torch.tensor([[0.5, 0.0, 0.0], [0.9, 0.6, 0.0], [-0.4, 0.3, 1.2]])
NORMAL_GUIDES = (AutoAVFMultivariateNormal, AutoOMTMultivariateNormal)
GUIDES = (*NORMAL_GUIDES, AutoAVFMultivariateStudentT)
BY_ROWS = partial(AutoAVFMultivariateNormal, num_rotations=2, planes="rows")
each_guide = pytest.mark.parametrize("guide_class", GUIDES)


@pytest.fixture(autouse=True)
def _clean_store():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def normal_model():
    pyro.sample("x", dist.MultivariateNormal(LOC, scale_tril=SCALE_TRIL))


def student_t_model():
    pyro.sample("x", dist.MultivariateStudentT(3.0, LOC, SCALE_TRIL))


def plated_model(data):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    low = pyro.sample("low", dist.Uniform(-1.0, 0.0))
    with pyro.plate("groups", 4):
        x = pyro.sample("x", dist.Normal(low, scale))
        pyro.sample("y", dist.Normal(x, 1.0), obs=data)


def fit(guide, model, *args, steps=1200, lr=0.03, particles=4):
    optimizer = pyro.optim.ClippedAdam(
        avf_optim_args({"lr": lr, "lrd": 0.02 ** (1 / steps)}, {"lr": 0.03})
    )
    svi = SVI(model, guide, optimizer, Trace_ELBO(particles, vectorize_particles=True))
    losses = [svi.step(*args) for _ in range(steps)]
    return sum(losses[-100:]) / 100


@pytest.mark.parametrize("guide_class", [AutoOMTMultivariateNormal, BY_ROWS])
def test_finds_a_normal_posterior(guide_class):
    """The divergence vanishes, and with it the noise of the loss."""
    guide = guide_class(normal_model)
    assert fit(guide, normal_model) == pytest.approx(0, abs=0.02)
    posterior = guide.get_posterior()
    torch.testing.assert_close(posterior.loc, LOC, atol=0.1, rtol=0)
    torch.testing.assert_close(posterior.scale_tril, SCALE_TRIL, atol=0.1, rtol=0)


@pytest.mark.slow
def test_finds_heavy_tails():
    guide = AutoAVFMultivariateStudentT(student_t_model, num_rotations=2)
    assert fit(guide, student_t_model, steps=3000, particles=16) == pytest.approx(0, abs=0.02)
    assert guide.df.item() == pytest.approx(3, abs=0.5)
    torch.testing.assert_close(guide.get_posterior().loc, LOC, atol=0.1, rtol=0)


@pytest.mark.parametrize("guide_class", [*GUIDES, BY_ROWS])
@pytest.mark.parametrize(
    "objective",
    [
        Trace_ELBO(),
        Trace_ELBO(num_particles=3),
        Trace_ELBO(num_particles=3, vectorize_particles=True),
        TraceMeanField_ELBO(),
        RenyiELBO(alpha=0.5, num_particles=3, vectorize_particles=True),
    ],
)
def test_objectives_and_plates(guide_class, objective):
    data = torch.randn(4)
    guide = guide_class(plated_model)
    svi = SVI(plated_model, guide, pyro.optim.Adam({"lr": 0.01}), objective)
    before = {}
    for step in range(3):
        svi.step(data)
        if step == 0:
            before = {name: p.detach().clone() for name, p in guide.named_parameters()}
    assert guide(data)["x"].shape == (4,)
    for name, parameter in guide.named_parameters():
        assert parameter.isfinite().all()
        assert not torch.equal(parameter, before[name]), name


@each_guide
def test_is_pyros_guide_but_for_the_gradient(guide_class):
    """The same parameters but those of its own, and the same medians, quantiles and posterior."""
    data = torch.randn(4)
    pyros = AutoMultivariateNormal(plated_model)
    ours = guide_class(plated_model)
    with torch.no_grad():
        pyros(data), ours(data)
        for name, parameter in pyros.named_parameters():
            parameter.copy_(torch.randn_like(parameter))
            ours.get_parameter(name).copy_(parameter)
        if guide_class is AutoAVFMultivariateStudentT:
            ours.df = torch.tensor(1e6)
    own = dict(ours.named_parameters()).keys() - dict(pyros.named_parameters()).keys()
    assert (
        own
        == {
            AutoAVFMultivariateNormal: {"control_var"},
            AutoAVFMultivariateStudentT: {"control_var", "df_unconstrained"},
            AutoOMTMultivariateNormal: set(),
        }[guide_class]
    )
    probabilities = [0.05, 0.5, 0.8]
    for expected, found in (
        (pyros.median(), ours.median()),
        (pyros.quantiles(probabilities), ours.quantiles(probabilities)),
    ):
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)
    value = torch.randn(5, 6)
    torch.testing.assert_close(
        ours.get_posterior().log_prob(value),
        pyros.get_posterior().log_prob(value),
        rtol=1e-3,
        atol=1e-3,
    )


def test_student_t_quantiles():
    """Those of Student t with 4 degrees of freedom, increasing also where a transform falls."""

    class BelowOne(dist.Normal):
        support = constraints.less_than(1.0)

    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("below", BelowOne(-10.0, 0.1))

    guide = AutoAVFMultivariateStudentT(model, init_df=4.0, init_scale=2.0)
    guide()
    quantiles = guide.quantiles([0.0, 0.025, 0.5, 0.975, 1.0])
    values = quantiles["x"] - guide.median()["x"]
    expected = 2 * 2.7764451 * torch.tensor([-1.0, 0.0, 1.0])
    torch.testing.assert_close(values[1:-1], expected, rtol=1e-5, atol=1e-6)
    assert values[[0, -1]].tolist() == [-torch.inf, torch.inf]
    below = quantiles["below"][1:-1]
    assert below[0] < below[1] < below[2] < 1


def test_control_var_has_a_learning_rate_of_its_own():
    """The first step of Adam is the learning rate, for parameters whose gradient is not zero."""
    guide = AutoAVFMultivariateNormal(normal_model, num_rotations=2)
    guide()
    before = {name: value.detach().clone() for name, value in guide.named_parameters()}
    assert before["control_var"].shape == (2, 2, 3)
    optimizer = pyro.optim.Adam(
        avf_optim_args({"lr": 1e-3}, {"lr": 0.2, "betas": (0.5, 0.999)}),
    )
    SVI(normal_model, guide, optimizer, Trace_ELBO()).step()
    moved = {
        name: float((value.detach() - before[name]).abs().amax())
        for name, value in guide.named_parameters()
    }
    assert moved["control_var"] == pytest.approx(0.2, rel=1e-3)
    assert moved["loc"] == pytest.approx(1e-3, rel=1e-2)


def test_control_var_learns_to_lower_the_variance():
    """Where the guide stands still, far from the posterior: its factor below the diagonal.

    There the cost is nearly linear, of slopes g, and the best field for an entry has the variance
    g_a^2 g_b^2 / (g_a^2 + g_b^2) in place of g_a^2: half of it on average over pairs.
    """
    far = torch.linspace(2, 4, 6)

    def model():
        pyro.sample("x", dist.Normal(far, 1.0).to_event(1))

    guide = AutoAVFMultivariateNormal(model, 2, init_to_value(values={"x": torch.zeros(6)}))
    guide()
    steps = 700
    arguments = avf_optim_args({"lr": 0.0}, {"lr": 0.03, "lrd": 0.02 ** (1 / steps)})
    svi = SVI(model, guide, pyro.optim.ClippedAdam(arguments), Trace_ELBO())
    for _ in range(steps):
        svi.step()
    posterior = guide.get_posterior()
    loc, factor = posterior.loc.detach(), posterior.scale_tril.detach()

    def variance(control_var):
        factors = factor.expand(20_000, -1, -1).clone().requires_grad_()
        z = type(posterior)(loc, factors, control_var).rsample()
        (gradient,) = torch.autograd.grad((z - far).square().sum() / 2, factors)
        return gradient.tril(-1).var(0).sum()

    control_var = posterior.control_var.detach()
    ratio = variance(control_var) / variance(torch.zeros_like(control_var))
    slopes = far.square()
    best = slopes / (slopes.unsqueeze(-1) + slopes)
    weights = slopes.unsqueeze(-1).expand(6, 6).tril(-1)
    assert ratio == pytest.approx(float((best * weights).sum() / weights.sum()), abs=0.03)


@each_guide
def test_state_survives(guide_class):
    guide = guide_class(normal_model)
    fit(guide, normal_model, steps=5)
    other = guide_class(normal_model)
    other()
    other.load_state_dict(guide.state_dict())
    value = torch.randn(4, 3)
    expected = guide.get_posterior().log_prob(value)
    assert torch.equal(other.get_posterior().log_prob(value), expected)


@pytest.mark.parametrize("guide_class", [AutoAVFMultivariateNormal, AutoAVFMultivariateStudentT])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_rotations": 0}, "num_rotations to be an integer >= 1, but got 0"),
        ({"num_rotations": 1.5}, "num_rotations to be an integer >= 1, but got 1.5"),
        ({"num_rotations": True}, "num_rotations to be an integer"),
        ({"init_scale": -1.0}, "init_scale > 0"),
        ({"planes": "columns"}, "planes to be one of axes, rows, but got 'columns'"),
    ],
)
def test_mistakes_are_told(guide_class, options, message):
    with pytest.raises(ValueError, match=message):
        guide_class(normal_model, **options)


@pytest.mark.parametrize("init_df", [0.0, -1.0, float("inf"), float("nan"), "3"])
def test_bad_degrees_of_freedom(init_df):
    with pytest.raises(ValueError, match="finite init_df > 0"):
        AutoAVFMultivariateStudentT(normal_model, init_df=init_df)


def test_starts_where_it_is_told():
    start = init_to_value(values={"x": LOC})
    guide = AutoAVFMultivariateNormal(normal_model, init_loc_fn=start, init_scale=0.3)
    guide()
    torch.testing.assert_close(guide.get_posterior().loc, LOC)
    torch.testing.assert_close(guide.get_posterior().scale_tril, 0.3 * torch.eye(3))


@pytest.mark.parametrize("wrap", ["plate", "to_event", "to_event twice", "mask", "to_event, mask"])
@pytest.mark.parametrize("student_t", [False, True])
def test_control_var_learns_from_the_model_alone(wrap, student_t):
    """What ``Trace_ELBO`` leaves is ``variance_gradient`` of the model's gradient at the samples.

    That of log q, which comes in where ``log_prob`` is asked for, would change its expectation.
    """
    target = dist.MultivariateNormal(LOC, scale_tril=SCALE_TRIL)
    shape = (2, 2, 1, 3)
    control_var = torch.randn(shape).requires_grad_()
    arguments = (
        torch.zeros(2, 3),
        torch.eye(3) + 0.5 * torch.randn(2, 3, 3).tril(-1),
        control_var,
    )

    def posterior():
        if student_t:
            return AVFMultivariateStudentT(8.0, *arguments)
        return AVFMultivariateNormal(*arguments)

    def site(q):
        if wrap == "plate":
            with pyro.plate("rows", 2):
                return pyro.sample("x", q)
        if wrap == "mask":
            with pyro.plate("rows", 2):
                return pyro.sample("x", q.mask(True))
        q = q.to_event(0).to_event(1) if wrap == "to_event twice" else q.to_event(1)
        return pyro.sample("x", q.mask(True) if "mask" in wrap else q)

    drawn = []

    def guide():
        drawn.append((posterior(), None))
        drawn[-1] = (drawn[-1][0], site(drawn[-1][0]))

    objective = Trace_ELBO()
    objective.differentiable_loss(lambda: site(target.expand((2,))), guide).backward()
    (q, z) = drawn[0]
    x = z.detach().requires_grad_()
    (slope,) = torch.autograd.grad(-target.log_prob(x).sum(), x)
    torch.testing.assert_close(control_var.grad, q.variance_gradient(x.detach(), slope))


@in_turn
@each_guide
@pytest.mark.parametrize("elbo", [Trace_ELBO(), TraceMeanField_ELBO()])
def test_draws_of_guides_can_be_vectorized(guide_class, elbo):
    """The law of the gradients is that of draws in turn: z-scores of means and variances."""
    guide = guide_class(normal_model)
    guide()
    names = [f"{type(guide).__name__}.{name}" for name in ("loc", "scale_tril")]
    found = [
        elbo_gradient_variance(
            elbo, normal_model, guide, num_draws=draws, names=names, vectorize=vectorized
        )
        for draws, vectorized in ((4000, True), (150, False))
    ]
    for name in names:
        one, other = (each[name] for each in found)
        for value in ("mean", "variance"):
            error = torch.hypot(getattr(one, value + "_error"), getattr(other, value + "_error"))
            difference = (getattr(one, value) - getattr(other, value)).abs()
            assert (difference <= 5 * error + 1e-6).all()


@each_guide
def test_trace_graph_elbo_agrees_with_trace_elbo(guide_class):
    """In the gradients of one step, by equal random numbers."""

    def step(objective):
        pyro.set_rng_seed(3)
        guide.zero_grad()
        objective.loss_and_grads(normal_model, guide)
        return {name: value.grad.clone() for name, value in guide.named_parameters()}

    guide = guide_class(normal_model)
    guide()
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    expected = step(Trace_ELBO())
    for name, value in step(TraceGraph_ELBO()).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)
