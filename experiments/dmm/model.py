"""The deep Markov model: a gated transition, and notes that are independent given a state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import softplus

from experiments.dmm.chorales import there


class Transition(nn.Module):
    r"""The distribution of the next state, a Normal (Krishnan, Shalit and Sontag, section 5).

    .. math::
        g = \sigma(\mathrm{MLP}(z)), \quad h = \mathrm{MLP}(z), \quad
        \mu = (1 - g) (W z + b) + g h, \quad \sigma = \mathrm{softplus}(A \, \mathrm{relu}(h) + a)

    W starts at the identity, b at zero.

    Args:
        latent: size of a state.
        hidden: size of the hidden layers.
    """

    def __init__(self, latent: int, hidden: int) -> None:
        super().__init__()
        self.gate = _perceptron(latent, hidden, latent)
        self.proposal = _perceptron(latent, hidden, latent)
        self.linear = nn.Linear(latent, latent)
        self.scale = nn.Linear(latent, latent)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(latent))
            self.linear.bias.zero_()

    def forward(self, previous: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the next state, each ``(*X, D)``."""
        gate, proposal = self.gate(previous).sigmoid(), self.proposal(previous)
        loc = torch.lerp(self.linear(previous), proposal, gate)
        return loc, softplus(self.scale(proposal.relu()))


class MarkovChain(TorchDistribution):
    r"""States :math:`z_t \sim N(\mu(z_{t-1}), \sigma(z_{t-1}))`, all densities in one product.

    The event shape is ``(T, D)``; steps that a mask leaves out have no density.

    Args:
        transition: from states to mean and standard deviation of the next one.
        initial: the state before the first, ``(D,)``.
        mask: ``(N, T)``.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.independent(constraints.real, 2)

    def __init__(self, transition: Transition, initial: Tensor, mask: Tensor) -> None:
        self.transition, self.initial, self.mask_of_steps = transition, initial, mask
        shape = mask.shape[:-1], Size([mask.shape[-1], len(initial)])
        super().__init__(*shape, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> MarkovChain:
        mask = self.mask_of_steps.expand(*batch_shape, -1)
        return MarkovChain(self.transition, self.initial, mask)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        state, states = self.initial.expand(*shape, -1), []
        for _ in range(self.event_shape[0]):
            state = torch.normal(*self.transition(state))
            states.append(state)
        return torch.stack(states, -2)

    def log_prob(self, value: Tensor) -> Tensor:
        loc, scale = self.transition(before(value, self.initial))
        each = dist.Normal(loc, scale, validate_args=False).log_prob(value).sum(-1)
        return (each * self.mask_of_steps).sum(-1)


class Model(nn.Module):
    """Notes ``(N, T, 88)`` by a chain of states, in the plate ``sequences``.

    Args:
        notes: in a time step.
        latent: size of a state.
        emission: size of the emitter's two hidden layers.
        transition: size of the transition's.
    """

    def __init__(self, notes: int, latent: int, emission: int, transition: int) -> None:
        super().__init__()
        self.initial = nn.Parameter(torch.zeros(latent))
        self.transition = Transition(latent, transition)
        self.emitter = nn.Sequential(
            nn.Linear(latent, emission), nn.ReLU(), *_perceptron(emission, emission, notes)
        )

    def forward(self, rolls: Tensor, lengths: Tensor) -> None:
        """Of rolls ``(N, T, notes)`` that are padded behind ``lengths``, ``(N,)``."""
        mask = there(rolls, lengths)
        with pyro.plate("sequences", len(rolls)):
            z = pyro.sample("z", MarkovChain(self.transition, self.initial, mask))
            notes = dist.Bernoulli(logits=self.emitter(z), validate_args=False)
            pyro.sample("x", notes.to_event(1).mask(mask).to_event(1), obs=rolls)

    @torch.no_grad()
    def sample(self, num_steps: int) -> Tensor:
        """The probabilities of the notes along a sequence of states, ``(T, notes)``."""
        mask = self.initial.new_ones(num_steps)
        return self.emitter(MarkovChain(self.transition, self.initial, mask).sample()).sigmoid()


def before(states: Tensor, initial: Tensor) -> Tensor:
    """The state before each, ``(*X, T, D) -> (*X, T, D)``."""
    first = initial.expand_as(states[..., :1, :])
    return torch.cat([first, states[..., :-1, :]], -2)


def _perceptron(features: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
