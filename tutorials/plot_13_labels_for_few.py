"""
Labels for few
==============

Many images, and labels for few of them: a model of all images can teach a classifier what the
few labels do not. This is the model M2 of Kingma et al., *Semi-supervised Learning with Deep
Generative Models* (2014), in sixty lines of Pyro. A latent site that is a category is summed out,
and the posterior of the other one is a mixture.
"""

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from sklearn.datasets import load_digits
from torch import nn

from pyro_mixtures.nn import ConditionalMixture

# %%
# The data are the digits of 8 x 8 pixels that come with scikit-learn: 1,400 to train with, of
# which three of each digit keep their label, and 397 to judge by. Pixels are drawn from the grey
# values anew in each step.

pyro.set_rng_seed(0)
grey, digits = (torch.as_tensor(each) for each in load_digits(return_X_y=True))
grey, order = grey.float() / 16, torch.randperm(len(grey))
train, test = order.split((1400, 397))


def chosen(seed):
    """Indices of three images of each digit."""
    mixed = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))]
    return torch.cat([mixed[digits[mixed] == digit][:3] for digit in range(10)])


# %%
# Sixty lines
# -----------
#
# An image has a label y and a style z, independent of each other. The decoder makes pixels of
# both. The guide is a classifier q(y | x) and an encoder q(z | x, y), whose last layer,
# ``ConditionalMixture``, makes a mixture of two Normals. Where labels are known, they are an
# observation of the model; where they are not, ``infer={"enumerate": "parallel"}`` gives the site
# a dimension of its own, with all ten labels, and ``TraceEnum_ELBO`` sums over it with the weights
# of q(y | x). What comes after has ten rows for each image: ``z`` is drawn for each label.
#
# ``weight_gradient="pathwise"`` puts all of the gradient of a mixture's weights into its samples.
# An objective that does not know mixtures then needs nothing else.


def one_hot(labels):
    return nn.functional.one_hot(labels, 10).float()


def joined(y, other):
    shape = torch.broadcast_shapes(y.shape[:-1], other.shape[:-1])
    return torch.cat([each.expand(*shape, -1) for each in (y, other)], -1)


class LabelsAndStyles(nn.Module):
    def __init__(self, num_components=2, size=2):
        super().__init__()
        self.size = size
        self.classifier = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 10))
        head = ConditionalMixture(128, size, num_components, weight_gradient="pathwise")
        self.encoder = nn.Sequential(nn.Linear(74, 128), nn.SiLU(), head)
        self.decoder = nn.Sequential(nn.Linear(10 + size, 128), nn.SiLU(), nn.Linear(128, 64))

    def model(self, x, labels=None):
        with pyro.plate("images", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(10)), obs=labels)
            z = pyro.sample("z", dist.Normal(torch.zeros(self.size), 1.0).to_event(1))
            pixels = self.decoder(joined(one_hot(y), z))
            pyro.sample("x", dist.Bernoulli(logits=pixels).to_event(1), obs=x)

    def guide(self, x, labels=None):
        with pyro.plate("images", len(x)):
            y = labels
            if labels is None:
                q = dist.Categorical(logits=self.classifier(x))
                y = pyro.sample("y", q, infer={"enumerate": "parallel"})
            pyro.sample("z", self.encoder(joined(one_hot(y), x)))


def fit(module, labeled, steps, model_too=True):
    without, known = TraceEnum_ELBO(max_plate_nesting=1), Trace_ELBO(max_plate_nesting=1)
    adam = torch.optim.Adam(module.parameters(), lr=0.003)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(adam, 0.1 ** (1 / steps))
    for _ in range(steps):
        x, y = torch.bernoulli(grey[labeled]), digits[labeled]
        loss = nn.functional.cross_entropy(module.classifier(x), y, reduction="sum")
        if model_too:
            unlabeled = torch.bernoulli(grey[train[torch.randint(len(train), (100,))]])
            loss = loss + without.differentiable_loss(module.model, module.guide, unlabeled)
            loss = loss + known.differentiable_loss(module.model, module.guide, x, y)
        adam.zero_grad()
        loss.backward()
        adam.step()
        scheduler.step()


# %%
# There are three losses in a step: that of the classifier for the images with labels, the bound
# of images without, and the bound of those with. The last does not know the classifier: it has
# the label already. So without the first one only images without labels would teach the
# classifier.
#
# What the images without labels are worth
# ----------------------------------------

modules, accuracies = {}, {}
for name, options in {
    "labels alone": {"model_too": False},
    "all images": {"model_too": True},
}.items():
    accuracies[name] = []
    for seed in range(3):  # of the choice of labels, and of the fit
        pyro.set_rng_seed(seed)
        module = LabelsAndStyles()
        fit(module, chosen(seed), steps=1000, **options)
        with torch.no_grad():
            found = module.classifier(grey[test]).argmax(-1)
        accuracies[name].append((found == digits[test]).float().mean().item())
    modules[name] = module
    print(f"{name:13} accuracy", *(f"{each:.3f}" for each in accuracies[name]))

# %%
# The same classifiers, the same labels, thirty each time: between one and four hundredths more, by
# the choice of the thirty.
#
# The style has two dimensions on purpose. The larger it is, the less the decoder needs the label,
# and the less the images without one tell the classifier.
#
# Styles
# ------
#
# The label is no part of the style, so one style can be drawn with all labels. Each row has a draw
# of the style from its prior, with the ten digits. A style of two dimensions changes little: most
# of what the decoder draws is told by the label.

module = modules["all images"]
pyro.set_rng_seed(0)
with torch.no_grad():
    z = torch.randn(5, 1, module.size)
    pictures = module.decoder(joined(torch.eye(10), z)).sigmoid()  # (5, 10, 64)

figure, axes = plt.subplots(5, 10, figsize=(8, 4.2), layout="constrained")
for row, each in zip(axes, pictures, strict=True):
    for ax, pixels in zip(row, each, strict=True):
        ax.imshow(pixels.reshape(8, 8).numpy(), cmap="gray_r", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[])
for digit, ax in enumerate(axes[0]):
    ax.set_title(str(digit), fontsize=10)
for place, ax in enumerate(axes[:, 0], 1):
    ax.set_ylabel(f"style {place}", fontsize=10)
plt.show()

# %%
# In short
# --------
#
# - Sum labels out: ``infer={"enumerate": "parallel"}`` in the guide and ``TraceEnum_ELBO``. Ten
#   labels are ten rows of one batch.
# - A mixture as the posterior of the style: ``ConditionalMixture``, with
#   ``weight_gradient="pathwise"`` in objectives other than this package's.
# - Add the classifier's own loss.
# - The same for MNIST, with other gradients through the label and with fewer or more labels:
#   :doc:`/experiments/semi_supervised`.
