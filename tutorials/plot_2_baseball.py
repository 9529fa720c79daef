"""
Baseball: a bent posterior in 20 dimensions
===========================================

The posterior of a hierarchical model often has one mode, but is bent: a funnel. No single Normal
has that shape. Mean field, which is widely used for such models, misses its neck and its mouth.
This page fits mean field and mixtures of 5 and 20 Normals to the batting averages of Efron and
Morris (1975), and compares them with a sampler's draws.

This is a short run. The page of the :doc:`experiment </experiments/baseball>` has the long one,
with bounds, other estimators and times.
"""

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, init_to_median

from pyro_mixtures import MixtureOfDiagNormals
from pyro_mixtures.infer import AutoDiagonalNormalMixture, BaselinedTrace_ELBO
from pyro_mixtures.plotting import plot_elbo, plot_mixture

# %%
# The model
# ---------
#
# Hits of 18 players in their first 45 at-bats of the season 1970. How good is each of them? The
# averages are noisy, so the model draws players from a population with mean phi; kappa says how
# similar they are. Both are learned from the same data ("partial pooling").

AT_BATS = 45
HITS = torch.tensor([18.0, 17, 16, 15, 14, 14, 13, 12, 11, 11, 10, 10, 10, 10, 10, 9, 8, 7])


def model():
    phi = pyro.sample("phi", dist.Uniform(0.0, 1.0))
    kappa = pyro.sample("kappa", dist.Pareto(1.0, 1.5))
    with pyro.plate("players", len(HITS)):
        theta = pyro.sample("theta", dist.Beta(phi * kappa, (1 - phi) * kappa))
        # 45 Bernoulli trials: a Binomial without its coefficient
        pyro.factor("trials", HITS * theta.log() + (AT_BATS - HITS) * torch.log1p(-theta))


# %%
# A reference
# -----------
#
# A short chain of NUTS. From here on all is in the guides' unconstrained space: logits, and the
# logarithm of kappa - 1.

pyro.set_rng_seed(0)
kernel = NUTS(model, init_strategy=init_to_median())
mcmc = MCMC(kernel, num_samples=800, warmup_steps=300, disable_progbar=True)
mcmc.run()
drawn = mcmc.get_samples()
pooling = (drawn["kappa"] - 1).log().unsqueeze(-1)
draws = torch.cat([drawn["phi"].logit().unsqueeze(-1), pooling, drawn["theta"].logit()], -1)

# %%
# The fits
# --------
#
# The same optimizer, steps and particles for all three. There is one mode, so all components of
# a mixture may start at one point, with some jitter. The ELBO of a fitted guide is estimated at
# the end, with many particles.


def fit(guide, steps=2500):
    pyro.clear_param_store()
    settings = {"vectorize_particles": True, "max_plate_nesting": 1}
    optimizer = pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.03 ** (1 / steps)})
    svi = SVI(model, guide, optimizer, BaselinedTrace_ELBO(num_particles=16, **settings))
    history = [-svi.step() for _ in range(steps)]
    return history, -Trace_ELBO(num_particles=20_000, **settings).loss(model, guide)


guides = {
    "mean field": AutoDiagonalNormal(model, init_loc_fn=init_to_median),
    "mixture, K = 5": AutoDiagonalNormalMixture(model, 5, init_loc_fn=init_to_median),
    "mixture, K = 20": AutoDiagonalNormalMixture(model, 20, init_loc_fn=init_to_median),
}
histories, elbos = {}, {}
for name, guide in guides.items():
    histories[name], elbos[name] = fit(guide)

# %%
# How good are they?
# ------------------
#
# The ELBO, and the distance of means and standard deviations from those of the sampler, in
# standard deviations: root mean squares over the 20 coordinates. The chain is short, so its own
# error is part of the distance.


def root_mean_square(error):
    return error.square().mean().sqrt().item()


for name, guide in guides.items():
    with torch.no_grad():
        q = guide.get_posterior()
        mean_error = root_mean_square((q.mean - draws.mean(0)) / draws.std(0))
        std_error = root_mean_square((q.stddev - draws.std(0)) / draws.std(0))
    print(f"{name:16} ELBO {elbos[name]:.2f}  means {mean_error:.2f}  std {std_error:.2f}")

figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
plot_elbo(histories, ax=ax)
ax.set_ylim(max(elbos.values()) - 5, max(elbos.values()) + 0.5)
plt.show()

# %%
# Cross-sections
# --------------
#
# Two coordinates at a time: how similar the players are, log(kappa - 1), against the population's
# mean and against the ability of the best player so far. If all are similar (top), his ability is
# known well; if not, it may lie far above theirs. ``plot_mixture`` draws the marginal distribution
# of two coordinates; a single Normal is a mixture of one. Grey: the sampler's draws. Blue: regions
# that hold 50, 80 and 95 % of the guide. Orange: half of each component.

COORDINATES = {0: "logit phi", 1: "log(kappa - 1)", 2: "logit theta of the best player"}
SECTIONS = ((0, 1), (2, 1))


def as_mixture(q):
    """A single Normal as a mixture of one."""
    if isinstance(q, MixtureOfDiagNormals):
        return q
    return MixtureOfDiagNormals(q.mean[None], q.stddev[None], torch.zeros(1))


figure, axes = plt.subplots(
    2, 3, figsize=(10, 6.5), sharex="row", sharey=True, layout="constrained"
)
for row, section in zip(axes, SECTIONS, strict=True):
    for ax, guide in zip(row, guides.values(), strict=True):
        plot_mixture(as_mixture(guide.get_posterior()), section, reference=draws, ax=ax)
        ax.set(xlabel=COORDINATES[section[0]], ylabel="")
        ax.get_legend().remove()
    row[0].set_ylabel(COORDINATES[section[1]])
for ax, name in zip(axes[0], guides, strict=True):
    ax.set_title(name)
plt.show()

# %%
# Mean field has no dependence between coordinates: its ellipses are parallel to the axes, and the
# funnel's mouth lies outside. The components of a mixture are parallel to the axes, too, but they
# can line up along the funnel. Twenty follow it further than five. They leave out the far tail at
# the top, which has little mass, and which reverse KL gives no reason to cover.
