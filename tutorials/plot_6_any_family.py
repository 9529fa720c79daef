"""
Mixtures of any family
======================

Latent numbers are often positive or bounded. A Normal then needs a transformation, which has
tails and corners of its own. A mixture of Betas or Gammas lives where the latent lives, and its
samples carry gradients as well: to the parameters of the components and to the weights. The
components may be of different families, and of families that torch does not have.
"""

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from torch.distributions import Categorical, Distribution, constraints
from torch.nn.functional import logsigmoid

from pyro_mixtures import Mixture, MixtureSameFamily, register_velocity
from pyro_mixtures.infer import BaselinedTrace_ELBO

# %%
# A bounded latent: Betas
# -----------------------
#
# A coin is tossed twice, and we only learn whether the two tosses agree. Of forty such pairs 27
# agreed. How biased is the coin? The data leave open which side it favours.


def coin():
    p = pyro.sample("p", dist.Beta(2.0, 1.5))
    agree = p.square() + (1 - p).square()
    pyro.sample("agreed", dist.Binomial(40, agree), obs=torch.tensor(27.0))


# %%
# The guide is written by hand: parameters, and the distribution at the sample. Note two things.
# ``MixtureSameFamily`` is that of torch, with ``rsample``. And ``weight_gradient="clustered"``
# uses the score function for components that do not overlap, which needs an objective that
# supports it: ``Trace_ELBO``, or ``BaselinedTrace_ELBO``.


def betas():
    logits = pyro.param("logits", torch.zeros(2))
    a = pyro.param("a", torch.tensor([3.0, 5.0]), constraint=constraints.positive)
    b = pyro.param("b", torch.tensor([5.0, 3.0]), constraint=constraints.positive)
    return MixtureSameFamily(
        Categorical(logits=logits), dist.Beta(a, b), weight_gradient="clustered"
    )


