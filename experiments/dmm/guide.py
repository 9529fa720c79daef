"""The guide: a network that reads the notes backward and makes a mixture for each time step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from experiments.dmm.chain import MixtureChain
from experiments.dmm.chorales import there
from pyro_mixtures import estimators
from pyro_mixtures.distributions import (
    MixtureOfDiagNormals,
    MixtureOfDiagNormalsSharedCovariance,
)
from pyro_mixtures.numerics.validation import check_at_least, check_choice
from pyro_mixtures.samples.blending import Blending

ESTIMATORS: dict[str, Callable[[Any], Any]] = {
    "pathwise": estimators.pathwise,
    "clustered": estimators.clustered,
    "gumbel_soft": functools.partial(estimators.gumbel_soft, density="nested", num_nested=20),
    "gumbel_hard": estimators.gumbel_hard,
    "score": estimators.score,
}
"""Gradients of a step's parameters by name: functions of a mixture."""

CELLS: dict[str, Callable[[int, int], nn.RNNBase]] = {"tanh": nn.RNN, "gru": nn.GRU}
"""Recurrent networks by name."""


class Guide(nn.Module):
    r"""A guide whose steps :math:`q(z_t \mid z_{t-1}, x_{t:T})` are mixtures of K Normals (DKS).

    A recurrent network reads the notes of each sequence from its own last step to the first. With
    its states :math:`h_t` and a state :math:`z_0` that is learned,

    .. math::
        c_t = \tfrac12 [\tanh(W z_{t-1} + b) + h_t], \qquad
        (\mu, \sigma, \mathrm{logits})_t = A c_t + a, \qquad \sigma = \mathrm{softplus}(\cdot)

    What :math:`h_t` contributes to the parameters is one product for all steps.

    The site ``z`` is one event of all steps (:class:`~experiments.dmm.chain.MixtureChain`). In
    evaluation mode (``eval()``) the mixtures are those themselves, whatever the estimator.

    Args:
        notes: in a time step.
        latent: D, size of a state.
        rnn: size of :math:`h_t`.
        num_components: K; one makes plain Normals.
        shared: one scale for all components of a step.
        estimator: a name in :data:`ESTIMATORS`; ``"clustered"`` is blended.
        cell: a name in :data:`CELLS`.

    Raises:
        ValueError: for ``num_components`` below 1, an unknown ``estimator`` or ``cell``.
    """

    initial: Tensor

    def __init__(
        self,
        notes: int,
        latent: int,
        rnn: int,
        num_components: int,
        *,
        shared: bool = False,
        estimator: str = "clustered",
        cell: str = "tanh",
    ) -> None:
        check_at_least(1, num_components=num_components)
        check_choice("estimator", estimator, tuple(ESTIMATORS))
        check_choice("cell", cell, tuple(CELLS))
        super().__init__()
        self.latent, self.num_components, self.shared = latent, num_components, shared
        self.estimator, self.blending = estimator, Blending()
        self.initial = nn.Parameter(torch.zeros(latent))
        self.rnn = CELLS[cell](notes, rnn)
        self.start = nn.Parameter(torch.zeros(rnn))
        self.combiner = nn.Linear(latent, rnn)
        self.head = nn.Linear(rnn, sum(self._sizes))

    @property
    def _sizes(self) -> tuple[int, int, int]:
        """Of the outputs: means, scales and logits."""
        count, latent = self.num_components, self.latent
        return count * latent, latent if self.shared else count * latent, count * (count > 1)

    def forward(self, rolls: Tensor, lengths: Tensor) -> None:
        """The guide of :class:`~experiments.dmm.model.Model`."""
        with pyro.plate("sequences", len(rolls)):
            pyro.sample("z", self.chain(rolls, lengths))

    def chain(self, rolls: Tensor, lengths: Tensor) -> MixtureChain:
        """The distribution of the states of sequences ``(N, T, notes)``."""
        mask, estimator = there(rolls, lengths), None
        if self.training and self.num_components > 1:
            estimator = self.estimated
            self.blending.learn()  # by what the steps before have drawn
        is_score = self.estimator == "score" and estimator is not None
        return MixtureChain(self, self.contexts(rolls, lengths), mask, estimator, not is_score)

    def estimated(self, mixture: Any) -> Any:
        """A mixture with the estimator of this guide."""
        mixture = ESTIMATORS[self.estimator](mixture)
        return mixture.blended(self.blending) if self.estimator == "clustered" else mixture

    def contexts(self, rolls: Tensor, lengths: Tensor) -> Tensor:
        """What x_t to x_T contribute to the parameters of step t, ``(T, N, P)``."""
        steps = torch.arange(rolls.shape[1], device=rolls.device).unsqueeze(-1)  # (T, 1)
        # its own inverse: steps of a sequence in reverse order, padding where it is
        reverse = torch.where(steps < lengths, lengths - 1 - steps, steps).unsqueeze(-1)
        backward = rolls.transpose(0, 1).take_along_dim(reverse, 0)  # (T, N, notes)
        start = self.start.expand(1, len(rolls), -1).contiguous()
        states = self.rnn(backward, start)[0].take_along_dim(reverse, 0)  # (T, N, rnn)
        return linear(states, 0.5 * self.head.weight, self.head.bias)

    def outputs(self, previous: Tensor, contexts: Tensor) -> Tensor:
        """Parameters of steps ``(*X, P)`` by the states before ``(*X, D)``."""
        return contexts + linear(self.combiner(previous).tanh(), 0.5 * self.head.weight)

    def mixture(self, outputs: Tensor) -> Any:
        """The distributions with these parameters, of batch shape X."""
        locs, raw_scale, logits = outputs.split(self._sizes, -1)
        scale = softplus(raw_scale)
        if self.num_components == 1:
            return dist.Normal(locs, scale, validate_args=False).to_event(1)
        locs = locs.unflatten(-1, (self.num_components, self.latent))
        if self.shared:
            return MixtureOfDiagNormalsSharedCovariance(locs, scale, logits, validate_args=False)
        scale = scale.unflatten(-1, (self.num_components, self.latent))
        return MixtureOfDiagNormals(locs, scale, logits, validate_args=False)

    def get_extra_state(self) -> dict[str, Any]:
        """What was learned of the blending, for ``state_dict``."""
        return self.blending.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from a state of :meth:`get_extra_state`."""
        self.blending.load_state_dict(state)
