"""
An amortized guide for a state-space model
==========================================

A guide may also be a network that maps data to a posterior. Then each call makes a new mixture,
for each sequence of a mini-batch and each step in time, and all of it is learned at once, by
ordinary stochastic variational inference. Here is such a guide, with one and with two Normals a
step, for a model whose states are known up to a sign.

It is a small version of the example of section 6.2.3 of Jankowiak and Karaletsos, *Pathwise
Derivatives for Multivariate Distributions*; the full one is on the page of the :doc:`experiment
</experiments/state_space>`.
"""

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_mixtures import MixtureOfDiagNormals
from pyro_mixtures.infer import BaselinedTrace_ELBO
from pyro_mixtures.nn import ConditionalMixture
from pyro_mixtures.plotting import plot_elbo

# %%
# The model
# ---------
#
# .. math::
#     z_1 \sim N(0, \sigma_z^2), \quad z_t \sim N(A z_{t-1}, \sigma_z^2), \quad
#     x_t \sim N((z_{t1}^2, 2 z_{t2}), \sigma_x^2)
#
# The first coordinate is observed as its square, so its sign is hidden. The dynamics mix the two
# coordinates, so earlier and later observations give only hints on the sign.

STEPS = 8
TRANSITION = 0.5**1.5 * torch.tensor([[-1.0, 1.0], [1.0, 1.0]])
STATE_SCALE, OBSERVATION_SCALE = 0.5, 0.25


def transition(previous):
    return dist.Normal(previous @ TRANSITION.mT, STATE_SCALE).to_event(1)


def emission(z):
    mean = torch.stack([z[..., 0].square(), 2 * z[..., 1]], -1)
    return dist.Normal(mean, OBSERVATION_SCALE).to_event(1)


def model(x):
    """States and observations of a batch of sequences ``(N, T, 2)``."""
    with pyro.plate("sequences", len(x)):
        z = torch.zeros(2)
        for t in range(STEPS):
            z = pyro.sample(f"z_{t}", transition(z))
            pyro.sample(f"x_{t}", emission(z), obs=x[:, t])


def simulate(count):
    states = [STATE_SCALE * torch.randn(count, 2)]
    while len(states) < STEPS:
        states.append(transition(states[-1]).sample())
    return emission(torch.stack(states, 1)).sample()


pyro.set_rng_seed(0)
train, test = simulate(600), simulate(200)

# %%
# The guide
# ---------
#
# Its factors have the form of the exact posterior's, :math:`q(z_1 | x_{1:T}) \, q(z_2 | z_1,
# x_{2:T}) \cdots`: the last state matters, and the observations still to come. So a recurrent
# network reads the observations backwards. Its state at time t is combined with the last z, and
# ``ConditionalMixture`` makes a mixture of that. The components start on both sides of zero, a
# single one on one side.
#
# Each of the states is a plain ``pyro.sample`` of a batch of mixtures. Depending on the data the
# modes are close or far apart; ``"clustered"`` decides that for each mixture of the batch.


class Guide(nn.Module):
    def __init__(self, num_components, size=32):
        super().__init__()
        self.backwards = nn.GRU(2, size, batch_first=True)
        self.from_state = nn.Linear(2, size)
        locs = torch.zeros(num_components, 2)
        locs[:, 0] = torch.linspace(0.5, -0.5, num_components)
        start = MixtureOfDiagNormals(locs, torch.full_like(locs, 0.3), torch.zeros(num_components))
        self.mixture = ConditionalMixture(size, 2, num_components, hidden=(size,)).start_at(start)

    def forward(self, x):
        futures, _ = self.backwards(x.flip(1))
        with pyro.plate("sequences", len(x)):
            z = torch.zeros(2)
            for t in range(STEPS):
                combined = (self.from_state(z).tanh() + futures[:, STEPS - 1 - t]) / 2
                z = pyro.sample(f"z_{t}", self.mixture(combined))


# %%
# Training
# --------
#
# ``SVI`` as usual, with mini-batches. Two particles are enough for ``BaselinedTrace_ELBO`` to
# take each one's baseline from the other.

SETTINGS = {"vectorize_particles": True, "max_plate_nesting": 1}


