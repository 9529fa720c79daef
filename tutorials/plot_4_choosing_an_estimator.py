"""
Choosing an estimator
=====================

A sample of a mixture moves smoothly when a component moves. When a *weight* changes, it is not
obvious what the sample should do. There are several answers, each an estimator of the same
gradient, and they differ in their noise by orders of magnitude. Which is good depends on how far
the components are apart, on the dimension and on the cost. This page measures it.
"""

import math
from functools import partial

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import init_to_uniform

from pyro_mixtures import MixtureOfDiagNormals
from pyro_mixtures.diagnostics import elbo_gradient_variance, gradient_variance
from pyro_mixtures.estimators import (
    blended,
    expectation,
    gumbel_hard,
    gumbel_soft,
    marginalized,
)
from pyro_mixtures.infer import AutoDiagonalNormalMixture, BaselinedTrace_ELBO
from pyro_mixtures.plotting import plot_gradient_variance
from pyro_mixtures.samples.blending import Blending

# %%
# What is compared
# ----------------
#
# - ``hybrid``: the score function for the weights. It uses the cost's value only.
# - ``pathwise``: the sample moves with the density (transport). It uses the cost's slope.
# - ``clustered``: transport within groups of overlapping components, score function between
#   them.
# - ``blended``: the same, and within groups a mean of both in shares that are learned.
# - ``marginalized``: the sum over the components. It evaluates the cost K times, the others
#   once.
#
# All are unbiased. So their variance decides, and their price.
#
# The mixtures have ten components with random means. Their *separation* is the root mean square
# distance between two of them, in standard deviations.

COUNT = 10


def mixture(separation, dim):
    return {
        "locs": separation / math.sqrt(2 * dim) * torch.randn(COUNT, dim),
        "coord_scale": torch.ones(COUNT, dim),
        "component_logits": 0.5 * torch.randn(COUNT),
    }


def smooth(z):
    return z.square().sum(-1)


def ragged(z):
    return z.square().sum(-1) / 2 + (5 * z).sin().sum(-1)


# %%
# ``gradient_variance`` takes the estimator by name, or a function like ``marginalized`` itself.
# The score function gets a baseline, the mean cost; without it, it would look worse than
# necessary. ``blended`` first learns its shares from other samples.


def learned(q, cost):
    """``blended`` with shares from 2,000 samples."""
    blending = Blending()
    chosen = partial(blended, blending=blending)
    expectation(q, cost, estimator=chosen, num_samples=2000).backward()
    blending.learn()
    return partial(blended, blending=blending)


def logit_variances(parameters, cost, draws=2000):
    """Variance of the logits' gradient, summed over the components, by estimator."""
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    q = MixtureOfDiagNormals(**leaves)
    with torch.no_grad():
        baseline = cost(q.sample((2000,))).mean()
    estimators = {name: name for name in ("hybrid", "pathwise", "clustered")}
    estimators["marginalized"] = marginalized
    estimators["blended"] = learned(q, cost)
    variances = {}
    for name, estimator in estimators.items():
        measured = gradient_variance(
            MixtureOfDiagNormals,
            cost,
            parameters,
            num_draws=draws,
            estimator=estimator,
            baseline=baseline,
        )
        variances[name] = measured["component_logits"].variance.sum().item()
    return variances


def plot_ratios(ax, positions, rows):
    """Variances relative to that of the score function."""
    for color, name in enumerate(("pathwise", "clustered", "blended", "marginalized"), 1):
        ratios = [row[name] / row["hybrid"] for row in rows]
        style = ":" if name == "marginalized" else "-"
        ax.plot(positions, ratios, style, marker="o", ms=4, color=f"C{color}", label=name)
    ax.axhline(1, color="C0", label="hybrid (score function)")
    ax.set(yscale="log")


# %%
# The distance decides
# --------------------

pyro.set_rng_seed(0)
SEPARATIONS = (0.5, 1, 2, 3, 4, 6, 8)
by_separation = {
    cost.__name__: [logit_variances(mixture(separation, 10), cost) for separation in SEPARATIONS]
    for cost in (smooth, ragged)
}

figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
for ax, (name, rows) in zip(axes, by_separation.items(), strict=True):
    plot_ratios(ax, SEPARATIONS, rows)
    ax.set(title=f"{name} cost, D = 10", xlabel="separation")
axes[0].set_ylabel("variance relative to hybrid")
axes[0].legend()
plt.show()

# %%
# Where components overlap and the cost is smooth, a transport has a fraction of the score
# function's variance. Where they are far apart it has many times as much: to change a weight it
# has to carry mass across the gap, and the few samples in the gap get enormous weight. (Samples
# there are so rare that the measured variance is, if anything, too small.)
#
# A ragged cost has slopes that say little about its differences. Here a transport has no
# advantage.
#
# ``clustered`` avoids the disaster, because it does not carry mass between groups. Where
# components begin to separate (4 on the left) it gives up the transport too soon. ``blended``
# does not need to decide: it learned from the samples which of the two to trust.
#
# The dotted line is for one estimate, which took ten evaluations of the cost. For equal numbers
# of evaluations multiply it by ten.

# %%
# The dimension helps the transport
# ---------------------------------
#
# The more coordinates a cost sums over, the noisier is its value. The slope in each coordinate
# stays the same.

DIMS = (2, 5, 10, 30, 100)
by_dim = [logit_variances(mixture(2.0, dim), smooth) for dim in DIMS]

figure, ax = plt.subplots(figsize=(8, 4.2), layout="constrained")
plot_ratios(ax, DIMS, by_dim)
ax.set(xscale="log", xlabel="dimension", ylabel="variance relative to hybrid")
ax.set(title="smooth cost, separation 2", xticks=DIMS, xticklabels=DIMS)
ax.set_xticks([], minor=True)
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %%
# Relaxed choices are biased
# --------------------------
#
# The Gumbel-softmax trick draws *between* the components, by a relaxed choice of one; its
# straight-through version draws from one, but takes the gradient of the relaxed choice. Neither
# gives the gradient that we want: the first is the gradient of another expectation, the second in
# general of none. Here is the gradient of one logit for the ragged cost in one dimension, where
# the exact one is an integral. A low temperature reduces the bias, at the price of variance.

pair = {
    "locs": torch.tensor([[-1.5], [1.0]]),
    "coord_scale": torch.ones(2, 1),
    "component_logits": torch.tensor([0.0, 0.5]),
}
z = torch.linspace(-12, 12, 20_001).unsqueeze(-1)
probability = MixtureOfDiagNormals(**pair).component_log_prob(z).exp() * (z[1] - z[0])  # (N, 2)
expected = (probability * ragged(z).unsqueeze(-1)).sum(0)  # E_j f
weights = pair["component_logits"].softmax(0)
exact = (weights * (expected - weights @ expected))[0].item()

TEMPERATURES = (0.1, 0.2, 0.5, 1.0)


def first_logit(estimator):
    measured = gradient_variance(
        MixtureOfDiagNormals,
        ragged,
        pair,
        num_draws=400_000,
        chunk_size=20_000,
        estimator=estimator,
    )["component_logits"]
    return {
        "mean": measured.mean[0].item(),
        "error": measured.mean_error[0].item(),
        "variance": measured.variance[0].item(),
    }


relaxed = {
    kind.__name__: [first_logit(partial(kind, temperature=value)) for value in TEMPERATURES]
    for kind in (gumbel_soft, gumbel_hard)
}
unbiased = first_logit("pathwise")

figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for name, rows in relaxed.items():
    means, errors = ([row[key] for row in rows] for key in ("mean", "error"))
    axes[0].errorbar(TEMPERATURES, means, [2 * error for error in errors], marker="o", label=name)
    axes[1].plot(TEMPERATURES, [row["variance"] for row in rows], marker="o", label=name)
