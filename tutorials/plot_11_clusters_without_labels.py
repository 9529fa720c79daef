"""
Clusters without labels
=======================

An autoencoder whose latent is a mixture should sort its data into clusters by itself, so one
hopes. This page tries it on images of digits, whose labels are kept back until the end: with
weights that each image has for itself (a deep latent Gaussian mixture), which find no clusters,
and with one mixture for all images that is learned, which does.
"""

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from sklearn.datasets import load_digits
from sklearn.metrics import normalized_mutual_info_score
from sklearn.mixture import GaussianMixture
from torch import nn
from torch.nn.functional import softplus

import pyro_mixtures as pm
from pyro_mixtures.nn import ConditionalMixture, MixturePrior

# %%
# The data are the 1,797 digits of 8 x 8 pixels that come with scikit-learn. Pixels are drawn from
# their grey values anew in each step. The labels are for the comparison only: by the normalized
# mutual information of clusters and labels, 0 for clusters that know nothing of the digits and 1
# for the digits themselves. There are more clusters than digits, since a digit has several styles.

K, SIZE = 15, 8
grey = torch.as_tensor(load_digits().data, dtype=torch.float32) / 16  # (1797, 64)
labels = load_digits().target


def information(clusters):
    return normalized_mutual_info_score(labels, clusters)


def by_scikit_learn(points):
    mixture = GaussianMixture(K, random_state=0, reg_covar=1e-3)
    return information(mixture.fit_predict(points.double().numpy()))


found = {"scikit-learn, pixels": by_scikit_learn(grey)}

# %%
# The autoencoder
# ---------------
#
# At first both the prior and the posterior of an image are single Normals. (A ``MixturePrior`` of
# one component is a Normal with a mean and scales that are learned.)


class Autoencoder(nn.Module):
    def __init__(self, num_components=1):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 128), nn.SiLU())
        self.head = ConditionalMixture(128, SIZE, num_components)
        self.decoder = nn.Sequential(nn.Linear(SIZE, 128), nn.SiLU(), nn.Linear(128, 64))
        self.prior = MixturePrior(SIZE, 1)

    def latent(self):
        return pyro.sample("z", self.prior())

    def model(self, x):
        pyro.module("autoencoder", self)
        with pyro.plate("images", len(x)):
            pixels = dist.Bernoulli(logits=self.decoder(self.latent()))
            pyro.sample("x", pixels.to_event(1), obs=x)

    def guide(self, x):
        pyro.module("autoencoder", self)
        with pyro.plate("images", len(x)):
            pyro.sample("z", self.head(self.body(x)))

    def encoded(self):
        return self.head(self.body(grey)).mean.detach()


def fit(autoencoder, steps):
    pyro.clear_param_store()
    elbo = pm.BaselinedTrace_ELBO(max_plate_nesting=1)
    optimizer = pyro.optim.ClippedAdam({"lr": 0.005, "lrd": 0.1 ** (1 / steps)})  # to a tenth
    svi = SVI(autoencoder.model, autoencoder.guide, optimizer, elbo)
    batches = (grey[torch.randint(len(grey), (100,))] for _ in range(steps))
    losses = [svi.step(torch.bernoulli(batch)) / 100 for batch in batches]
    return -sum(losses[-200:]) / len(losses[-200:])


pyro.set_rng_seed(0)
autoencoder = Autoencoder()
elbos = {"one Normal": fit(autoencoder, steps=1000)}
found["scikit-learn, latents: one Normal"] = by_scikit_learn(autoencoder.encoded())

# %%
# Weights of each image
# ---------------------
#
# In a deep latent Gaussian mixture (Nalisnick, Hertel and Smyth, 2016) each image has weights of
# its own, which are latent, too: broken from a stick, with a Dirichlet prior. Given the weights
# the latent is a mixture. Of an image the guide makes the sticks of its weights and K Normals. One
# draw of the mixture is decoded, whose gradient reaches the sticks as well. The components of the
# prior are standard Normals, as in the text. An image's cluster is the component of its largest
# expected weight.


