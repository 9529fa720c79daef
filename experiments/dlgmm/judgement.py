"""What a latent space says of the digits that it was not told of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro import poutine
from scipy.stats import mode
from sklearn.metrics import normalized_mutual_info_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from experiments.dlgmm.autoencoder import MixtureEncoder
from experiments.vae import images
from experiments.vae.images import Images, Split
from pyro_mixtures.distributions import MixtureOfDiagNormals

NEIGHBOURS = (3, 5, 10)
CLUSTERS = (3, 5, 10, 15)
FITTED = 10_000
"""Images to whose latents a mixture is fitted, at most."""


def labelled(data: Images) -> tuple[Split, Split] | None:
    """Binary images with their digits, to learn from and to test by; None where these are unknown.

    The digits of the fixed binarization's training data are not known: those of MNIST's first
    50,000 images, binarized from a fixed seed, stand for them.
    """
    if data.test.digits is None:
        return None
    train = data.train
    if train.digits is None:
        train = images.load("dynamic").train
    (seen,) = images.binarized(train.images)
    return Split(seen, train.digits), data.test


@torch.no_grad()
def latents(guide: nn.Module, seen: Tensor, batch_size: int = 1000) -> Tensor:
    """A sample of what is decoded for each image, ``(N, D)``."""
    trace = poutine.trace(guide)
    values: list[Any] = [trace.get_trace(x).nodes["z"]["value"] for x in seen.split(batch_size)]
    return torch.cat(values)


def neighbour_errors(
    learned: tuple[Tensor, Tensor], tested: tuple[Tensor, Tensor]
) -> dict[int, float]:
    """Fraction of wrong digits by the majority of k neighbours, for k in :data:`NEIGHBOURS`.

    Args:
        learned: latents and their digits.
        tested: the same, of other images.
    """
    z, digits = learned
    classifier = KNeighborsClassifier(max(NEIGHBOURS)).fit(z.numpy(), digits.numpy())
    nearest = classifier.kneighbors(tested[0].numpy(), return_distance=False)  # (N, k)
    votes = digits.numpy()[nearest]
    return {
        k: float((mode(votes[:, :k], axis=1).mode != tested[1].numpy()).mean()) for k in NEIGHBOURS
    }


@torch.no_grad()
def expected_weights(encoder: MixtureEncoder, seen: Tensor) -> Tensor:
    """Of each image, ``(N, K)``: the means of the responsibilities of the posterior's samples."""
    return torch.cat([encoder(batch).weights.mean for batch in seen.split(1000)])


@torch.no_grad()
def distinct(encoder: MixtureEncoder, seen: Tensor, num_samples: int = 20) -> float:
    """How many components the posterior of an image has, geometric mean over images.

    The exponential of the mutual information of component and sample under the expected weights:
    1 where components lie on each other, or one has all the weight.
    """
    weights, locs, scales = encoder(seen)
    posterior = MixtureOfDiagNormals(locs, scales, weights.mean.log(), validate_args=False)
    responsibilities = posterior.responsibilities(posterior.sample((num_samples,)))
    gain = torch.special.entr(posterior.log_weights.exp()).sum(-1)
    gain = gain - torch.special.entr(responsibilities).sum(-1)  # (num_samples, N)
    return gain.mean().exp().item()


def information(clusters: Tensor, digits: Tensor) -> float:
    """Normalized mutual information of two labels of the same images."""
    return float(normalized_mutual_info_score(digits.numpy(), clusters.numpy()))


def mixture_informations(
    learned: Tensor, tested: tuple[Tensor, Tensor], counts: Sequence[int] = CLUSTERS
) -> dict[int, float]:
    """:func:`information` of the components of scikit-learn's mixtures of so many Normals.

    Args:
        learned: latents that they are fitted to.
        tested: latents and digits of other images.
        counts: of components.
    """
    z = learned[:: max(1, len(learned) // FITTED)].double().numpy()
    found = {}
    for count in counts:
        # sticks next to 0 have hardly any variance
        mixture = GaussianMixture(count, random_state=0, reg_covar=1e-5).fit(z)
        clusters = torch.from_numpy(mixture.predict(tested[0].double().numpy()))
        found[count] = information(clusters, tested[1])
    return found


def perplexity(weights: Tensor) -> Tensor:
    """The exponential of the entropy of weights ``(*B, K)``."""
    return torch.special.entr(weights).sum(-1).exp()