axes[0].axhspan(
    *(unbiased["mean"] + sign * 2 * unbiased["error"] for sign in (-1, 1)),
    color="C2",
    alpha=0.3,
    label="pathwise, two standard errors",
)
axes[0].axhline(exact, color="k", lw=1, label="exact")
axes[1].axhline(unbiased["variance"], color="C2", label="pathwise")
axes[0].set(xscale="log", xlabel="temperature", ylabel="mean gradient")
axes[1].set(xscale="log", yscale="log", xlabel="temperature", ylabel="variance")
for ax in axes:
    ax.set(xticks=TEMPERATURES, xticklabels=TEMPERATURES)
    ax.set_xticks([], minor=True)
    ax.legend()
plt.show()
print(f"exact {exact:.3f}, pathwise {unbiased['mean']:.3f} ± {unbiased['error']:.3f}")

# %%
# In a guide
# ----------
#
# Two places decide on the estimator. The guide says what moves: its default is ``clustered``, and
# ``weight_gradient`` or ``estimator`` choose another. The objective says what happens to the score
# function: Pyro's ``Trace_ELBO`` takes it as it is, ``BaselinedTrace_ELBO`` takes a baseline off
# the cost and blends, with shares learned from the steps before.
#
# Five numbers are measured through a sine. The components of a guide overlap, but the slopes of
# the log density often point the wrong way.


def model():
    x = pyro.sample("x", dist.Normal(torch.zeros(5), 1.0).to_event(1))
    pyro.sample("y", dist.Normal((3 * x).sin(), 1.0).to_event(1), obs=torch.full((5,), 0.5))


pyro.clear_param_store()
pyro.set_rng_seed(3)
guide = AutoDiagonalNormalMixture(model, 5, init_loc_fn=init_to_uniform(radius=1))
objectives = {
    "Trace_ELBO": Trace_ELBO(),
    "baseline": BaselinedTrace_ELBO(blending=False),
    "baseline, blending": BaselinedTrace_ELBO(),
}
for name, rate, steps in (
    ("baseline, blending", 0.02, 800),  # the fit
    ("baseline, blending", 1e-6, 300),  # shares and averages at the place that it has found
    ("baseline", 1e-6, 100),
):
    svi = SVI(model, guide, pyro.optim.Adam({"lr": rate}), objectives[name])
    for _ in range(steps):
        svi.step()

# %%
# ``elbo_gradient_variance`` draws the gradient that a step would take, many times. The
# parameters and what the objective has learned stay as they are.


def measure(weight_gradient, elbo):
    guide.weight_gradient = weight_gradient
    return elbo_gradient_variance(elbo, model, guide, num_draws=800)


by_objective = {"pathwise": measure("pathwise", Trace_ELBO())}
for name, elbo in objectives.items():
    by_objective[name] = measure("clustered", elbo)

figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
plot_gradient_variance(by_objective, ax=ax)
plt.show()

# %%
# The logits' variance, summed over the components:

logit_variance = {}
for name, measured in by_objective.items():
    logits = measured["AutoDiagonalNormalMixture.component_logits"]
    logit_variance[name] = logits.variance.sum().item()
    print(f"{name:20}{logit_variance[name]:8.2f} ± {logits.variance_error.norm():.2f}")

# %%
# Without a baseline the score function between groups is noisier than transport alone. With one
# it is about as good. Blending finds out how far the slopes can be trusted, and goes below both.

# %%
# A rule of thumb
# ---------------
#
# - You know nothing: keep the guide's default and use ``BaselinedTrace_ELBO``, which blends.
# - You know that components overlap (up to about three standard deviations apart) and that the
#   cost is smooth: ``weight_gradient="pathwise"``, above all in high dimension. It needs no
#   special objective.
# - You know that components are far apart (six and more), or that scales differ in many
#   dimensions: ``weight_gradient="hybrid"``, with ``BaselinedTrace_ELBO``.
# - You can afford K evaluations of the model: ``MarginalizedMixture_ELBO``.
# - Gumbel-softmax: only where its bias does no harm.
#
# The measurements behind it, in 800 regimes, are :doc:`here </experiments/estimator_map>`.
