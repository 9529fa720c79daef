"""Encoders of the upper halves of images to a decoder that stays as it is, and their completions.

With the decoder and the prior fixed there is one posterior p(z | upper half) for all encoders:
their bounds differ by as much as their divergences from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pyro
import torch
from sklearn.neural_network import MLPClassifier
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from experiments.lab.processes import launch
from experiments.lab.trainer import Trainer
from experiments.lab.trainer_settings import Training
from experiments.vae import fits, images
from experiments.vae.autoencoder import Decoder, Guide, Model, SharedEncoder, Sizes
from pyro_mixtures.diagnostics import component_summary
from pyro_mixtures.infer import SIWAE_ELBO, BaselinedTrace_ELBO, ImportanceWeighted_ELBO

BOUNDS: dict[str, Callable[[], Any]] = {
    "elbo": lambda: BaselinedTrace_ELBO(max_plate_nesting=1),
    "iwae": lambda: ImportanceWeighted_ELBO(4, vectorize_particles=True, max_plate_nesting=1),
    "siwae": lambda: SIWAE_ELBO(max_plate_nesting=1),
}
"""As those of the autoencoders, with the four draws that ``siwae`` has of four components."""


@dataclass(frozen=True)
class HalfEncoder:
    """An encoder of upper halves and how it is trained.

    Attributes:
        num_components: K of the posterior.
        bound: in :data:`BOUNDS`.
        estimator: of the gradient, in :data:`~experiments.vae.autoencoder.ESTIMATORS`, or None
            where there is one component or each is drawn.
    """

    num_components: int
    bound: str
    estimator: str | None = None


ENCODERS = {
    "K = 1, ELBO": HalfEncoder(1, "elbo"),
    "K = 4, ELBO, clustered": HalfEncoder(4, "elbo", "clustered"),
    "K = 4, ELBO, pathwise": HalfEncoder(4, "elbo", "pathwise"),
    "K = 1, IWAE of 4 draws": HalfEncoder(1, "iwae"),
    "K = 4, SIWAE": HalfEncoder(4, "siwae"),
}
"""By the names of their rows. The first two and the last two decode as many images each."""


PAIRS = ((4, 9), (3, 5), (3, 8), (5, 8))
"""Digits of the figures' images."""
SHIFT = 0.3
"""Standard deviation by which the means of components differ at first; that of the prior is 1."""


@dataclass(frozen=True)
class Judged:
    """How much of the test images is judged by.

    Attributes:
        num_images: for the ELBO and the digits of the completions.
        num_samples: of each, at least 25, and as many completions.
        num_bounded: images, the first ones, for the importance weighted bound.
        bound_samples: of each of those.
    """

    num_images: int = 2000
    num_samples: int = 50
    num_bounded: int = 100
    bound_samples: int = 5000


class UpperHalf(nn.Module):
    """The logits of the upper half's pixels, those that come first."""

    def __init__(self, decoder: Decoder, pixels: int) -> None:
        super().__init__()
        self.decoder, self.pixels = decoder, pixels

    def forward(self, z: Tensor) -> Tensor:
        output, seen = self.decoder.output, self.pixels // 2  # the others cost as much again
        hidden = self.decoder.body(z)
        return nn.functional.linear(hidden, output.weight[:seen], output.bias[:seen])


def decoded(model: Model, z: Tensor) -> Tensor:
    """The logits of whole images, by a model of upper halves."""
    half: Any = model.decoder
    logits: Tensor = half.decoder(z)
    return logits


