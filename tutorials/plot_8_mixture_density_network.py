"""
A mixture density network
=========================

Regression tells the mean of an answer. Where a question has several answers, the mean may be none
of them. A network that makes a mixture of each input tells them all, and how likely each is. It
is fitted by maximum likelihood, ``log_prob``, and no sampling is needed. Such networks have a name
for being hard to fit: here is what goes wrong, and what keeps it from that.
"""

import matplotlib.pyplot as plt
import torch

from pyro_mixtures import MixtureOfDiagNormals
from pyro_mixtures.nn import ConditionalMixture

# %%
# A question with several answers
# -------------------------------
#
# A measurement x depends on a cause y by :math:`x = y + 0.3 \sin(2 \pi y)` and noise (the example
# of Bishop, *Mixture Density Networks*, 1994). To ask for y given x is to read the curve the other
# way, and in the middle it has three y for one x.

NOISE = 0.05


def measured(y):
    return y + 0.3 * (2 * torch.pi * y).sin()


def simulate(count):
    y = torch.rand(count, 1)
    return measured(y) + NOISE * torch.randn(count, 1), y


torch.manual_seed(0)
x, y = simulate(2000)
new_x, new_y = simulate(5000)

# %%
# What can be reached is known here: y is uniform, so :math:`p(y \mid x)` is proportional to the
# density of the noise, on a grid of y.

grid = torch.linspace(0, 1, 1001).unsqueeze(-1)  # (G, 1)


def exact_log_density(x, y):
    """Of y given x, both ``(N, 1)``: ``(N,)``."""
    noise = torch.distributions.Normal(measured(grid).squeeze(-1), NOISE)
    evidence = noise.log_prob(x).exp().mean(-1)  # (N,)
    likelihood = torch.distributions.Normal(measured(y), NOISE).log_prob(x)
    return likelihood.squeeze(-1) - evidence.log()


best = -exact_log_density(new_x, new_y).mean().item()

# %%
# The network
# -----------
#
# ``ConditionalMixture`` has a perceptron inside (``hidden``), or is the last layer of a network of
# your own. ``init_from`` starts it at a mixture that is fitted to all y, whatever their x: means
# where answers are, scales of the right size, weights of neither zero nor one. The rest is
# ordinary training. Inputs should be of order one, as these are.


def fit(network, x, y, steps=600):
    """Negative log likelihoods of the steps."""
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for _ in range(steps):
        loss = -network(x).log_prob(y).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses


networks, scores = {}, {}
for count in (1, 5):
    torch.manual_seed(0)
    name = f"K = {count}"
    networks[name] = ConditionalMixture(1, 1, count, hidden=(64, 64)).init_from(y)
    fit(networks[name], x, y)
    with torch.no_grad():
        scores[name] = -networks[name](new_x).log_prob(new_y).mean().item()
    print(f"{name}: {scores[name]:.3f} nats, the best possible {best:.3f}")

# %%
# One Normal is least squares with a width, and most likely where no answer is. Five follow the
# curve, and nearly have the exact density at each x:

lines = torch.linspace(-0.1, 1.1, 241).unsqueeze(-1)  # (X, 1)
figure, axes = plt.subplots(1, 3, figsize=(11, 3.8), layout="constrained")
for ax, (name, network) in zip(axes, networks.items(), strict=False):
    with torch.no_grad():
        density = network(lines).log_prob(grid.unsqueeze(1)).exp().numpy()  # (G, X)
    ax.imshow(
        density, origin="lower", extent=(-0.1, 1.1, 0, 1), aspect="auto", cmap="Blues", vmax=6
    )
    ax.plot(x[:300], y[:300], "k.", ms=2, alpha=0.5)
    ax.set(title=f"density, {name}", xlabel="x", ylabel="y", ylim=(0, 1))
here = torch.tensor([[0.45]])
axes[2].fill_between(
    grid.squeeze(-1),
    exact_log_density(here.expand(1001, 1), grid).exp(),
    color="0.8",
    label="exact",
)
for name, network in networks.items():
    with torch.no_grad():
        axes[2].plot(grid, network(here).log_prob(grid).exp(), label=name)
axes[2].set(title=f"at x = {here.item():.2f}", xlabel="y", ylabel="density", xlim=(0, 1))
axes[2].legend()
plt.show()

# %%
# Why the likelihood becomes NaN: the logarithm of a sum
# ------------------------------------------------------
#
# First, arithmetic. Far from all components each density is less than the smallest number that
# ``float32`` has, their sum is zero, and the logarithm of that infinite. One outlier ruins a
# fit. ``log_prob`` sums in logarithms (``logsumexp``) and has digits everywhere:

pair = MixtureOfDiagNormals(torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1), torch.zeros(2))
outlier = torch.tensor([20.0])
by_hand = pair.component_log_prob(outlier).exp() @ pair.log_weights.exp()
print(f"by hand {by_hand.log():.1f}, log_prob {pair.log_prob(outlier):.1f}")

# %%
# Why the likelihood becomes NaN: scales that collapse
# ----------------------------------------------------
#
# Second, the likelihood has no maximum. A component that runs through a datum gains without end
# when its scale shrinks there. It does so where data are few, or values occur many times (they
# are rounded, cut off or filled in). Other data, of the next mini-batch, say, are then far from
# all components, and the sum above is zero for them: an infinite loss, and a gradient of NaN.
#
# The layer's scales are ``unit * (scale_floor + softplus(output))``, where the unit is the
# standard deviation of what it started at. The floor bounds the density, and unlike a clamp it has
# a gradient: a component that came down to it can leave again. The default, a thousandth, is there
# for the arithmetic. A floor that knows how exact answers can be, here a tenth of the standard
# deviation, also keeps the fit from following single data. Thirty data, with a floor and next to
# none:

