"""
A posterior with several modes, from model to report
====================================================

``fit`` takes a Pyro model and gives back its posterior: a mixture of Normals with every mode that
it could find, and a report that says how far to trust it. This page goes through one such report
line by line, uses the posterior, and shows what no report can know.
"""

import math

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive
from pyro.infer.reparam import LocScaleReparam

import pyro_mixtures as pm

# %%
# How often does a planet go round?
# ---------------------------------
#
# A planet pulls its star to and fro. Nine velocities of the star, measured over forty days, are to
# tell the planet's frequency. Between two nights there is time for one round more or less, so the
# data leave several frequencies open (astronomers call them aliases).

TIMES = torch.tensor(
    [2.9989, 4.0251, 6.1317, 20.0709, 22.1654, 23.3039, 24.2163, 27.8506, 38.8394]
)
VELOCITIES = torch.tensor(
    [-0.5297, -2.0221, 2.9253, -1.8288, 3.9139, 2.3542, -0.6073, -1.1662, 1.0915]
)
LOW, HIGH, SCALE, NOISE = 0.02, 0.98, 4.0, 1.2


def curve(frequency, a, b, c, times):
    """Velocities at times ``(N,)``, for parameters of any batch ``(*S,)``: ``(*S, N)``."""
    angle = 2 * math.pi * frequency.unsqueeze(-1) * times
    return a.unsqueeze(-1) * angle.cos() + b.unsqueeze(-1) * angle.sin() + c.unsqueeze(-1)


def model(times, velocities=None):
    frequency = pyro.sample("frequency", dist.Uniform(LOW, HIGH))
    a, b, c = (pyro.sample(name, dist.Normal(0.0, SCALE)) for name in "abc")
    means = pyro.deterministic("means", curve(frequency, a, b, c, times), event_dim=1)
    pyro.sample("velocities", dist.Normal(means, NOISE).to_event(1), obs=velocities)


# %%
# The model is written as Pyro asks: what it computes is batched over dimensions on the left. Then
# ``fit`` evaluates hundreds of points in one run of the model. (If not, it takes
# ``torch.func.vmap``, and if that fails a loop. It finds out by itself.)
#
# To judge the fit, here is the truth. Given the frequency the model is linear and Gaussian, so its
# evidence has a closed form, and the rest is a grid in one dimension. A real problem has no such
# grid.

frequencies = torch.linspace(LOW, HIGH, 20_001).double()
columns = [part(2 * math.pi * frequencies[:, None] * TIMES) for part in (torch.cos, torch.sin)]
design = torch.stack([*columns, torch.ones_like(columns[0])], -1)  # (F, N, 3)
covariance = SCALE**2 * design @ design.mT + NOISE**2 * torch.eye(len(TIMES))
values = dist.MultivariateNormal(torch.zeros(9).double(), covariance).log_prob(VELOCITIES)
log_evidence = values.logsumexp(0).item() - math.log(len(frequencies))
exact = (values - values.logsumexp(0)).exp()  # probabilities of the frequencies
print(f"log evidence {log_evidence:.3f}")

# %%
# One call
# --------

result = pm.fit(model, TIMES, VELOCITIES, progress=False)
summary = result.summary()
print(summary)

# %%
# Line by line:
#
# - *ELBO*: the bound that variational inference maximizes. Its distance to the log evidence is the
#   Kullback-Leibler divergence from the fit to the posterior.
# - *log evidence*: by importance sampling from the fit. Here it can be compared with the grid's.
# - *k-hat*: how heavy the tail of the importance weights is. Below 0.7 they can be trusted to
#   mend what is left of the error.
# - *effective sample size*: what the draws of the fit are worth. If the fit were the posterior,
#   it would be their number.
# - *components*: how many Normals the mixture has. The search adds them where the mixture lacks
#   mass and leaves out those that are of no use.
# - *evaluations*: of the model's log density, which is what a fit costs. Points without mass lie
#   outside of the model's support; points that failed gave NaN or an error. Neither stops a fit.
# - *modes*: groups of components that no valley separates, with their probabilities. Locations
#   and spreads are in the model's own terms.
# - Lines with ``!`` are alarms. There is none here, so ``summary.passed_checks`` is true.
# - Lines with ``-`` are to be known. The last one says what the search cannot know, see below.

# %%
# The modes
# ---------
#
# ``result.modes`` has the same as values. The probabilities agree with the grid's:

