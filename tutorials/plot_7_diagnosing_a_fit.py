"""
Diagnosing a fit
================

An optimizer always returns something. This page starts from a fit that looks healthy and is not.
It shows which signs reveal that and which do not, and repairs the fit.
"""

import math

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import init_to_median, init_to_uniform

from pyro_mixtures.diagnostics import component_summary, elbo_gradient_variance, psis
from pyro_mixtures.infer import AutoDiagonalNormalMixture, BaselinedTrace_ELBO
from pyro_mixtures.plotting import plot_elbo, plot_mixture

# %%
# Two unknown signs
# -----------------
#
# We measure the sizes of two numbers, but not their signs: the posterior has four modes. The
# prior makes some of them more likely than others.

PRIOR = dist.Normal(torch.tensor([1.0, 0.8]), 2.0).to_event(1)
SIZES = torch.tensor([2.0, 1.5])


def model():
    x = pyro.sample("x", PRIOR)
    pyro.sample("sizes", dist.Normal(x.abs(), 0.4).to_event(1), obs=SIZES)


# %%
# In this example the evidence is known, from a grid. No ELBO can exceed it.

side = torch.linspace(-5, 5, 501)
grid = torch.cartesian_prod(side, side)  # (N, 2)
log_p = PRIOR.log_prob(grid) + dist.Normal(grid.abs(), 0.4).to_event(1).log_prob(SIZES)
log_evidence = log_p.logsumexp(0).item() + 2 * math.log(side[1] - side[0])
pyro.set_rng_seed(0)
index = torch.multinomial((log_p - log_evidence).exp(), 1500, replacement=True)
truth = grid[index]  # draws of the posterior
print(f"log evidence {log_evidence:.3f}")


# %%
# We look at each fit in the same ways: the ELBO; ``psis``, which compares draws of the guide
# with the model; and ``component_summary``, which shows what the components do.


class Fit:
    def __init__(self, num_components, init_loc_fn, seed=0, steps=600):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        self.guide = AutoDiagonalNormalMixture(model, num_components, init_loc_fn=init_loc_fn)
        elbo = BaselinedTrace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=0)
        optimizer = pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.1 ** (1 / steps)})
        svi = SVI(model, self.guide, optimizer, elbo)
        self.history = [-svi.step() for _ in range(steps)]
        self.posterior = self.guide.get_posterior()
        self.psis = psis(model, self.guide, num_samples=5000)
        self.summary = component_summary(self.posterior)
        self.elbo = sum(self.history[-100:]) / 100

    def __str__(self):
        return (
            f"ELBO {self.elbo:6.3f}  k-hat {self.psis.khat:5.2f}"
            f"  log evidence by psis {self.psis.log_evidence:6.3f}"
            f"  distinct components {self.summary.distinct_components:.2f}"
        )


# %%
# A fit that looks healthy
# ------------------------
#
# Four modes, so four components. They start at the median, as a single Normal would.

healthy = Fit(4, init_to_median)
print(healthy)

figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
plot_elbo(healthy.history, ax=axes[0])
axes[0].set_ylim(log_evidence - 4, log_evidence + 1)
plot_mixture(healthy.posterior, reference=truth, ax=axes[1])
axes[1].set(xlim=(-4.5, 4.5), ylim=(-4.5, 4.5), xlabel="x[0]", ylabel="x[1]")
plt.show()

# %%
# The ELBO has converged, and k-hat, the shape of the importance weights' tail, is low: below 0.5
# means a good guide, above 0.7 a useless one. And yet modes are missing, as draws of the posterior
# (grey) show. In a real problem there are no such draws.
#
# **k-hat cannot see a mode that no draw of the guide has reached.** It judges the guide where
# the guide is. So does the evidence by importance sampling, which is below the true one.
#
# The components are a hint. There are four; the number of *distinct* ones is smaller:

print(healthy.summary)

# %%
# Components with a large overlap cover the same place. They all started there, and reverse KL
# gives none of them a reason to leave for a mode far away. A posterior with a single mode would
# look the same, so this is no proof.