few_x, few_y = x[:30], y[:30]


def overfit(floor, steps=1000):
    """After each step the smallest scale, and the losses of the data and of new ones."""
    torch.manual_seed(0)
    network = ConditionalMixture(1, 1, 5, hidden=(64, 64), scale_floor=floor).init_from(few_y)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rows = []
    for _ in range(steps):
        q = network(few_x)
        loss = -q.log_prob(few_y).mean()
        with torch.no_grad():
            new = -network(new_x[:1000]).log_prob(new_y[:1000]).mean()
        rows.append([q.coord_scale.min().item(), loss.item(), new.item()])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return network, torch.tensor(rows).T


courses, zeros = {}, {}
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
for floor in (1e-9, 0.1):
    network, (smallest, loss, new) = overfit(floor)
    name = f"scale_floor={floor:g}"
    courses[name] = (smallest, loss, new)
    with torch.no_grad():
        zeros[name] = (network(new_x).component_log_prob(new_y).exp().sum(-1) == 0).sum().item()
    print(
        f"{name:17} smallest scale {smallest.min():.0e}, loss {loss[-1]:.2f}, of new data"
        f" {new[-1]:.2f}; sums of zero by hand: {zeros[name]} of 5000"
    )
    (line,) = axes[0].plot(smallest, label=name)
    axes[1].plot(loss, color=line.get_color(), label=f"{name}, the data")
    axes[1].plot(new, "--", color=line.get_color(), label="new data")
axes[0].set(yscale="log", xlabel="step", ylabel="smallest scale")
axes[1].set(xlabel="step", ylabel="negative log likelihood")
for ax in axes:
    ax.legend()
plt.show()

# %%
# The floor does not replace new data: the loss of these rises with any floor after some hundred
# steps, for thirty data are few. Stop there.

# %%
# Where components start
# ----------------------
#
# Third, components may be wasted. Those that start in one place get the same gradients, but for
# what chance puts into the weights, and part late. Those that start far from all data, in too
# large a unit, take long to get there. The layer's components start apart and nearly the same for
# all inputs, for the weights of its last layer are small and its biases hold the start. Three
# starts of one network:


def one_place():
    start = MixtureOfDiagNormals(0.5 + torch.zeros(5, 1), 0.3 * torch.ones(5, 1), torch.zeros(5))
    return ConditionalMixture(1, 1, 5, hidden=(64, 64)).start_at(start)


def far_off():
    return ConditionalMixture(1, 1, 5, hidden=(64, 64), init_spread=100.0)


def from_data():
    return ConditionalMixture(1, 1, 5, hidden=(64, 64)).init_from(y)


starts = {}
figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for build, name in (
    (one_place, "one place"),
    (far_off, "init_spread=100"),
    (from_data, "init_from"),
):
    torch.manual_seed(1)
    starts[name] = fit(build(), x, y, steps=300)
    print(f"{name:16} first {starts[name][0]:6.2f}, last {starts[name][-1]:.2f}")
    ax.plot(starts[name], label=name)
ax.axhline(best, color="0.5", ls=":", label="the best possible")
ax.set(xlabel="step", ylabel="negative log likelihood", ylim=(-1.4, 2))
ax.legend()
plt.show()

# %%
# Is it calibrated?
# -----------------
#
# A likelihood compares fits. Whether the probabilities hold is another question: of answers that
# the network gives 90 %, 90 % should be true. In one dimension the distribution function at the
# true answer, ``cdf``, has to be uniform over new data (the probability integral transform). In
# any dimension so has the share of the network's own draws that are likelier than the true answer,
# which counts how often regions of highest density cover it.


@torch.no_grad()
def calibration(network):
    """Both numbers for each of the new data."""
    q = network(new_x)
    draws = q.sample((200,))
    likelier = q.log_prob(draws) > q.log_prob(new_y)
    return q.cdf(new_y), likelier.float().mean(0)


levels = torch.linspace(0, 1, 101)
gaps = {}
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
for name, network in networks.items():
    transform, region = calibration(network)
    axes[0].hist(transform, bins=25, range=(0, 1), density=True, histtype="step", label=name)
    covered = (region <= levels.unsqueeze(-1)).float().mean(-1)
    axes[1].plot(levels, covered, label=name)
    gaps[name] = (covered - levels).abs().max().item()
    print(f"{name}: coverage is wrong by up to {100 * gaps[name]:.0f} %")
axes[0].axhline(1, color="0.5", ls=":")
axes[0].set(xlabel="distribution function at the true y", ylabel="density")
axes[1].plot([0, 1], [0, 1], color="0.5", ls=":")
axes[1].set(xlabel="probability of the region", ylabel="share of true y within")
for ax in axes:
    ax.legend()
plt.show()

# %%
# A curve above the diagonal belongs to regions that are too large, one below to regions that are
# too small, as those of five components are by a little: they have followed single data a bit.
# Both plots are averages over x. Errors of different x may cancel, so draw them for parts of the
# data, too.

# %%
# In short
# --------
#
# - Inputs of order one; ``init_from`` the answers, so that their unit and their places are known.
# - More components than answers; those that are not needed lose their weight.
# - ``log_prob``, never a logarithm of densities.
# - A floor for the scales: the default for arithmetic, a larger one if you know how exact answers
#   can be.
# - Watch the likelihood of new data, and stop when it falls.
# - Then look at the calibration.
# - For positive or bounded answers there is ``ConditionalMixtureSameFamily``; for answers with
#   several coordinates ``family="full"``. The same layer is an amortized guide if it stands in
#   ``pyro.sample``: :doc:`/how_to/local_latents`.
