"""How much the gradients of the weights vary, by estimator."""

from __future__ import annotations

import copy

import pyro
import torch
from torch import Tensor

from experiments.dmm.guide import ESTIMATORS, Guide
from experiments.dmm.model import Model
from pyro_mixtures.infer import BaselinedTrace_ELBO

WARM_UP = 10
"""Draws before those that count, by which baselines and shares are learned."""


@torch.enable_grad()
def logit_variances(
    model: Model, guide: Guide, rolls: Tensor, lengths: Tensor, *, num_draws: int
) -> dict[str, float]:
    """Variances of the gradients that reach the layer of the logits, by estimator.

    Each is the sum over the weights and biases that make the logits of the variance of the
    gradient of the ELBO of a sequence, where model and guide are, whichever estimator trains
    them. What the guide has learned of blending stays as it is.

    Args:
        model: of the sequences.
        guide: with several components; of one there is nothing to tell.
        rolls: ``(N, T, notes)``.
        lengths: ``(N,)``.
        num_draws: of the gradient; below two nothing is told.
    """
    if guide.num_components == 1 or num_draws < 2:
        return {}
    found = {}
    for name in ESTIMATORS:
        own_model, own_guide = copy.deepcopy(model).train(), copy.deepcopy(guide).train()
        own_guide.estimator = name
        elbo, draws = BaselinedTrace_ELBO(max_plate_nesting=1), []
        count = own_guide.num_components
        for _ in range(WARM_UP + num_draws):
            own_guide.zero_grad()
            with pyro.validation_enabled(False):
                loss = elbo.differentiable_loss(own_model, own_guide, rolls, lengths)
            (loss / len(rolls)).backward()
            layer = own_guide.head
            assert layer.weight.grad is not None
            assert layer.bias.grad is not None
            parts = [layer.weight.grad[-count:], layer.bias.grad[-count:, None]]
            draws.append(torch.cat(parts, 1).flatten().double())
        found[f"variance_{name}"] = torch.stack(draws[WARM_UP:]).var(0).sum().item()
    return found