# %%
# Other starts
# ------------
#
# The next test takes a few more fits: start the components elsewhere, and more than once.
# ``init_to_uniform`` draws a starting point for each component; ``radius`` should cover the
# prior.

spread = init_to_uniform(radius=4)
others = [Fit(4, spread, seed) for seed in range(3)]
for other in others:
    print(other)

# %%
# Different starts end at different ELBOs, so most of them have missed something. (k-hat may be
# large in such a fit, if a component does not fit its mode, but it need not be.) With only as many
# components as modes, it takes luck for one to fall into each.

# %%
# More components than modes
# --------------------------
#
# With sixteen it takes bad luck to miss one. More components need more steps to settle: here
# twice as many.

mended = Fit(16, spread, steps=1200)
print(mended)

figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
histories = {"K = 4 at the median": healthy.history, "K = 16 spread": mended.history}
plot_elbo(histories, ax=axes[0])
axes[0].axhline(log_evidence, color="k", ls=":", label="log p(y)")
axes[0].set_ylim(log_evidence - 4, log_evidence + 1)
axes[0].legend(loc="lower right")
plot_mixture(mended.posterior, reference=truth, ax=axes[1])
axes[1].set(xlim=(-4.5, 4.5), ylim=(-4.5, 4.5), xlabel="x[0]", ylabel="x[1]")
plt.show()

# %%
# All modes are found, and the gap to the evidence is nearly closed. Most of the sixteen
# components overlap with others or have little weight. That is harmless: it costs time, and
# improves the shapes of the modes.

print(mended.summary)

# %%
# Is the gradient too noisy?
# --------------------------
#
# Modes far from each other are the worst case for a gradient that moves samples from mode to
# mode. A fit whose ELBO jumps, or whose weights wander, may be one with the wrong estimator.
# ``elbo_gradient_variance`` measures it at the fitted guide. (For ``"pathwise"`` the rare draws
# between the modes dominate, and there are few of them: its number is too small, if anything.)

logits = "AutoDiagonalNormalMixture.component_logits"
noise = {}
for weight_gradient, elbo in (("pathwise", Trace_ELBO()), ("clustered", BaselinedTrace_ELBO())):
    mended.guide.weight_gradient = weight_gradient
    measured = elbo_gradient_variance(elbo, model, mended.guide, names=[logits], num_draws=500)
    noise[weight_gradient] = measured[logits].variance.sum().item()
    print(f"{weight_gradient:10} {type(elbo).__name__:20} {noise[weight_gradient]:10.3g}")

# %%
# Here the guide's default, ``clustered``, is right; :doc:`plot_4_choosing_an_estimator` has the
# other cases.

# %%
# What is left: importance resampling
# -----------------------------------
#
# Once all modes are covered and k-hat is below its threshold, the weights can remove the rest of
# the error. ``resample`` draws from the guide's samples by their smoothed weights.

print(mended.psis)

better = mended.psis.resample(1500)["x"]
signs = {"++": (1, 1), "+-": (1, -1), "-+": (-1, 1), "--": (-1, -1)}


def shares(draws):
    return [(draws.sign() == torch.tensor(sign)).all(-1).float().mean() for sign in signs.values()]


print("shares of the modes   " + "".join(f"{name:>6}" for name in signs))
for name, draws in (
    ("K = 4 at the median", healthy.psis.samples["x"]),
    ("K = 16 spread", mended.psis.samples["x"]),
    ("resampled", better),
    ("posterior", truth),
):
    print(f"{name:22}" + "".join(f"{share:6.2f}" for share in shares(draws)))
print(f"effective sample size {mended.psis.effective_sample_size:.0f} of 5000")

# %%
# In short
# --------
#
# - Start the components apart, with more of them than you expect modes.
# - Fit more than once. If ELBOs differ by more than their noise, modes were missed; k-hat does
#   not show that.
# - ``component_summary``: few distinct components, all started in one place, are a warning.
#   Doubled and dead ones in a guide of many are not.
# - k-hat above 0.7: the shape is wrong where the guide is. More components, or
#   ``AutoMultivariateNormalMixture``.
# - A noisy ELBO: measure the gradient, and see :doc:`plot_4_choosing_an_estimator`.