def fit(model, site, mixture, steps=800):
    """Fit a mixture to one latent site; returns it and its ELBO."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)

    def guide():
        pyro.sample(site, mixture())

    elbo = BaselinedTrace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=0)
    optimizer = pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.1 ** (1 / steps)})
    svi = pyro.infer.SVI(model, guide, optimizer, elbo)
    for _ in range(steps):
        svi.step()
    with torch.no_grad():
        q = mixture()
        z = q.sample((50_000,))
        return q, (log_joint(model, site, z) - q.log_prob(z)).mean().item()


def log_joint(model, site, values):
    trace = pyro.poutine.trace(pyro.poutine.condition(model, {site: values})).get_trace()
    trace.compute_log_prob()
    return sum(node["log_prob"] for node in trace.nodes.values() if node["type"] == "sample")


def evidence(model, site, grid):
    """Logarithm of the evidence and the posterior density on a grid."""
    log_p = log_joint(model, site, grid)
    log_evidence = (log_p.logsumexp(0) + (grid[1] - grid[0]).log()).item()
    return log_evidence, (log_p - log_evidence).exp()


coin_q, coin_elbo = fit(coin, "p", betas)
unit = torch.linspace(0.0005, 0.9995, 1000)
coin_evidence, coin_posterior = evidence(coin, "p", unit)
print(f"log evidence {coin_evidence:.3f}, ELBO of two Betas {coin_elbo:.3f}")

# %%
# A positive latent: different families
# -------------------------------------
#
# A substance is taken up and decays; what is left at time t is :math:`r t e^{-r t}` of a dose,
# with an unknown rate r. One measurement, at t = 1, may be early in the rise or late in the decay,
# so a slow and a fast rate are both possible. The two modes differ in width and in shape. So we
# take a Gamma for one and a LogNormal for the other: ``Mixture`` has a list of components, each
# with parameters of its own.


def decay():
    rate = pyro.sample("r", dist.LogNormal(0.0, 1.0))
    pyro.sample("left", dist.Normal(rate * (-rate).exp(), 0.03), obs=torch.tensor(0.2))


def gamma_and_lognormal():
    logits = pyro.param("logits", torch.zeros(2))
    mean = pyro.param("mean", torch.tensor(0.5), constraint=constraints.positive)
    shape = pyro.param("shape", torch.tensor(5.0), constraint=constraints.positive)
    loc = pyro.param("loc", torch.tensor(0.7))
    scale = pyro.param("scale", torch.tensor(0.3), constraint=constraints.positive)
    components = [dist.Gamma(shape, shape / mean), dist.LogNormal(loc, scale)]
    return Mixture(Categorical(logits=logits), components, weight_gradient="clustered")


decay_q, decay_elbo = fit(decay, "r", gamma_and_lognormal)
positive = torch.linspace(0.0025, 5, 2000)
decay_evidence, decay_posterior = evidence(decay, "r", positive)
print(f"log evidence {decay_evidence:.3f}, ELBO of Gamma and LogNormal {decay_elbo:.3f}")

# %%
# A family of your own
# --------------------
#
# The log-logistic distribution is used for survival times, and is not in torch. It needs the
# ordinary methods, and a *rule that moves a given point* when a parameter changes. The rule
# finds the noise that belongs to the point, with parameters held fixed (``detach``), and maps it
# back with parameters that are not. The rule of every component is called for every sample, also
# for those that are far away. So it pays to write density and rule in logarithms.


class LogLogistic(Distribution):
    """A positive number whose logarithm is logistic: P(z < x) = 1 / (1 + (x / scale)^-shape)."""

    arg_constraints = {"scale": constraints.positive, "shape": constraints.positive}
    support = constraints.positive

    def __init__(self, scale, shape, validate_args=None):
        self.scale, self.shape = scale, shape
        super().__init__(scale.shape, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        return LogLogistic(self.scale.expand(batch_shape), self.shape.expand(batch_shape))

    def sample(self, sample_shape=torch.Size()):
        noise = torch.rand(self._extended_shape(sample_shape)).logit(1e-6)
        return self.scale * (noise / self.shape).exp()

    def log_prob(self, value):
        noise = self.shape * (value / self.scale).log()
        return (self.shape / value).log() + logsigmoid(noise) + logsigmoid(-noise)

    def cdf(self, value):
        return (self.shape * (value / self.scale).log()).sigmoid()


@register_velocity(LogLogistic)
def _(distribution, value):
    scale, shape = distribution.scale, distribution.shape
    noise = shape.detach() * (value / scale.detach()).log()
    return scale * (noise / shape).exp()


# %%
# The check, in one dimension: the density times the velocity is minus the derivative of the
# distribution function.

points = torch.linspace(0.05, 5, 50, dtype=torch.float64)
scale = torch.full((50,), 1.2, dtype=torch.float64, requires_grad=True)
shape = torch.full((50,), 2.5, dtype=torch.float64, requires_grad=True)
single = MixtureSameFamily(
    Categorical(logits=torch.zeros(50, 1)), LogLogistic(scale.unsqueeze(-1), shape.unsqueeze(-1))
)
velocities = torch.autograd.grad(single.reparameterize(points).sum(), (scale, shape))
component = LogLogistic(scale, shape)
changes = torch.autograd.grad(component.cdf(points).sum(), (scale, shape))
density = component.log_prob(points).exp()
error = max(
    (density * velocity + change).abs().max().item()
    for velocity, change in zip(velocities, changes, strict=True)
)
print(f"largest error of the rule: {error:.1e}")

# %%
# It now works in mixtures like any other family. The two components will be far apart, so the
# weights are left to the score function. (For a transport the mixture uses ``cdf``, and
# ``"clustered"`` would need ``mean`` and ``variance``, too: :doc:`/add_your_own_family`.)


def log_logistics():
    logits = pyro.param("logits", torch.zeros(2))
    scale = pyro.param("scale", torch.tensor([0.5, 2.0]), constraint=constraints.positive)
    shape = pyro.param("shape", torch.tensor([3.0, 3.0]), constraint=constraints.positive)
    components = LogLogistic(scale, shape)
    return MixtureSameFamily(Categorical(logits=logits), components, weight_gradient="hybrid")


logistic_q, logistic_elbo = fit(decay, "r", log_logistics)
print(f"log evidence {decay_evidence:.3f}, ELBO of two log-logistics {logistic_elbo:.3f}")

# %%
# The fits
# --------

figure, axes = plt.subplots(1, 3, figsize=(11, 3.8), layout="constrained")
panels = (
    ("two Betas", "p", unit, coin_posterior, coin_q),
    ("Gamma and LogNormal", "r", positive, decay_posterior, decay_q),
    ("two log-logistics", "r", positive, decay_posterior, logistic_q),
)
for ax, (title, label, grid, posterior, q) in zip(axes, panels, strict=True):
    with torch.no_grad():
        parts = (q.log_weights + q.component_log_prob(grid)).exp()  # (N, K)
    ax.fill_between(grid, posterior, color="0.8", label="posterior")
    ax.plot(grid, parts.sum(-1), "C0", label="guide")
    ax.plot(grid, parts, "C1", ls="--")
    ax.set(title=title, xlabel=label, xlim=(0, grid[-1].item()), ylim=(0, None))
axes[0].set_ylabel("density")
axes[0].plot([], [], "C1", ls="--", label="its components")
axes[0].legend()
plt.show()

# %%
# All three find the modes and their weights. What is left is the shape of the components. The
# Betas are too symmetric for modes that lean outwards, and leave the valley between them too
# empty. A log-logistic is more pointed than these modes, and its tails are heavier. If more steps
# do not close a gap between ELBO and evidence, try another family, or more components.