class OwnWeights(Autoencoder):
    def __init__(self):
        super().__init__(num_components=K)
        self.sticks = nn.Linear(128, 2 * (K - 1))

    def latent(self):
        prior = pm.StickBreaking.dirichlet(torch.ones(K))
        log_weights = prior.log_weights(pyro.sample("weights", prior))
        components = torch.zeros(K, SIZE), torch.ones(K, SIZE)
        return pyro.sample("z", pm.MixtureOfDiagNormals(*components, log_weights))

    def weights(self, x):
        a, b = (softplus(self.sticks(self.body(x)) + 0.5) + 0.05).chunk(2, -1)
        return pm.KumaraswamyStickBreaking(a, b)

    def guide(self, x):
        pyro.module("autoencoder", self)
        weights, normals = self.weights(x), self.head(self.body(x))
        with pyro.plate("images", len(x)):
            log_weights = weights.log_weights(pyro.sample("weights", weights))
            components = normals.locs, normals.coord_scale
            pyro.sample("z", pm.MixtureOfDiagNormals(*components, log_weights))


pyro.set_rng_seed(0)
own_weights = OwnWeights()
elbos["weights of each image"] = fit(own_weights, steps=1500)
expected = own_weights.weights(grey).mean.detach()  # (1797, 15)
found["weights of each image"] = information(expected.argmax(-1))
used = torch.special.entr(expected).sum(-1).exp().mean().item()
print(f"mutual information {found['weights of each image']:.2f}, {used:.1f} of {K} weights in use")
print({name: round(elbo, 2) for name, elbo in elbos.items()})

# %%
# There are no clusters: all images use all components, with nearly the same weights, and the ELBO
# is below that of one Normal. It cannot be otherwise: where all components of the prior are the
# same, the latent given the weights is one standard Normal whatever they are. So an image says
# nothing of its weights, the posterior of which is their prior. And components in several places,
# all of which have to be decoded to the same image, are a burden for the decoder.
#
# One mixture for all
# -------------------
#
# What makes clusters is a prior whose components lie in different places, and which has to explain
# all images by the same ones. ``MixturePrior`` learns them: ``init_from`` starts it at the
# encodings of the autoencoder with one Normal, by expectation maximization, and then everything
# is trained on. An image's cluster is the component that is most responsible for its encoding.

autoencoder.prior = MixturePrior(SIZE, K).init_from(autoencoder.encoded())
elbos["one mixture"] = fit(autoencoder, steps=2000)
with torch.no_grad():
    prior = autoencoder.prior()
    clusters = prior.responsibilities(autoencoder.encoded()).argmax(-1)
    decoded = autoencoder.decoder(prior.locs).sigmoid()  # (15, 64)
found["one mixture"] = information(clusters)
found["scikit-learn, latents: one mixture"] = by_scikit_learn(autoencoder.encoded())
for name, value in found.items():
    print(f"{name:36} {value:.2f}")
print({name: round(elbo, 2) for name, elbo in elbos.items()})

# %%
# Now there are, and the ELBO has gained most of a nat. (Scikit-learn's mixtures have full
# covariances, and those of the prior diagonal ones: hence the clusters that scikit-learn finds in
# the latents know a little more of the digits than the prior's own. They are best in the latents
# of the mixture, better than among the pixels.)
#
# Below is what the decoder makes of the mean of each component, and how many images of each digit
# belong to it. Most clusters are one digit in one style; 3 and 9 share one, and so do 4 and 8.

counts = torch.zeros(10, K)
counts.index_put_((torch.as_tensor(labels), clusters), torch.ones(len(labels)), accumulate=True)
order = (counts.argmax(0) - counts.amax(0) / counts.sum(0).clamp(min=1)).argsort()

figure, (top, bottom) = plt.subplots(
    2, 1, figsize=(9, 5), height_ratios=(1, 5), sharex=True, layout="constrained"
)
top.imshow(
    decoded[order].reshape(K, 8, 8).transpose(0, 1).reshape(8, 8 * K).numpy(),
    cmap="gray_r",
    extent=(-0.5, K - 0.5, 0, 1),
    aspect="auto",
)
top.set(yticks=[], title="means of the components, decoded")
picture = bottom.imshow(counts[:, order].numpy(), cmap="Blues", aspect="auto")
bottom.set(xlabel="cluster", ylabel="digit", xticks=range(K), yticks=range(10))
figure.colorbar(picture, ax=bottom, label="images")
plt.show()

# %%
# In short
# --------
#
# - A mixture as the posterior of an image, or weights of its own, are no clusters: nothing makes
#   images share components.
# - A mixture as the prior of all images is: ``MixturePrior`` with ``init_from``. Clusters are its
#   ``responsibilities``.
# - The mathematics and more uses of random weights: :doc:`/how_to/random_weights`; more priors:
#   :doc:`/how_to/priors`.
