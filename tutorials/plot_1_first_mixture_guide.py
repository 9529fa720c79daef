"""
A first mixture guide
=====================

Variational inference with a single Normal finds one mode of a posterior and does not notice the
others. This page fits a posterior with two modes, small enough to be drawn, by a Normal and by
mixtures. The change is one line.
"""

import math

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.infer.autoguide import AutoDiagonalNormal

from pyro_mixtures.infer import AutoDiagonalNormalMixture, BaselinedTrace_ELBO
from pyro_mixtures.plotting import plot_elbo

# %%
# A ship and two beacons
# ----------------------
#
# A ship measures its distance from two beacons. Two circles meet in two points, so the data leave
# open on which side of the line between the beacons the ship is. The prior makes the upper side
# somewhat more likely.

BEACONS = torch.tensor([[-0.7, 0.0], [0.7, 0.0]])
MEASURED = torch.tensor([2.1, 1.95])


def model():
    prior = dist.Normal(torch.tensor([0.0, 0.3]), torch.tensor([2.0, 2.0]))
    ship = pyro.sample("ship", prior.to_event(1))
    distances = (ship.unsqueeze(-2) - BEACONS).norm(dim=-1)
    pyro.sample("measured", dist.Normal(distances, 0.3).to_event(1), obs=MEASURED)


# %%
# The truth
# ---------
#
# In two dimensions the posterior can be computed on a grid. Its integral is the evidence, log
# p(y). No ELBO can be larger, and the difference is the Kullback-Leibler divergence from the
# guide to the posterior. So we can say how good each fit is, in absolute terms.


def log_joint(ship):
    """Log density of the model at places of the ship, ``(*X, 2) -> (*X,)``."""
    trace = poutine.trace(poutine.condition(model, {"ship": ship})).get_trace()
    trace.compute_log_prob()
    return trace.nodes["ship"]["log_prob"] + trace.nodes["measured"]["log_prob"]


x, y = torch.linspace(-2.8, 2.8, 201), torch.linspace(-3.2, 3.2, 241)
grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)  # (241, 201, 2)
log_density = log_joint(grid)
cell = (x[1] - x[0]) * (y[1] - y[0])
log_evidence = log_density.logsumexp((0, 1)).item() + math.log(cell)
truth = (log_density - log_evidence).exp()  # the posterior density
upper_side = (truth * cell)[grid[..., 1] > 0].sum().item()
print(f"log p(y) = {log_evidence:.3f}, P(upper side) = {upper_side:.2f}")

# %%
# Three guides
# ------------
#
# Everything below is ordinary Pyro. ``AutoDiagonalNormalMixture`` takes the place of
# ``AutoDiagonalNormal``, with one more argument, the number of components. Each component
# starts from a draw of ``init_loc_fn``. By default the first starts where Pyro's guide does, and
# the others are spread about zero.
#
# ``BaselinedTrace_ELBO`` is a drop-in for ``Trace_ELBO`` that makes the gradient of the
# mixture's weights less noisy. (For a single Normal the two are the same.)


def fit(guide, steps=2000):
    pyro.clear_param_store()
    elbo = BaselinedTrace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=0)
    optimizer = pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.1 ** (1 / steps)})  # to a tenth
    svi = SVI(model, guide, optimizer, elbo)
    return [-svi.step() for _ in range(steps)]


pyro.set_rng_seed(0)
guides = {
    "mean field": AutoDiagonalNormal(model),
    "mixture, K = 2": AutoDiagonalNormalMixture(model, num_components=2),
    "mixture, K = 10": AutoDiagonalNormalMixture(model, num_components=10),
}
histories = {name: fit(guide) for name, guide in guides.items()}

# %%
# What each of them finds
# -----------------------
#
# Grey: the posterior. Lines: contours of each guide's density at the same levels. (The README has
# this figure.)

levels = truth.max() * torch.tensor([0.02, 0.1, 0.3, 0.6, 1.0])
figure, axes = plt.subplots(1, 3, figsize=(10, 4.6), sharey=True, layout="constrained")
for ax, (name, guide) in zip(axes, guides.items(), strict=True):
    with torch.no_grad():
        density = guide.get_posterior().log_prob(grid).exp()
    ax.contourf(x, y, truth, levels=levels, colors=["0.88", "0.75", "0.6", "0.45"])
    ax.contour(x, y, density, levels=levels[:-1], colors="C0", linewidths=1.3)
    ax.plot(*BEACONS.T, "k^", label="beacon")
    ax.set(title=name, xlabel="east", aspect="equal")
axes[0].set_ylabel("north")
axes[0].legend(loc="lower right")
plt.show()

# %%
# Mean field minimizes the reverse KL divergence: it stays in one mode, and nothing in the fit
# shows that there is another. Two components take a mode each. Ten follow the crescents.
#
# The ELBO says the same in numbers. ``guide.get_posterior()`` is an ordinary distribution, so
# the probability of the upper side takes a line of code.

elbos, sides = {}, {}
with torch.no_grad():
    for name, guide in guides.items():
        q = guide.get_posterior()
        z = q.sample((100_000,))
        elbos[name] = (log_joint(z) - q.log_prob(z)).mean().item()
        sides[name] = (z[:, 1] > 0).double().mean().item()
        gap = log_evidence - elbos[name]
        print(f"{name:16} ELBO {elbos[name]:.3f}  gap {gap:.3f}  P(upper side) {sides[name]:.2f}")

# %%
# A guide that misses a mode of probability :math:`1 - p`, and is perfect otherwise, has a gap of
# :math:`-\log p`. That is most of mean field's gap.

print(f"gap by the missing mode alone: {-math.log(max(upper_side, 1 - upper_side)):.3f}")

# %%
# How it got there
# ----------------
#
# The same number of steps for all three; running medians over the noisy values of each step.

figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
plot_elbo(histories, ax=ax)
ax.axhline(log_evidence, color="k", ls=":", label="log p(y)")
ax.set_ylim(log_evidence - 1.5, log_evidence + 0.5)
ax.legend(loc="lower right")
plt.show()

# %%
# What to remember
# ----------------
#
# - Give the guide more components than you expect modes. Those that are left over share a mode
#   and improve its shape.
# - A mode in which no component starts may never be found: ``init_loc_fn`` should spread them.
#   :doc:`plot_7_diagnosing_a_fit` shows how to notice that.
# - For correlated modes there is ``AutoMultivariateNormalMixture``, with full covariances.
