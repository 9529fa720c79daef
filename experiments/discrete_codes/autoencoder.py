"""Autoencoders with a discrete bottleneck: networks, what trains them, and how they are judged."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from experiments.discrete_codes.choices import ESTIMATORS, KINDS
from experiments.lab.trainer_settings import Training
from experiments.vae import fits, images
from pyro_mixtures.nn import VectorQuantize

QUANTIZERS: dict[str, dict[str, Any]] = {
    "vector quantization": {"ema_decay": 0.95, "restart_below": 0.1},
    "vector quantization by losses": {},
}
"""Options of the codebook, by the names of their rows."""
CODE_SIZE = 8
"""Of a code of a codebook."""
FEW = 256
"""Codes up to which all are summed over where the autoencoder is judged."""
JUDGED = 2000
SAMPLES = 100
"""Test images, and samples of each, by which other autoencoders are judged."""
COMMITMENT = 1.0
"""Weight of the commitment loss in nats a squared unit."""


@dataclass(frozen=True)
class Candidate:
    """An autoencoder and what trains it.

    Attributes:
        estimator: in :data:`~experiments.discrete_codes.choices.ESTIMATORS`, or one of
            :data:`QUANTIZERS`.
        kind: ``categorical`` or ``binary``.
        variables: d.
        states: K; two of binary variables.
        hidden: units of the encoder's hidden layer and of the decoder's.
        reading: of the pixels, in :data:`~experiments.vae.images.READINGS`.
    """

    estimator: str
    kind: str = "categorical"
    variables: int = 2
    states: int = 16
    hidden: int = 200
    reading: str = "dynamic"

    @property
    def nats(self) -> float:
        """What a code can tell."""
        return self.variables * math.log(self.states)


def log_likelihood(logits: Tensor, images: Tensor) -> Tensor:
    """Of binary pixels, ``(S, B)``, by logits ``(S, B, pixels)`` or for all ``(S, 1, pixels)``."""
    normalizer = nn.functional.softplus(logits).sum(-1)
    if logits.shape[1] == 1:  # each code is decoded once, and not for each image
        return logits[:, 0] @ images.mT - normalizer
    return (logits * images).sum(-1) - normalizer


class Decoder(nn.Module):
    """Logits of the pixels from the variables."""

    def __init__(self, features: int, hidden: int, pixels: int, event_dim: int) -> None:
        super().__init__()
        self.event_dim = event_dim
        self.network = nn.Sequential(
            nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, pixels)
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.network(z.flatten(-2) if self.event_dim else z)


class Encoder(nn.Module):
    """Logits of the variables from the pixels."""

    def __init__(self, pixels: int, candidate: Candidate) -> None:
        super().__init__()
        self.estimator, self.kind = candidate.estimator, KINDS[candidate.kind]
        sizes = (candidate.variables, candidate.states)
        self.shape = sizes if self.kind.event_dim else sizes[:1]
        self.network = nn.Sequential(
            nn.Linear(pixels, candidate.hidden),
            nn.ReLU(),
            nn.Linear(candidate.hidden, math.prod(self.shape)),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images).unflatten(-1, self.shape)

    def loss(self, decoder: Decoder, images: Tensor) -> Tensor:
        """Minus the bound of each image, by the estimator while training."""
        logits = self(images)
        estimator = ESTIMATORS[self.estimator if self.training else "straight-through"]
        told = estimator(self.kind, logits, lambda z: log_likelihood(decoder(z), images))
        return self.kind.divergence(logits) - told


class QuantizingEncoder(nn.Module):
    """One code of a codebook for each variable, by the nearest to a vector of the pixels."""

    kind = KINDS["categorical"]

    def __init__(self, pixels: int, candidate: Candidate) -> None:
        super().__init__()
        self.shape = (candidate.variables, CODE_SIZE)
        self.network = nn.Sequential(
            nn.Linear(pixels, candidate.hidden),
            nn.ReLU(),
            nn.Linear(candidate.hidden, math.prod(self.shape)),
        )
        self.quantize = VectorQuantize(
            candidate.states,
            CODE_SIZE,
            commitment=COMMITMENT,
            **QUANTIZERS[candidate.estimator],
        )
        self.nats = candidate.nats

    def forward(self, images: Tensor) -> Any:
        return self.quantize(self.network(images).unflatten(-1, self.shape))

    def loss(self, decoder: Decoder, images: Tensor) -> Tensor:
        """Minus the bound of each image, a code having its share of a uniform prior.

        While training with what moves the codes and holds the vectors near to them.
        """
        found = self(images)
        loss = self.nats - log_likelihood(decoder(found.quantized)[None], images).squeeze(0)
        return loss + found.codebook_loss + found.commitment_loss if self.training else loss


class Bound:
    """The loss as an objective of the trainer's kind."""

    def __call__(self, decoder: nn.Module, encoder: nn.Module) -> nn.Module:
        return _Loss(decoder, encoder)

    @torch.no_grad()
    def loss(self, decoder: nn.Module, encoder: Any, images: Tensor) -> float:
        """Of all images together."""
        return encoder.loss(decoder, images).sum().item()


