"""Small models of every kind, with the way in which their batches are evaluated."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.reparam import LocScaleReparam
from pyro.nn import PyroModule, PyroParam, PyroSample
from pyro.ops.indexing import Vindex
from torch import nn

from pyro_mixtures.distributions import MixtureOfDiagNormals

SCHOOLS = (
    torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
    torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
)
X = torch.linspace(-1.0, 1.0, 12).reshape(6, 2)
Y = torch.tensor([0.3, -1.2, 0.4, 2.0, 0.1, -0.3])


def eight_schools(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def nested_plates():
    with pyro.plate("a", 3, dim=-1), pyro.plate("b", 2, dim=-2):
        x = pyro.sample("x", dist.Gamma(2.0, 1.0))
        w = pyro.sample("w", dist.Dirichlet(torch.ones(4)))
        pyro.sample("y", dist.Normal(x + w[..., 0], 1.0), obs=torch.ones(2, 3))


def automatic_plates():
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("a", 3):
        x = pyro.sample("x", dist.Normal(0.0, scale))
    with pyro.plate("b", 2):
        with pyro.plate("c", 3):
            pyro.sample("z", dist.StudentT(3.0, x.unsqueeze(-1), 1.0))


def sequential_plate():
    total = 0.0
    for i in pyro.plate("a", 3):
        total = total + pyro.sample(f"x{i}", dist.Normal(0.0, 1.0 + i))
    pyro.sample("y", dist.Normal(total, 1.0), obs=torch.tensor(2.0))


def dependent_supports():
    upper = pyro.sample("upper", dist.LogNormal(0.0, 1.0))
    middle = pyro.sample("middle", dist.Uniform(0.0, upper))
    with pyro.plate("a", 3):
        pyro.sample("x", dist.Uniform(-middle, upper))


def event_dims():
    chol = pyro.sample("chol", dist.LKJCholesky(3, 1.5))
    order = pyro.sample(
        "order",
        dist.TransformedDistribution(
            dist.Normal(torch.zeros(3), 1.0).to_event(1), dist.transforms.OrderedTransform()
        ),
    )
    with pyro.plate("data", 4):
        mean = chol @ order.unsqueeze(-1)
        loc = mean.squeeze(-1).unsqueeze(-2)
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1))


def scaled_and_masked(mask):
    with poutine.scale(scale=0.3):
        a = pyro.sample("a", dist.Normal(1.0, 2.0))
    with pyro.plate("data", 4), poutine.mask(mask=mask):
        b = pyro.sample("b", dist.Exponential(1.0))
        pyro.sample("y", dist.Normal(a + b, 1.0), obs=torch.arange(4.0))
    pyro.deterministic("c", a * 2)
    pyro.factor("penalty", -(a**4))


def regression(x, *, y):
    """A product of matrices that only one vector fits into."""
    beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ beta, 0.5), obs=y)


def mixes_the_batch():
    x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pyro.factor("penalty", -(x**2).sum() - torch.logsumexp(x.flatten(), 0))


def normalizes_over_the_batch():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("penalty", (x - torch.as_tensor(x).mean()).square())


def normalizes_a_little():
    """To see only where nothing else changes: single points have the same to six digits."""
    x = pyro.sample("x", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
    pyro.factor("penalty", 1e8 + (x - x.detach().mean() + x.detach().mean(-1)).mean(-1))


FIXED = poutine.trace(lambda: pyro.sample("mu", dist.Delta(torch.tensor(1.0)))).get_trace()


def replayed(y, sigma):
    with poutine.replay(trace=FIXED):
        eight_schools(y, sigma)


def branches():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    if x > 0.1:
        pyro.factor("penalty", -(x**2))


def mixture_of_two(y):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Categorical(weights))
        pyro.sample("y", dist.Normal(Vindex(locs)[..., k], 1.0), obs=y)


def global_switch(y):
    on = pyro.sample("on", dist.Bernoulli(0.3))
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x + 2 * on, 1.0), obs=y)


def mixture_in_a_plate(y):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Categorical(weights))
        pyro.sample("y", dist.Normal(Vindex(locs)[..., k], 1.0), obs=y)


def switches_in_plates():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    a = pyro.sample("a", dist.Bernoulli(0.4))
    with pyro.plate("columns", 3, dim=-1):
        b = pyro.sample("b", dist.Bernoulli(0.2 + 0.5 * a))
        with pyro.plate("rows", 2, dim=-2):
            c = pyro.sample("c", dist.Bernoulli(0.1 + 0.5 * b))
            y = torch.arange(6.0).reshape(2, 3) / 3
            pyro.sample("y", dist.Normal(x + a + b * c, 0.5), obs=y)


def improper():
    x = pyro.sample("x", dist.ImproperUniform(constraints.positive, (), (2,)))
    pyro.sample("y", dist.Normal(x.log(), 1.0).to_event(1), obs=torch.zeros(2))


def with_parameter():
    scale = pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
    pyro.sample("x", dist.Normal(0.0, scale))


class Network(PyroModule):
    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](2, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 1.0).expand([1]).to_event(1))

    def forward(self, x, y):
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


class Parameters(PyroModule):
    """Parameters of the module's own, one of them with a constraint."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.5))
        self.scale = PyroParam(torch.tensor(2.0), constraint=constraints.positive)

    def forward(self):
        pyro.sample("x", dist.Normal(self.loc, self.scale))