for mode in result.modes[:6]:
    place = mode.location["frequency"].item()
    near = (frequencies - place).abs() < 0.02
    print(
        f"once in {1 / place:5.2f} days: probability {mode.weight:.3f},"
        f" exact {exact[near].sum():.3f}"
    )

# %%
# So do the densities. On the left are curves of the three heaviest modes: as different as can be
# between the measurements, and much the same at them.

draws = result.draws(4000)
figure = plt.figure(figsize=(10, 4.4), layout="constrained")
left, right = figure.subfigures(1, 2)
days = torch.linspace(0, 42, 1000)
for index, ax in enumerate(left.subplots(3, 1, sharex=True, sharey=True)):
    mode = result.modes[index]
    near = (draws["frequency"] - mode.location["frequency"]).abs() < 0.01
    curves = curve(*(draws[name][near][:12] for name in ("frequency", *"abc")), days)
    ax.plot(days, curves.T, color=f"C{index}", lw=0.7, alpha=0.5)
    ax.errorbar(TIMES, VELOCITIES, NOISE, fmt="ko", ms=4)
    period = 1 / mode.location["frequency"].item()
    ax.set_title(f"once in {period:.2f} days: {mode.weight:.2f}", fontsize=10)
ax.set_xlabel("time (days)")
left.supylabel("velocity (m/s)")
ax = right.subplots()
step = frequencies[1] - frequencies[0]
ax.fill_between(frequencies, exact / step, color="0.75", label="exact")
bins = torch.linspace(LOW, HIGH, 400)
ax.hist(draws["frequency"], bins, density=True, histtype="step", label="draws of the fit")
ax.set(xlabel="frequency (1 / day)", ylabel="density")
ax.legend(loc="upper left")
plt.show()

# %%
# Use it
# ------
#
# ``draws`` are in the model's terms; ``resample=True`` takes importance weights into account,
# which removes most of the remaining error. ``result.guide`` is a guide of Pyro, so ``Predictive``
# works as always. When should the star be observed next? When the modes disagree most, that is,
# where the predicted velocities differ most:

better = result.draws(2000, resample=True)
coming = torch.linspace(39, 47, 300)
pyro.set_rng_seed(0)
predicted = Predictive(model, guide=result.guide, num_samples=2000, parallel=True)(coming)
spread = predicted["means"].std(0)
best = coming[spread.argmax()].item()

figure, ax = plt.subplots(figsize=(8, 3.2), layout="constrained")
ax.plot(coming, spread)
ax.axvline(best, color="0.6", ls=":")
ax.set(xlabel="time (days)", ylabel="standard deviation of\nthe prediction (m/s)")
plt.show()
print(f"observe on day {best:.1f}")

# %%
# Alarms
# ------
#
# There may be reasons to fix the number of components. Four Normals cannot cover six modes and
# more. The report says so, from what the starts have found:

few = pm.fit(model, TIMES, VELOCITIES, num_components=4, max_evaluations=60_000, progress=False)
print(*few.summary().alarms, sep="\n")

# %%
# Draws of the four components alone cannot show a mode that none of them has reached. ``fit``
# remembers the optima to which its starts have led, and looks whether the mixture covers them.
# More components help here, a larger budget alone does not: so do not fix their number without
# need.

# %%
# A funnel
# --------
#
# Not every hard posterior has several modes. Eight schools with a common scale ``tau`` are a
# funnel: as ``tau`` falls the effects ``theta`` are squeezed together, and the density has no
# maximum.

EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools(effects):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(effects)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, ERRORS), obs=effects)


funnel = pm.fit(schools, EFFECTS, progress=False).summary()
print(funnel)

# %%
# Many components follow the funnel, but the ELBO stays below the evidence, and the report names
# what was met: starts without an optimum, and a budget that ended before the search. Here the
# model is to be mended, not the fit. Pyro's reparameterizer draws ``theta`` in units of ``tau``:

open_funnel = poutine.reparam(schools, {"theta": LocScaleReparam(0.0)})
mended = pm.fit(open_funnel, EFFECTS, progress=False).summary()
for name, told in (("funnel", funnel), ("mended", mended)):
    print(f"{name}: ELBO {told.elbo:.3f}, log evidence {told.log_evidence:.3f}")
print(*mended.notes, sep="\n")