class _Loss(nn.Module):
    def __init__(self, decoder: nn.Module, encoder: Any) -> None:
        super().__init__()
        self.decoder, self.encoder = decoder, encoder

    def forward(self, images: Tensor) -> Tensor:
        loss: Tensor = self.encoder.loss(self.decoder, images)
        return loss.sum()


def start(candidate: Candidate, pixels: int, seed: int) -> tuple[Decoder, Any]:
    """Decoder and encoder before they are trained."""
    pyro.set_rng_seed(seed)
    if candidate.estimator in QUANTIZERS:
        size = candidate.variables * CODE_SIZE
        encoder: nn.Module = QuantizingEncoder(pixels, candidate)
        return Decoder(size, candidate.hidden, pixels, 1), encoder
    encoder = Encoder(pixels, candidate)
    size = math.prod(encoder.shape)
    return Decoder(size, candidate.hidden, pixels, encoder.kind.event_dim), encoder


def fit(
    folder: Path, candidate: Candidate, training: Training, *, few: bool, resume: bool
) -> dict[str, Any]:
    """Train an autoencoder and judge it by test images.

    Args:
        folder: of the fit.
        candidate: what to fit.
        training: settings.
        few: with few images.
        resume: go on from a checkpoint.

    Returns:
        ``rows`` of the training, the figures of :func:`judge` and the ``parameters``.
    """
    torch.set_num_threads(1)
    data = images.load(candidate.reading)
    decoder, encoder = start(candidate, data.side**2, training.seed)
    rows = fits.train(
        folder,
        (decoder, encoder, Bound()),
        data,
        training,
        {"candidate": dataclasses.asdict(candidate)},
        further=lambda held_out: {},
        num_images=100 if few else None,
        device="cpu",
        resume=resume,
        progress=False,
    )
    decoder, encoder = decoder.eval(), encoder.eval()
    return {
        "rows": rows,
        **judge(decoder, encoder, candidate, fits.spread(data.test.images, JUDGED)),
        "parameters": {"decoder": decoder.state_dict(), "encoder": encoder.state_dict()},
    }


@torch.no_grad()
def judge(decoder: Decoder, encoder: Any, candidate: Candidate, rows: Tensor) -> dict[str, float]:
    """Figures of test images.

    Returns:
        ``elbo``, and the log evidence as ``iw_bound``: exact for few codes, else by samples and
        of one code for each image where it is quantized. ``rate``: the divergence from the prior.
        ``perplexity``: how many of its states a variable has in use, on average.
    """
    pyro.set_rng_seed(0)
    if candidate.estimator in QUANTIZERS:
        return _judge_quantized(decoder, encoder, candidate, rows)
    kind, logits = encoder.kind, encoder(rows)
    rate = kind.divergence(logits)  # (N)
    used = kind.distribution(logits).probs.mean(0)  # (d[, K])
    if not kind.event_dim:
        used = torch.stack([1 - used, used], -1)
    found = {
        "rate": rate.mean().item(),
        "perplexity": torch.special.entr(used).sum(-1).exp().mean().item(),
    }
    if candidate.states**candidate.variables <= FEW:
        values = kind.values(logits)
        told = log_likelihood(decoder(values), rows)  # (V, N)
        elbo = (kind.log_prob(logits, values).exp() * told).sum(0) - rate
        evidence = told.logsumexp(0) - candidate.nats
    else:
        terms = []
        for _ in range(SAMPLES):
            z = kind.distribution(logits).sample((1,))
            told = log_likelihood(decoder(z), rows)
            terms.append(told - candidate.nats - kind.log_prob(logits, z))
        each = torch.cat(terms)  # (S, N)
        elbo, evidence = each.mean(0), each.logsumexp(0) - math.log(SAMPLES)
    return {**found, "elbo": elbo.mean().item(), "iw_bound": evidence.mean().item()}


def _judge_quantized(
    decoder: Decoder, encoder: QuantizingEncoder, candidate: Candidate, rows: Tensor
) -> dict[str, float]:
    quantized, indices, *_ = encoder(rows)
    used = nn.functional.one_hot(indices.squeeze(-1), candidate.states).float().mean(0)  # (d, K)
    elbo = log_likelihood(decoder(quantized)[None], rows).mean().item() - candidate.nats
    found = {
        "rate": candidate.nats,
        "perplexity": torch.special.entr(used).sum(-1).exp().mean().item(),
        "elbo": elbo,
    }
    if candidate.states**candidate.variables <= FEW:
        codes = encoder.kind.values(torch.zeros(1, candidate.variables, candidate.states))
        values = encoder.quantize.lookup(codes.argmax(-1, keepdim=True))  # (V, 1, d, size)
        told = log_likelihood(decoder(values), rows)
        found["iw_bound"] = (told.logsumexp(0) - candidate.nats).mean().item()
    return found


def step(candidate: Candidate, training: Training) -> Callable[[], None]:
    """A step of a fit, to be timed."""
    data = images.load(candidate.reading)
    decoder, encoder = start(candidate, data.side**2, 0)
    batch = data.train.images[: training.batch_size].round()
    bound = _Loss(decoder, encoder)
    adam = torch.optim.Adam(bound.parameters(), lr=1e-4)

    def update() -> None:
        adam.zero_grad()
        (bound(batch) / len(batch)).backward()
        adam.step()

    return update
