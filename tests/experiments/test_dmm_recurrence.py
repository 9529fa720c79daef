"""Recurrent networks as one node: the values and gradients of the same loop by autograd."""

import pytest
import torch
from torch.nn.functional import softplus

from experiments.dmm.recurrence import Combined, Tanh
from experiments.dmm.steps import MixtureSteps, NormalSteps
from pyro_mixtures.components import Diagonal, Normals
from pyro_mixtures.distributions import MixtureOfDiagNormals


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def leaf(*shape):
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def gradients(values, tensors):
    """By a loss in which each value counts differently."""
    loss = sum((x * torch.arange(1, 1 + x.numel()).view_as(x).sin()).sum() for x in values)
    return torch.autograd.grad(loss, tensors)


def test_the_recurrence_that_reads():
    inputs, start, weight = leaf(4, 3, 5), leaf(5), leaf(5, 5)
    state, expected = start.expand(3, 5), []
    for x in inputs:
        state = torch.tanh(x + state @ weight.mT)
        expected.append(state)
    expected = torch.stack(expected)
    found = Tanh.apply(inputs, start, weight)
    torch.testing.assert_close(found, expected)
    tensors = inputs, start, weight
    for mine, theirs in zip(
        gradients([found], tensors), gradients([expected], tensors), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def normal(outputs):
    loc, raw = outputs.chunk(2, -1)
    return torch.addcmul(loc, softplus(raw), torch.randn_like(loc))


def parts(outputs):
    locs, raw, logits = outputs.split((4, 4, 2), -1)
    scale = softplus(raw).unflatten(-1, (2, 2))
    return Normals(locs.unflatten(-1, (2, 2)), Diagonal(scale)), logits


def mixture(outputs):
    components, logits = parts(outputs)
    q = MixtureOfDiagNormals(*components.given, logits, weight_gradient="pathwise")
    return q.rsample()


@pytest.mark.parametrize(
    ("steps", "sample", "size"),
    [(NormalSteps(), normal, 4), (MixtureSteps(parts, (4, 4, 2), None), mixture, 10)],
)
def test_the_recurrence_of_states(steps, sample, size):
    contexts, initial = leaf(4, 3, 5), leaf(2)
    weight, bias, head, head_bias = leaf(5, 2), leaf(5), leaf(size, 5), leaf(size)
    tensors = contexts, initial, weight, bias, head, head_bias
    torch.manual_seed(1)
    state, outputs, states = initial.expand(3, 2), [], []
    for context in contexts:
        hidden = (torch.tanh(state @ weight.mT + bias) + context) / 2
        outputs.append(hidden @ head.mT + head_bias)
        state = sample(outputs[-1])
        states.append(state)
    expected = torch.stack(outputs), torch.stack(states)
    torch.manual_seed(1)
    *found, _ = Combined.apply(steps, *tensors)
    torch.testing.assert_close(found, list(expected))
    for mine, theirs in zip(gradients(found, tensors), gradients(expected, tensors), strict=True):
        torch.testing.assert_close(mine, theirs)