def upper(rows: Tensor) -> Tensor:
    """The upper halves of images, ``(N, pixels / 2)``."""
    return rows[:, : rows.shape[1] // 2]


def frozen(whole: Model, pixels: int) -> Model:
    """The model of upper halves by the decoder and prior of another, which no step changes."""
    decoder: Any = whole.decoder
    return Model(whole.prior, UpperHalf(decoder, pixels)).requires_grad_(False).eval()


def start(encoder: HalfEncoder, sizes: Sizes, pixels: int, seed: int) -> Guide:
    """The guide before it has a starting point."""
    pyro.set_rng_seed(seed)
    network = SharedEncoder(pixels // 2, sizes, sizes.latent, encoder.num_components)
    return Guide(network, encoder.estimator)


def restored(encoder: HalfEncoder, sizes: Sizes, parameters: Mapping[str, Tensor]) -> nn.Module:
    """The network of a fitted guide, in evaluation mode."""
    pixels = 2 * parameters["encoder.body.0.weight"].shape[1]
    guide = start(encoder, sizes, pixels, 0)
    guide.load_state_dict(parameters)
    return guide.encoder.eval()


@torch.no_grad()
def start_at(guide: Guide, normal: Mapping[str, Tensor]) -> None:
    """Start at an encoder to one Normal: all components are it, but for means that are shifted.

    An encoder that starts with components apart and is trained by the ELBO is left with one of
    them after some dozen steps, while none is near to any posterior yet.

    Args:
        guide: to start.
        normal: parameters of a guide of one component.
    """
    head: Any = guide.encoder.head
    network, count = head.network, head.num_components
    own = guide.state_dict()
    for name, given in normal.items():
        if own[name].shape == given.shape:
            own[name].copy_(given)
            continue
        sizes = [shape.numel() for shape in network.shapes.values()]
        for part, same in zip(
            own[name].split(sizes), given.split([size // count for size in sizes]), strict=True
        ):
            part.copy_(same.repeat(count, *(1 for _ in same.shape[1:])))
    if count > 1:
        shift = SHIFT * torch.randn(network.shapes["locs"])
        first = list(network.shapes).index("locs")
        network.output.bias.split(sizes)[first].add_(shift.flatten())


def fit(
    folder: Path,
    encoder: HalfEncoder,
    candidate: fits.Candidate,
    parameters: Mapping[str, Any],
    normal: Mapping[str, Tensor] | None,
    classifier: Mapping[str, Any],
    training: Training,
    num_images: int | None,
    judged: Judged | None,
    device: str,
    resume: bool,
) -> dict[str, Any]:
    """Train an encoder of upper halves and judge it by those of the test images.

    Args:
        folder: of the fit.
        encoder: what to fit.
        candidate: the autoencoder that the decoder is of.
        parameters: of its fit.
        normal: parameters of a guide of one component to start at, as by :func:`start_at`.
        classifier: of whole images, as of :func:`classifier`.
        training: settings.
        num_images: to train with, at most; None for all.
        judged: how much is judged by; None for an encoder that others start at.
        device: as for :func:`~experiments.lab.processes.launch`.
        resume: go on from a checkpoint.

    Returns:
        ``rows`` of the training, the ``parameters`` of the guide and the figures of
        :func:`judge`, if it is judged.
    """
    torch.set_num_threads(1)
    fabric = launch(device)
    data = images.load(candidate.reading)
    whole, _ = fits.trained(candidate, data, dict(parameters))
    model = frozen(whole, data.side**2)
    guide = start(encoder, candidate.sizes, data.side**2, training.seed)
    if normal is not None:
        start_at(guide, normal)
    trainer = Trainer(
        fabric,
        folder,
        BOUNDS[encoder.bound](),
        model,
        guide,
        training,
        {"encoder": dataclasses.asdict(encoder), "images": num_images},
        resume=resume,
        progress=False,
    )
    halves = images.BinarizedAnew(upper(data.train.images)[:num_images])
    held_out = TensorDataset(upper(data.validation.images)[: num_images and num_images // 5])
    with pyro.validation_enabled(False):  # the images are checked; the trainer meets each NaN
        rows = trainer.fit(halves, held_out)
    model, guide = model.cpu(), guide.cpu()
    return {
        "rows": rows,
        "parameters": guide.state_dict(),
        **(judge(model, guide, data.test, classifier, judged) if judged else {}),
    }


@torch.no_grad()
def judge(
    model: Model,
    guide: Guide,
    test: images.Split,
    classifier: Mapping[str, Any],
    judged: Judged,
) -> dict[str, Tensor]:
    """Of each test image: bounds, how the mixture is used, and the digits of its completions.

    Returns:
        ``elbo``, ``effective_components``, ``distinct_components`` and ``digits``, the mean
        probabilities of the digits over the completions ``(N, 10)``; ``iw_bound`` and
        ``effective_sample_size`` of the first images.
    """
    rows = test.images[: judged.num_images]
    halves = upper(rows)
    elbo = fits.evaluate(model, guide, halves, num_samples=judged.num_samples).elbo
    first = halves[: judged.num_bounded]
    bounded = fits.evaluate(model, guide, first, num_samples=judged.bound_samples)
    used = component_summary(guide.encoder(halves))
    torch.manual_seed(0)
    digits = [
        probabilities(classifier, completed(model, guide.encoder, batch, judged.num_samples))
        for batch in halves.split(500)
    ]
    return {
        "elbo": elbo.float(),
        "iw_bound": bounded.iw_bound.float(),
        "effective_sample_size": bounded.effective_sample_size.float(),
        "effective_components": used.effective_components,
        "distinct_components": used.distinct_components,
        "digits": torch.cat([each.mean(0) for each in digits]),
    }


def completed(
    model: Model, encoder: Callable[[Tensor], Any], halves: Tensor, num_samples: int
) -> Tensor:
    """Images with these upper halves and lower ones that are drawn, ``(S, N, pixels)``."""
    z = encoder(halves).sample((num_samples,))
    lower = torch.bernoulli(decoded(model, z)[..., halves.shape[1] :].sigmoid())
    return torch.cat([halves.expand(num_samples, *halves.shape), lower], -1)


def classifier(rows: Tensor, digits: Tensor, epochs: int) -> dict[str, list[Tensor]]:
    """A network from binarized pixels to digits by scikit-learn: its layers as tensors.

    The grey values ``rows`` are binarized anew in each epoch.
    """
    network = MLPClassifier((200,), alpha=1e-3, batch_size=min(200, len(rows)), random_state=0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        pixels = torch.bernoulli(rows, generator=generator).numpy()
        network.partial_fit(pixels, digits.numpy(), classes=numpy.arange(10))
    return {
        "weights": [torch.from_numpy(each).float() for each in network.coefs_],
        "biases": [torch.from_numpy(each).float() for each in network.intercepts_],
    }


def probabilities(classifier: Mapping[str, Any], rows: Tensor) -> Tensor:
    """Of the digits, ``(..., 10)``, for rows of pixels ``(..., pixels)``."""
    *hidden, last = zip(classifier["weights"], classifier["biases"], strict=True)
    for weight, bias in hidden:
        rows = (rows @ weight + bias).relu()
    weight, bias = last
    return (rows @ weight + bias).softmax(-1)


def of_pairs(digits: Tensor, scores: Tensor, count: int = 0) -> Tensor:
    """Indices of the images of the highest score, one for each of :data:`PAIRS` that there is.

    Args:
        digits: two of each image, ``(N, 2)``.
        scores: of each, above zero for an image that may be chosen, ``(N,)``.
        count: of images; other pairs of two digits, of the highest scores, fill it up.
    """
    best: dict[tuple[int, ...], int] = {}
    for place in scores.argsort(descending=True, stable=True).tolist():
        pair = tuple(sorted(digits[place].tolist()))
        if scores[place] > 0 and pair[0] != pair[1]:
            best.setdefault(pair, place)
    named = [best.pop(pair) for pair in PAIRS if pair in best]
    others = list(best.values())[: max(0, count - len(named))]
    return torch.tensor([*named, *others], dtype=torch.long)
