"""What errors advise, followed to the letter, works."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch.distributions import (
    AbsTransform,
    AffineTransform,
    Dirichlet,
    ExpTransform,
    Gamma,
    Independent,
    LogNormal,
    MultivariateNormal,
    Normal,
    StickBreakingTransform,
    TransformedDistribution,
    Uniform,
)

from pyro_mixtures import MixtureOfNormals, register_velocity
from pyro_mixtures.estimators import expectation
from pyro_mixtures.families import Tails, register_tails
from tests.families.refusing import EYE, ONE, TWO, mixed, same, transformed

NORMAL = Normal(torch.tensor(0.3, requires_grad=True), 1.0)


@pytest.mark.parametrize(
    "build",
    [
        lambda: mixed(transformed(NORMAL, ExpTransform()), Gamma(1.0, 1.0)),
        lambda: mixed(LogNormal(0.0, 1.0), Gamma(1.0, 1.0)),
        lambda: same(
            transformed(
                Uniform(0 * TWO, ONE), AffineTransform(0.5 * ONE, torch.tensor([2.0, 2.0]))
            )
        ),
        lambda: mixed(
            Dirichlet(torch.ones(4)),
            transformed(MultivariateNormal(torch.zeros(3), EYE), StickBreakingTransform()),
            weight_gradient="hybrid",
        ),
        lambda: mixed(
            MultivariateNormal(torch.zeros(3), EYE),
            Independent(Normal(torch.zeros(3), 1.0), 1),
            weight_gradient="hybrid",
        ),
    ],
    ids=["transform", "family", "interval", "simplex", "score"],
)
def test_one_support(build):
    q = build()
    z = q.rsample((5,))
    assert q.log_prob(z.detach()).isfinite().all()


class Folded(TransformedDistribution):
    """The absolute value of a Normal variable about zero, with a density of its own."""

    def __init__(self, scale):
        self.scale = scale
        super().__init__(Normal(torch.zeros_like(scale), scale), [AbsTransform()])

    def log_prob(self, value):
        return self.base_dist.log_prob(value) + torch.tensor(2.0).log()


def test_a_class_of_its_own():
    """For transforms that are not invertible."""
    scale = torch.tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(NotImplementedError, match=r"log_prob.*register_velocity.*register_tails"):
        same(transformed(Normal(ONE, scale), AbsTransform()))
    register_velocity(Folded)(lambda d, value: value * d.scale / d.scale.detach())
    register_tails(Folded)(
        lambda d, value: Tails((value / d.scale / 2**0.5).erf(), (value / d.scale / 2**0.5).erfc())
    )
    z = same(Folded(scale)).rsample((1000,))
    assert (z > 0).all()
    z.mean().backward()
    assert (scale.grad > 0).all()


def discrete_model(logits, values):
    x = pyro.sample("x", dist.Categorical(torch.tensor([0.7, 0.3])))
    pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(0.7))


def mixture_guide(logits, values):
    components = dist.Bernoulli(logits=values)
    pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(logits=logits), components))


def summed_guide(logits, values):
    probs = (logits.softmax(-1) * values.sigmoid()).sum(-1)
    category = dist.Categorical(torch.stack([1 - probs, probs]))
    pyro.sample("x", category, infer={"enumerate": "parallel"})


@pytest.mark.parametrize("way", ["score", "sum"])
def test_discrete_components(way):
    logits = torch.tensor([0.4, -0.3], requires_grad=True)
    values = torch.tensor([0.5, -1.5], requires_grad=True)
    elbo, guide = Trace_ELBO(num_particles=5), mixture_guide
    if way == "sum":
        elbo, guide = TraceEnum_ELBO(max_plate_nesting=0), summed_guide
    elbo.differentiable_loss(discrete_model, guide, logits, values).backward()
    assert (logits.grad.abs() > 1e-6).all()
    assert (values.grad.abs() > 1e-6).all()


def square(z):
    return z.reshape(len(z), -1).square().sum(-1)


@pytest.mark.parametrize(
    ("build", "refused"),
    [
        (lambda x: same(Gamma(x, 1.0)), "implicit"),
        (lambda x: same(Normal(x, 1.0)), "gumbel_soft"),
        (lambda x: mixed(Gamma(x[0], 1.0), LogNormal(x[1], 1.0)), "gumbel_soft"),
        (
            lambda x: MixtureOfNormals(x.unsqueeze(-1) * ONE, EYE[:2, :2].expand(2, 2, 2), 0 * x),
            "graves",
        ),
    ],
    ids=["one_family", "normals", "families", "full_covariances"],
)
def test_other_estimators(build, refused):
    """Each of those that the refusal names."""
    with pytest.raises(NotImplementedError) as caught:
        expectation(build(TWO), square, estimator=refused, num_samples=4)
    names = str(caught.value).split("; use ")[1].split("'")[1::2]
    assert len(names) >= 3
    for name in names:
        x = TWO.clone().requires_grad_()
        expectation(build(x), square, estimator=name, num_samples=4).sum().backward()
        assert x.grad.isfinite().all(), name
