"""A fit of lower halves, and its conditional log likelihood by importance sampling."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

from experiments.conditional_prior.model import PRIORS, Candidate, Guide, Model, halves
from experiments.lab.trainer_settings import Training
from experiments.vae import fits, images
from pyro_mixtures.diagnostics import component_summary
from pyro_mixtures.infer import BaselinedTrace_ELBO
from pyro_mixtures.numerics.validation import check_choice

JUDGED, SAMPLES = 500, 100
"""Test images, and samples of each for the bounds."""
WATCHED = 1000
"""Validation images, of which the ELBO is told after each epoch."""


def start(candidate: Candidate, pixels: int, seed: int) -> tuple[Model, Guide, Any]:
    """Model and guide before they are trained, and the objective."""
    check_choice("prior", candidate.prior, PRIORS)
    pyro.set_rng_seed(seed)
    model, guide = Model(candidate, pixels), Guide(candidate, pixels)
    return model, guide, BaselinedTrace_ELBO(max_plate_nesting=1)


def fit(
    folder: Path, candidate: Candidate, training: Training, *, few: bool, resume: bool
) -> dict[str, Any]:
    """Train a model of lower halves and judge it by those of test images.

    Args:
        folder: of the fit.
        candidate: what to fit.
        training: settings.
        few: with few images and samples.
        resume: go on from a checkpoint.

    Returns:
        ``rows`` of the training, the figures of :func:`judge` and the ``parameters``.
    """
    torch.set_num_threads(1)
    data = images.load(candidate.reading)
    held_out = images.Split(data.validation.images[:WATCHED], None)
    model, guide, elbo = start(candidate, data.side**2, training.seed)
    rows = fits.train(
        folder,
        (model, guide, elbo),
        dataclasses.replace(data, validation=held_out),
        training,
        {"candidate": dataclasses.asdict(candidate)},
        further=lambda held_out: {},
        num_images=200 if few else None,
        device="cpu",
        resume=resume,
        progress=False,
    )
    model, guide = model.eval(), guide.eval()
    test = fits.spread(data.test.images, JUDGED)[:JUDGED]
    return {
        "rows": rows,
        **judge(model, guide, test, 30 if few else SAMPLES),
        "parameters": {"model": model.state_dict(), "guide": guide.state_dict()},
    }


@torch.no_grad()
def judge(model: Model, guide: Guide, test: Tensor, num_samples: int) -> dict[str, Any]:
    """Figures of test images.

    Returns:
        ``elbo``; ``log_likelihood`` of the lower halves given the upper ones by importance
        sampling from the posterior, and of ``each`` image; ``rate``, the divergence of posterior
        and prior; ``prior_components`` that lie apart.
    """
    pyro.set_rng_seed(0)
    upper, lower = halves(test)
    if model.candidate.prior == "none":
        pixels = torch.distributions.Bernoulli(logits=model.logits(upper, None))
        each = pixels.log_prob(lower).sum(-1)
        exact = each.mean().item()
        return {"elbo": exact, "log_likelihood": exact, "each": each, "rate": 0.0}
    bounds = [
        fits.evaluate(model, guide, batch, num_samples=num_samples) for batch in test.split(200)
    ]
    each = torch.cat([bound.iw_bound for bound in bounds]).float()
    elbo = torch.cat([bound.elbo for bound in bounds]).mean().item()
    z = guide.encoder(test).sample()
    rate = guide.encoder(test).log_prob(z) - model.prior(upper).log_prob(z)
    found = {
        "elbo": elbo,
        "log_likelihood": each.mean().item(),
        "each": each,
        "rate": rate.mean().item(),
    }
    if model.candidate.prior == "conditional":
        used = component_summary(model.prior(upper))
        found["prior_components"] = used.distinct_components.mean().item()
    return found


def step(candidate: Candidate, training: Training) -> Callable[[], None]:
    """A step of a fit, to be timed."""
    data = images.load(candidate.reading)
    batch = data.train.images[: training.batch_size].round()
    return fits.update(start(candidate, data.side**2, 0), batch)