# %%
# What cannot be known
# --------------------
#
# A mode is found if a start leads to it, or a draw comes near it. A mode whose basin holds a share
# b of the prior is missed by n starts with the probability :math:`(1 - b)^n`. So here are three
# posteriors of which half is a wide hill, and half a needle of one width or another. Their log
# evidence is zero.


def needle(width):
    prior = dist.Normal(torch.zeros(2), 3.0).to_event(1)
    hill = dist.Normal(torch.tensor([-2.0, 0.0]), 1.0).to_event(1)
    peak = dist.Normal(torch.tensor([2.0, 1.0]), width).to_event(1)

    def needle_model():
        x = pyro.sample("x", prior)
        density = torch.logaddexp(hill.log_prob(x), peak.log_prob(x)) - math.log(2)
        pyro.factor("likelihood", density - prior.log_prob(x))

    return needle_model


found = {}
for width in (0.1, 0.02, 0.001):
    for num_starts in (300, 3000):
        told = pm.fit(needle(width), num_starts=num_starts, seed=1, progress=False).summary()
        found[width, num_starts] = told
        print(
            f"width {width:5.3f}, {num_starts:4} starts: log evidence {told.log_evidence:6.3f},"
            f" effective sample size {told.effective_sample_size:.0f} of {told.num_samples},"
            f" passed checks: {told.passed_checks}"
        )

# %%
# The first is found by 300 starts, the second by 3,000, and the third by neither. Where a needle
# was missed, every number looks perfect, and the log evidence is too low by log 2. Nothing that
# evaluates a density at points can exclude that there is more where it has not been. So
# ``passed_checks`` means that no check has raised an alarm, and each report ends with the size of
# what may have been missed:

print(found[0.001, 3000].notes[-1])

# %%
# Starts cost little, for they share their batches, and the default budget grows with them. If
# modes may be narrow, take more of them (``num_starts``), fit with another ``seed`` too, and
# compare the modes.

# %%
# Going on with SVI
# -----------------
#
# ``fit`` moves its components along natural gradients. Does it pay to go on by the stochastic
# gradients of this package? ``from_mixture`` makes a guide that starts at the fit.
# ``MarginalizedMixture_ELBO`` draws from every component, and ``sticking_the_landing`` has
# gradients without noise where the fit is exact.


def polished(mixture, steps=300):
    """A guide after some steps of SVI that start at a mixture."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = pm.AutoMultivariateNormalMixture.from_mixture(model, mixture, TIMES, VELOCITIES)
    elbo = pm.MarginalizedMixture_ELBO(max_plate_nesting=0, sticking_the_landing=True)
    optimizer = pyro.optim.ClippedAdam({"lr": 0.002, "lrd": 0.1 ** (1 / steps)})
    svi = SVI(model, guide, optimizer, elbo)
    for _ in range(steps):
        svi.step(TIMES, VELOCITIES)
    return guide


def measured(guide):
    pyro.set_rng_seed(1)
    return pm.diagnostics.psis(model, guide, TIMES, VELOCITIES, num_samples=20_000)


gains = {}
for name, fitted in (("as many as needed", result), ("four components", few)):
    before = measured(fitted.guide)
    after = measured(polished(fitted.posterior))
    gains[name] = after.elbo - before.elbo, math.hypot(after.elbo_error, before.elbo_error)
    print(
        f"{name}: ELBO {before.elbo:.3f} ± {before.elbo_error:.3f},"
        f" after SVI {after.elbo:.3f} ± {after.elbo_error:.3f}"
    )

# %%
# For a mixture that was free to grow it does not pay: the gain is no larger than its error, and
# other objectives (``BaselinedTrace_ELBO`` without ``sticking_the_landing``) even lose a hundredth
# of a nat to their noise. With too few components there is something to gain, some hundredths of
# a nat. It is little against the modes that these lack.

# %%
# In short
# --------
#
# - ``pm.fit(model, *args)``, then ``print(result.summary())``.
# - Read the alarms first, then k-hat, then the gap between ELBO and log evidence.
# - ``result.draws``, ``result.guide`` and ``result.modes`` go on from there.
# - No alarm does not mean that every mode is found. The last line of the report says how large
#   a basin may have been missed.
# - The report shows a funnel: reparameterize the model.
# - For amortized models and data in mini-batches take a guide and SVI:
#   :doc:`plot_1_first_mixture_guide`.