def hidden_markov(y):
    with pyro.plate("states", 2):
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0))
        rows = pyro.sample("rows", dist.Dirichlet(torch.ones(2)))
    state = 0
    for i in pyro.markov(range(len(y))):
        state = pyro.sample(f"state{i}", dist.Categorical(Vindex(rows)[..., state, :]))
        pyro.sample(f"y{i}", dist.Normal(Vindex(locs)[..., state], 1.0), obs=y[i])


def partly_observed(y):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(loc, 1.0), obs=y, obs_mask=torch.arange(len(y)) > 1)


@poutine.reparam(config={"theta": LocScaleReparam(0.0)})
def reparameterized(y, sigma):
    eight_schools(y, sigma)


@poutine.condition(data={"mu": torch.tensor(1.0)})
def conditioned(y, sigma):
    eight_schools(y, sigma)


def gaussian_process(t, y):
    """Its covariance has no Cholesky factor for large scales."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))[..., None, None]
    covariance = torch.exp(-((t[:, None] - t) ** 2) / scale)
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(t)), covariance), obs=y)


def pareto(y):
    """Data may lie outside of the support, and parameters be wrong."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Pareto(x + 2.0, 3.0), obs=y)


def mixed_precision():
    x = pyro.sample("x", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
    y = pyro.sample("y", dist.LogNormal(0.0, 1.0))
    pyro.factor("penalty", -y * x.square().sum(-1))


def mixture_prior():
    locs = torch.tensor([[-2.0, 0.0], [2.0, 1.0]])
    pyro.sample("x", MixtureOfDiagNormals(locs, torch.ones(2, 2), torch.zeros(2)))


def constant():
    pyro.sample("x", dist.Uniform(0.0, 1.0))
    pyro.factor("penalty", torch.tensor(-3.0))


MODELS = {
    "eight schools": (eight_schools, SCHOOLS, {}, "plate"),
    "nested plates": (nested_plates, (), {}, "plate"),
    "automatic plates": (automatic_plates, (), {}, "vmap"),
    "sequential plate": (sequential_plate, (), {}, "plate"),
    "dependent supports": (dependent_supports, (), {}, "plate"),
    "event dimensions": (event_dims, (), {}, "vmap"),
    "scaled and masked": (scaled_and_masked, (torch.arange(4) > 1,), {}, "plate"),
    "regression": (regression, (X,), {"y": Y}, "vmap"),
    "mixes": (mixes_the_batch, (), {}, "vmap"),
    "normalizes": (normalizes_over_the_batch, (), {}, "vmap"),
    "normalizes a little": (normalizes_a_little, (), {}, "vmap"),
    "replayed": (replayed, SCHOOLS, {}, "plate"),
    "branches": (branches, (), {}, "loop"),
    "mixture of two": (mixture_of_two, (Y,), {}, "vmap"),
    "switch": (global_switch, (Y,), {}, "plate"),
    "mixture in a plate": (mixture_in_a_plate, (Y,), {}, "plate"),
    "switches in plates": (switches_in_plates, (), {}, "plate"),
    "improper": (improper, (), {}, "plate"),
    "parameter": (with_parameter, (), {}, "plate"),
    "network": (Network(), (X, Y), {}, "vmap"),
    "module": (Parameters(), (), {}, "plate"),
    "hidden Markov": (hidden_markov, (Y,), {}, "vmap"),
    "partly observed": (partly_observed, (Y,), {}, "plate"),
    "reparameterized": (reparameterized, SCHOOLS, {}, "plate"),
    "conditioned": (conditioned, SCHOOLS, {}, "plate"),
    "Gaussian process": (gaussian_process, (X[:, 0].double(), Y.double()), {}, "plate"),
    "Pareto": (pareto, (torch.full((3,), 3.0),), {}, "plate"),
    "mixed precision": (mixed_precision, (), {}, "plate"),
    "mixture prior": (mixture_prior, (), {}, "plate"),
    "constant": (constant, (), {}, "plate"),
}
"""Model, arguments, keyword arguments, and the way that is found."""