def fit(num_components, steps=700, size=100):
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    network = Guide(num_components)

    def guide(x):
        pyro.module("guide", network)
        network(x)

    elbo = BaselinedTrace_ELBO(num_particles=2, **SETTINGS)
    optimizer = pyro.optim.ClippedAdam({"lr": 0.01, "lrd": 0.1 ** (1 / steps)})
    svi = SVI(model, guide, optimizer, elbo)
    history = []
    for _ in range(steps):
        batch = train[torch.randint(len(train), (size,))]
        history.append(-svi.step(batch) / size)
    with torch.no_grad():
        held_out = -Trace_ELBO(num_particles=50, **SETTINGS).loss(model, guide, test) / len(test)
    return network, history, held_out


networks, histories, elbos = {}, {}, {}
for count in (1, 2):
    name = f"K = {count}"
    networks[name], histories[name], elbos[name] = fit(count)
    print(f"{name}: ELBO of a held-out sequence {elbos[name]:.3f}")

figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
plot_elbo(histories, ax=ax)
ax.set_ylim(min(elbos.values()) - 6, max(elbos.values()) + 1)
ax.set_ylabel("ELBO of a sequence")
plt.show()

# %%
# A reference: a particle smoother
# --------------------------------
#
# A particle filter goes forward in time, a simulation with its weights goes backward. They give
# draws of the posterior, without any guide.


@torch.no_grad()
def smooth(x, particles=2000, draws=500):
    """Draws of the states ``(draws, T, 2)`` given one sequence ``(T, 2)``."""
    z, filtered = STATE_SCALE * torch.randn(particles, 2), []
    for t in range(STEPS):
        log_weights = emission(z).log_prob(x[t])
        filtered.append((z, log_weights))
        z = transition(z[torch.multinomial(log_weights.softmax(0), particles, True)]).sample()
    z, log_weights = filtered.pop()
    path = [z[torch.multinomial(log_weights.softmax(0), draws, True)]]
    while filtered:
        z, log_weights = filtered.pop()
        log_weights = log_weights + transition(z).log_prob(path[0].unsqueeze(1))  # (draws, P)
        path.insert(0, z[torch.multinomial(log_weights.softmax(-1), 1).squeeze(-1)])
    return torch.stack(path, 1)


# %%
# Among some held-out sequences, the sequence and the time at which the sign is most uncertain and
# matters most:

smoothed = torch.stack([smooth(x) for x in test[:20]])  # (N, draws, T, 2)
positive = (smoothed[..., 0] > 0).double().mean(1)
doubt = torch.minimum(positive, 1 - positive) * smoothed[..., 0].abs().mean(1)
sequence, time = divmod(doubt.argmax().item(), STEPS)
shown = range(STEPS)[max(0, min(time - 1, STEPS - 3)) :][:3]

figure, axes = plt.subplots(
    2, 3, figsize=(9.5, 6.2), sharex=True, sharey=True, layout="constrained"
)
masses = {}
for row, (name, network) in zip(axes, networks.items(), strict=True):
    with torch.no_grad():
        trace = poutine.trace(network).get_trace(test[sequence].expand(500, -1, -1))
    for ax, t in zip(row, shown, strict=True):
        ax.plot(*smoothed[sequence, :, t].T, "o", color="0.8", ms=5, label="smoother")
        ax.plot(*trace.nodes[f"z_{t}"]["value"].T, "C0.", ms=2, label="guide")
        ax.set_title(f"{name}, time {t + 1}")
    masses[name] = (trace.nodes[f"z_{time}"]["value"][:, 0] > 0).double().mean().item()
for ax in axes[1]:
    ax.set_xlabel("first coordinate")
for ax in axes[:, 0]:
    ax.set_ylabel("second coordinate")
axes[0, 0].legend()
plt.show()

print(f"P(first coordinate > 0) at time {time + 1}: smoother {positive[sequence, time]:.2f},")
print(", ".join(f"guide with {name}: {mass:.2f}" for name, mass in masses.items()))

# %%
# One Normal a step has to choose a sign at each step, or to spread over both. Two can leave it
# open, and later steps follow either branch, because the mixture of a step depends on the state
# before it. So the guide draws not only two modes, but whole paths.
