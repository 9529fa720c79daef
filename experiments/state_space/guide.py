"""The guide: a structured inference network whose steps are mixtures of diagonal Normals."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_mixtures import estimators
from pyro_mixtures.distributions import MixtureOfDiagNormals
from pyro_mixtures.numerics.validation import check_choice

ESTIMATORS: dict[str, Callable[[Any], Any]] = {
    "pathwise": estimators.pathwise,
    "clustered": estimators.clustered,
    "score": estimators.score,
    # of 0.05, 0.1, 0.2 and 0.5 this temperature is the best; the density of the mixture, which the
    # paper seems to take, leaves the objective unbounded
    "gumbel_soft": functools.partial(estimators.gumbel_soft, temperature=0.1, density="nested"),
}
"""The gradients that are compared, by name: functions of a mixture."""


class MixtureGuide(nn.Module):
    r"""A guide whose steps :math:`q(z_t \mid z_{t-1}, x_{t:T})` are mixtures of K Normals.

    A recurrent network reads the observations from the last to the first. Its state h_t and the
    state before are combined (DKS) and make the mixture's parameters by a hidden layer:

    .. math::
        c_t = \tfrac{1}{2} [\tanh(W z_{t-1} + b) + h_t], \qquad
        (\mu, \sigma, \text{logits})_t = A \tanh(B c_t + d) + a

    with :math:`\sigma = \mathrm{softplus}(\cdot)` and a z_0 that is learned. The network runs once
    a call for all particles.

    The components start apart, for the modes differ in the sign of the state's first coordinate:
    the biases of their means are spread evenly from -1/2 to 1/2 in that coordinate, one
    standard deviation of the model's noise on each side. All scales start near 1/4.

    Args:
        num_components: K, at least 1.
        estimator: a name in :data:`ESTIMATORS`. ``"clustered"`` and ``"score"`` have a score
            function and need ``Trace_ELBO`` or ``BaselinedTrace_ELBO``.
        rnn_size: size of h_t.
        hidden_size: size of the hidden layer.

    Raises:
        ValueError: for ``num_components`` below 1 or an unknown ``estimator``.

    Reference:
        Krishnan, Shalit and Sontag, *Structured Inference Networks for Nonlinear State Space
        Models* (2017), https://arxiv.org/abs/1609.09869, for DKS.

    Example:
        >>> guide = MixtureGuide(2)
        >>> states, log_density = guide.sample(torch.zeros(3, 10, 2), num_samples=5)
        >>> states.shape, log_density.shape
        (torch.Size([5, 3, 10, 2]), torch.Size([5, 3]))
    """

    def __init__(
        self,
        num_components: int,
        estimator: str = "pathwise",
        rnn_size: int = 32,
        hidden_size: int = 32,
    ) -> None:
        if num_components < 1:
            raise ValueError(f"Expected num_components >= 1, but got {num_components}")
        check_choice("estimator", estimator, tuple(ESTIMATORS))
        super().__init__()
        self.num_components, self.estimator = num_components, estimator
        self.rnn = nn.GRU(2, rnn_size, batch_first=True)
        self.initial_state = nn.Parameter(torch.zeros(2))
        self.combiner = nn.Linear(2, rnn_size)
        self.hidden = nn.Linear(rnn_size, hidden_size)
        self.output = nn.Linear(hidden_size, 5 * num_components)
        with torch.no_grad():
            locs, raw_scale, logits = self._split(self.output.bias)  # views
            locs.zero_()
            if num_components > 1:
                locs[:, 0] = torch.linspace(-0.5, 0.5, num_components)
            raw_scale.fill_(math.log(math.expm1(0.25)))
            logits.zero_()

    def _split(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(*X, 5 K)`` to locs and raw scales ``(*X, K, 2)`` and logits ``(*X, K)``."""
        count = self.num_components
        normals = output[..., : 4 * count].unflatten(-1, (2, count, 2))
        return normals[..., 0, :, :], normals[..., 1, :, :], output[..., 4 * count :]

    def _contexts(self, observations: Tensor) -> Iterator[Tensor]:
        """What each step has to know of the observations from it on, ``(N, rnn_size)``."""
        backward, _ = self.rnn(observations.flip(1))
        return reversed(backward.unbind(1))

    def conditional(self, context: Tensor, previous: Tensor) -> MixtureOfDiagNormals:
        """The mixture of a step, for contexts ``(N, rnn_size)`` and states ``(*S, N, 2)``."""
        combined = 0.5 * (self.combiner(previous).tanh() + context)
        locs, raw_scale, logits = self._split(self.output(self.hidden(combined).tanh()))
        return MixtureOfDiagNormals(locs, softplus(raw_scale), logits, validate_args=False)

    def forward(self, observations: Tensor) -> None:
        """The guide of :func:`~experiments.state_space.model.model`.

        In evaluation mode (``eval()``) the mixtures are those themselves, whatever the estimator.
        """
        state: Tensor = self.initial_state
        with pyro.plate("sequences", len(observations)):
            for t, context in enumerate(self._contexts(observations), 1):
                mixture: Any = self.conditional(context, state)
                if self.training:
                    mixture = ESTIMATORS[self.estimator](mixture)
                state = pyro.sample(f"z_{t}", mixture)

    @torch.no_grad()
    def sample(self, observations: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
        """States ``(S, N, T, 2)`` and their log density ``(S, N)``, of the mixtures themselves.

        Whatever the estimator, none are relaxed.
        """
        state = self.initial_state.expand(num_samples, len(observations), 2)
        states, log_density = [], torch.zeros(())
        for context in self._contexts(observations):
            mixture = self.conditional(context, state)
            state = mixture.sample()
            log_density = log_density + mixture.log_prob(state)
            states.append(state)
        return torch.stack(states, -2), log_density
