"""The guide: a network that reads the notes backward and makes a mixture for each time step."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from experiments.dmm.chain import MixtureChain, RelaxedChain
from experiments.dmm.chorales import there
from experiments.dmm.recurrence import Combined, Steps, Tanh
from experiments.dmm.steps import MixtureSteps, NormalSteps
from pyro_mixtures import estimators
from pyro_mixtures.components import Diagonal, Normals, Shared
from pyro_mixtures.distributions import (
    MixtureOfDiagNormals,
    MixtureOfDiagNormalsSharedCovariance,
)
from pyro_mixtures.numerics.validation import check_at_least, check_choice
from pyro_mixtures.samples.blending import Blending

RELAXATIONS: dict[str, Callable[[Any], Any]] = {
    "gumbel_soft": functools.partial(estimators.gumbel_soft, density="nested", num_nested=20),
    "gumbel_hard": estimators.gumbel_hard,
}
"""Of the mixture of a step, by name."""

ESTIMATORS = ("pathwise", "clustered", *RELAXATIONS, "score")
"""How the parameters of the mixtures get their gradients."""


class Guide(nn.Module):
    r"""A guide whose steps :math:`q(z_t \mid z_{t-1}, x_{t:T})` are mixtures of K Normals (DKS).

    A recurrent network reads the notes of each sequence from its own last step to the first. With
    its states :math:`h_t` and a state :math:`z_0` that is learned,

    .. math::
        c_t = \tfrac12 [\tanh(W z_{t-1} + b) + h_t], \qquad
        (\mu, \sigma, \mathrm{logits})_t = A c_t + a, \qquad \sigma = \mathrm{softplus}(\cdot)

    The site ``z`` is one event of all steps (:class:`~experiments.dmm.chain.MixtureChain`). In
    evaluation mode (``eval()``) the mixtures are those themselves, whatever the estimator.

    Args:
        notes: in a time step.
        latent: D, size of a state.
        rnn: size of :math:`h_t`.
        num_components: K; one makes plain Normals.
        shared: one scale for all components of a step.
        estimator: a name in :data:`ESTIMATORS`; ``"clustered"`` is blended.

    Raises:
        ValueError: for ``num_components`` below 1, and an unknown ``estimator``.
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
    ) -> None:
        check_at_least(1, num_components=num_components)
        check_choice("estimator", estimator, ESTIMATORS)
        super().__init__()
        self.latent, self.num_components, self.shared = latent, num_components, shared
        self.estimator, self.blending = estimator, Blending()
        self.initial = nn.Parameter(torch.zeros(latent))
        self.reader = nn.Linear(notes, rnn)
        self.recurrent = nn.Parameter(torch.empty(rnn, rnn).uniform_(-1, 1) / math.sqrt(rnn))
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
        mask, contexts = there(rolls, lengths), self.contexts(rolls, lengths)
        if not self.training or self.num_components == 1:
            return MixtureChain(self, contexts, mask)
        self.blending.learn()  # by what the steps before have drawn
        if self.estimator in RELAXATIONS:
            return RelaxedChain(self, contexts, mask, RELAXATIONS[self.estimator])
        return MixtureChain(self, contexts, mask, has_rsample=self.estimator != "score")

    def contexts(self, rolls: Tensor, lengths: Tensor) -> Tensor:
        """:math:`h_t`, of x_t to x_T, ``(T, N, rnn)``."""
        steps = torch.arange(rolls.shape[1], device=rolls.device).unsqueeze(-1)  # (T, 1)
        # its own inverse: steps of a sequence in reverse order, padding where it is
        reverse = torch.where(steps < lengths, lengths - 1 - steps, steps)
        rows = (reverse * len(rolls) + torch.arange(len(rolls), device=rolls.device)).flatten()
        inputs = self.reader(rolls.transpose(0, 1).flatten(0, 1)[rows])
        inputs = inputs.unflatten(0, reverse.shape)  # (T, N, rnn)
        states = Tanh.apply(inputs, self.start, self.recurrent)
        return states.flatten(0, 1).index_select(0, rows).unflatten(0, reverse.shape)

    def outputs(self, previous: Tensor, contexts: Tensor) -> Tensor:
        """Parameters of steps ``(*X, P)`` by the states before ``(*X, D)``."""
        return self.head((self.combiner(previous).tanh() + contexts) / 2)

    def steps(self) -> Steps:
        """From which states are drawn, with the gradients of this guide's estimator."""
        if self.num_components == 1:
            return NormalSteps()
        draws = self.blending.draws() if self.is_blended else None
        return MixtureSteps(self.parts, self._sizes, draws)

    def run(self, contexts: Tensor, steps: Steps) -> tuple[Tensor, Tensor, Tensor]:
        """Of ``(T, N, rnn)``: parameters and states of all steps, and a receipt."""
        combiner, head = self.combiner, self.head
        layers = combiner.weight, combiner.bias, head.weight, head.bias
        return Combined.apply(steps, contexts, self.initial, *layers)

    def parts(self, outputs: Tensor) -> tuple[Normals, Tensor]:
        """Components and logits of the mixtures with parameters ``(*X, P)``."""
        locs, raw_scale, logits = outputs.split(self._sizes, -1)
        locs = locs.unflatten(-1, (self.num_components, self.latent))
        scale = softplus(raw_scale)
        if self.shared:
            return Normals(locs, Shared(Diagonal(scale))), logits
        return Normals(locs, Diagonal(scale.view_as(locs))), logits

    def mixture(self, outputs: Tensor) -> Any:
        """The distributions with parameters ``(*X, P)``, of batch shape X."""
        if self.num_components == 1:
            locs, raw_scale = outputs.chunk(2, -1)
            return dist.Normal(locs, softplus(raw_scale), validate_args=False).to_event(1)
        components, logits = self.parts(outputs)
        kind: Any = MixtureOfDiagNormalsSharedCovariance if self.shared else MixtureOfDiagNormals
        mixture: Any = kind(*components.parameters, logits, validate_args=False)
        return mixture.blended(self.blending) if self.is_blended else mixture

    @property
    def is_blended(self) -> bool:
        """Whether the weights' gradient is in part a score term."""
        return self.training and self.estimator == "clustered"

    def get_extra_state(self) -> dict[str, Any]:
        """What was learned of the blending, for ``state_dict``."""
        return self.blending.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from a state of :meth:`get_extra_state`."""
        self.blending.load_state_dict(state)
