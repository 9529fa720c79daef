"""What the steps of a chain are drawn from, and how gradients come back from what was drawn."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyro_mixtures.components import Normals
from pyro_mixtures.components.compiled_normals import CompiledNormals
from pyro_mixtures.distributions.mixture_distribution import MixtureDistribution
from pyro_mixtures.samples.blending import Draws
from pyro_mixtures.samples.gradients import Rule, sample_gradients
from pyro_mixtures.samples.groups import Grouping
from pyro_mixtures.samples.record import SampleRecord
from pyro_mixtures.samples.weights import draw_index, group_shares


class NormalSteps:
    """Normals of means and softplus of scales: parameters ``(N, 2 D)``."""

    draws: Draws | None = None

    def draw(self, outputs: Tensor) -> Tensor:
        loc, raw = outputs.chunk(2, -1)
        return torch.addcmul(loc, softplus(raw), torch.randn_like(loc))

    def pullback(self, outputs: Tensor, states: Tensor, used: bool) -> NormalPullback:
        return NormalPullback(outputs, states)


class NormalPullback:
    """The gradients of Normals at their draws."""

    def __init__(self, outputs: Tensor, states: Tensor) -> None:
        loc, raw = outputs.chunk(2, -1)
        self.slopes = (states - loc) / softplus(raw) * raw.sigmoid()  # (T, N, D)

    def __call__(self, place: int, grad: Tensor) -> tuple[Tensor, ...]:
        return grad, grad * self.slopes[place]

    def end(self) -> None:
        """There is nothing to do."""


class MixtureSteps:
    """Mixtures of diagonal Normals whose scales are a softplus.

    Compiled loops are called as they are where they serve: a step costs little more than they do.

    Args:
        parts: of parameters ``(*X, P)``: components and logits.
        sizes: of means, scales and logits among the parameters.
        draws: learns of transport and score function, if there is a score term.
    """

    def __init__(
        self,
        parts: Callable[[Tensor], tuple[Normals, Tensor]],
        sizes: tuple[int, int, int],
        draws: Draws | None,
    ) -> None:
        self.parts, self.sizes, self.draws = parts, sizes, draws

    def draw(self, outputs: Tensor) -> Tensor:
        components, logits = self.parts(outputs)
        locs, scale = components.parameters
        drawn = CompiledNormals(locs, scale, {}).draw(logits, 1)
        z = components.draw(draw_index(logits.softmax(-1), 1)) if drawn is None else drawn[0]
        return z.squeeze(-2)

    def pullback(self, outputs: Tensor, states: Tensor, used: bool) -> MixturePullback:
        return MixturePullback(self, outputs, states, used)


class MixturePullback:
    """The gradients of mixtures at their draws; groups and densities are those of all steps."""

    def __init__(self, steps: MixtureSteps, outputs: Tensor, states: Tensor, used: bool) -> None:
        components, logits = steps.parts(outputs)  # of batch shape (T, N)
        z, self.draws = states.unsqueeze(-2), steps.draws  # (T, N, 1, D)
        grouping = Grouping(components, chained=self.draws is not None)
        record = SampleRecord(components, logits, z, grouping)
        self.components, self.used = components, None if self.draws is None else used
        self.groups = grouping.labels if self.used else None
        self.shares: Tensor | None = None
        if self.draws is not None and self.groups is not None:
            self.shares = self.draws.shares(self.groups)
        gradient = "pathwise" if self.draws is None else "clustered"
        transport = components.transports[components.best_transport]
        self.rule = Rule(gradient, transport, False, None, True, len(components.parameters))
        self.compiled_transports = components.scale.compiled_transports(1)
        self.slopes = outputs.split(steps.sizes, -1)[1].sigmoid()
        given = z, *record.densities, logits, *components.parameters
        self.steps = list(zip(*(x.contiguous().unbind(0) for x in given), strict=True))
        self.found: list[Tensor] = []

    def __call__(self, place: int, grad: Tensor) -> tuple[Tensor, ...]:
        by_logits, by_locs, by_scale = self._gradients(place, grad.unsqueeze(-2))
        if self.shares is not None:
            self.found.append(by_logits)  # of one sample each
            by_logits = by_logits * self.shares[place]
        return by_locs.flatten(-2), by_scale.flatten(1).mul_(self.slopes[place]), by_logits

    def _gradients(self, place: int, grad: Tensor) -> tuple[Tensor, ...]:
        """Of logits, means and scales, by those at ``(N, 1, D)``."""
        z, *densities, logits, locs, scale = self.steps[place]
        groups = None if self.groups is None else self.groups[place]
        if self.used is not False:
            compiled = CompiledNormals(locs, scale, self.compiled_transports)
            known = densities[0], densities[1]
            found = compiled.sample_gradients(logits, z, grad, known, groups, self.rule.transport)
            if found is not None:
                return found[0]
        components = self.components.rebuilt(locs, scale)
        grouping = Grouping(components)
        grouping.found = groups
        here = SampleRecord(components, logits, z, grouping, (densities[0], densities[1]))
        return sample_gradients(here, self.rule, z, grad, logits, locs, scale, used=self.used)

    def end(self) -> None:
        if self.draws is not None and self.found:
            transport = torch.stack(self.found[::-1])  # (T, N, K)
            self.draws.tell_transport(transport.unsqueeze(-2))


def score(mixture: MixtureDistribution, responsibilities: Tensor, draws: Draws) -> Tensor:
    r"""Has the gradients that, times the cost, complete those of samples, ``(*X, K) -> (*X,)``.

    .. math:: \sum_j [r_C \pi_j / \pi_C + (1 - a) (r_j - r_C \pi_j / \pi_C)] \log \pi_j

    with the share a of the transport in the group C of j held fixed, as all but the logarithms.
    """
    log_weights = mixture.log_weights
    share = group_shares(responsibilities, log_weights, mixture.groups)
    own = responsibilities - share
    constants = share + (1 - draws.shares(mixture.groups)) * own
    found = (constants * log_weights).sum(-1)
    if found.requires_grad:
        found.register_hook(lambda cost: draws.tell_score(cost.unsqueeze(-1) * own))
    return found
