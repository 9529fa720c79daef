r"""
A flow on a mixture, in forty lines
===================================

A normalizing flow moves a simple density by a smooth map, which bends it, but cannot tear it in
two: between two modes it leaves a bridge. A mixture has modes apart, but needs many components for
a bent one. A flow whose base is a mixture has both. This page fits two arcs in the plane by a flow
on a Normal, a mixture, and a flow on that mixture; data, models and fits are forty lines.
"""

import matplotlib.pyplot as plt
import pyro.distributions.transforms as flows
import torch
from torch import nn

import pyro_mixtures as pm

torch.manual_seed(0)


def arcs(count):
    """The right one has seven tenths of the points."""
    angle = 5 * torch.rand(count) - 2.5
    side = 2.0 * (torch.rand(count) < 0.7) - 1
    bent = torch.stack([side * (2.5 + 1.5 * angle.cos()), angle], -1)
    return bent + 0.15 * torch.randn(count, 2)


data, new = arcs(2000), arcs(2000)

# %%
# The model
# ---------
#
# Parameters of a mixture and, on top, affine couplings from Pyro, which move the coordinates in
# turn. ``MixtureFlow`` makes a distribution of both. The mixture starts where
# expectation maximization puts it, and the couplings start near the identity: a flow that starts
# as something else would first have to undo it.


class Flow(nn.Module):
    def __init__(self, num_components, layers):
        super().__init__()
        start = pm.MixtureOfDiagNormals.from_samples(data, num_components)
        self.locs = nn.Parameter(start.locs)
        self.log_scale = nn.Parameter(start.coord_scale.log())
        self.logits = nn.Parameter(start.component_logits)
        self.couplings = nn.ModuleList(flows.affine_coupling(2, [32]) for _ in range(layers))
        for coupling in self.couplings:
            nn.init.normal_(coupling.nn.layers[-1].weight, std=0.01)
            nn.init.zeros_(coupling.nn.layers[-1].bias)
        swap = flows.Permute(torch.tensor([1, 0]))
        self.transforms = [part for coupling in self.couplings for part in (coupling, swap)]

    def forward(self):
        base = pm.MixtureOfDiagNormals(self.locs, self.log_scale.exp(), self.logits)
        return pm.MixtureFlow(base, self.transforms)


def fit(flow, steps):
    adam = torch.optim.Adam(flow.parameters(), lr=3e-3)
    for _ in range(steps):
        adam.zero_grad()
        (-flow().log_prob(arcs(200)).mean()).backward()
        adam.step()
    return flow()


fits = {
    "flow on a Normal": fit(Flow(1, 6), steps=1000),
    "mixture, K = 2": fit(Flow(2, 0), steps=300),
    "flow on a mixture, K = 2": fit(Flow(2, 6), steps=1000),
}

# %%
# What each has of the data
# -------------------------
#
# The log-likelihood of new data, and the share of samples in the bridge: between the arcs, where
# data hardly are.

scores, bridges = {}, {}
with torch.no_grad():
    for name, q in fits.items():
        scores[name] = q.log_prob(new).mean().item()
        bridges[name] = (q.sample((5000,))[:, 0].abs() < 0.6).float().mean().item()
        print(f"{name}: {scores[name]:.3f} nats, {100 * bridges[name]:.1f} % in the bridge")
bridges["data"] = (new[:, 0].abs() < 0.6).float().mean().item()
print(f"data: {100 * bridges['data']:.1f} % in the bridge")

# %%
# The densities, logarithmic. The mixture alone has two ellipses for two arcs.

line = torch.linspace(-4.5, 4.5, 150)
grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), sharey=True, layout="constrained")
for ax, (name, q) in zip(axes, fits.items(), strict=True):
    with torch.no_grad():
        picture = q.log_prob(grid.reshape(-1, 2)).reshape(150, 150)
    ax.pcolormesh(
        *2 * [line.numpy()], picture.numpy(), vmin=-10, vmax=0, cmap="Blues", rasterized=True
    )
    ax.plot(*new[:300].T.numpy(), ".", color="C3", ms=2)
    ax.set(title=name, xlabel="first coordinate", xlim=(-4.5, 4.5), ylim=(-4.5, 4.5))
axes[0].set_ylabel("second coordinate")
plt.show()

# %%
# Components of bent shape
# ------------------------
#
# The flow knows its components in the space of the data: ``component_log_prob`` and
# ``responsibilities`` are theirs, so that a bent cluster is one component. Their weights are those
# of the arcs.

q = fits["flow on a mixture, K = 2"]
with torch.no_grad():
    owner = q.responsibilities(new).argmax(-1)
    weights = q.log_weights.exp()
right = int(owner[new[:, 0] > 0].float().mean().round())
purity = (owner == torch.where(new[:, 0] > 0, right, 1 - right)).float().mean().item()
print(f"{100 * purity:.1f} % of the data are of the component of their arc")
print(f"weight of the right arc: {weights[right]:.2f}")

# %%
# Learned through samples
# -----------------------
#
# Likelihoods of data need no samples. Variational inference, maximum entropy and other costs of
# samples do, and there the weights of the base need a gradient, too. ``rsample`` and the score
# term, which is there for components that lie apart, carry it: here that of the mean of the first
# coordinate by the logits of the weights. The exact one is a sum over components.

sample = q.rsample((20_000,))
cost, score = sample[:, 0], q.score_parts(sample).score_function
surrogate = (cost + (cost - cost.mean()).detach() * score).mean()
(gradient,) = torch.autograd.grad(surrogate, q.base_dist.component_logits)
with torch.no_grad():
    points, index = q.sample_with_index((200_000,))
    means = torch.stack([points[index == k, 0].mean() for k in range(2)])
    exact = weights * (means - (weights * means).sum())
print(f"through samples {gradient[0]:.3f}, exactly {exact[0]:.3f}")

# %%
# Objectives of Pyro and of this package find the score term by themselves.
# ``AutoMixtureFlow`` is a guide, ``train_constrained`` fits
# under constraints, and ``nn.ConditionalMixtureFlow`` makes flows of a context:
# :doc:`/how_to/flows`. What flows on mixtures do on densities with more modes, and next to other
# ways to tear a density apart, is measured on :doc:`/experiments/flows`.
