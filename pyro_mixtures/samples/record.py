"""What is known of samples of a mixture."""

from __future__ import annotations

import math

from pyro.ops.provenance import detach_provenance
from torch import Tensor
from torch.nn.functional import threshold

from pyro_mixtures.components import Components
from pyro_mixtures.numerics.precision import LEAST_EXPONENT, widest
from pyro_mixtures.samples.groups import Grouping
from pyro_mixtures.samples.weights import group_shares, within_group

MANY = 2**12
"""Numbers from which on it pays to bound exponents before they are too small for the processor's
fast way (:data:`~pyro_mixtures.numerics.precision.LEAST_EXPONENT`)."""


class SampleRecord:
    r"""Points, and what a mixture says of them.

    Objectives, estimators and the backward pass of the samples read it. Each thing is computed
    when it is first asked for. The sum over S samples of one mixture is a matrix product in the
    layout of all of it, ``(*B, S, K)``.

    Args:
        components: of the mixture.
        logits: of its weights, ``(*B, K)``.
        z: ``(*B, S, D)``.
        grouping: of the components.
        densities: those of z, if they are known.

    Attributes:
        twin: of the very sample that z is; it gets the densities that its backward pass will
            need.
    """

    def __init__(
        self,
        components: Components,
        logits: Tensor,
        z: Tensor,
        grouping: Grouping,
        densities: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.components, self.logits, self.z = components, logits, z
        self.grouping, self.known_densities = grouping, densities
        self.twin: SampleRecord | None = None
        self._log_weights: Tensor | None = None
        self._responsibilities: Tensor | None = None

    @property
    def component_log_prob(self) -> Tensor:
        """Of the components, ``(*B, S, K)``."""
        return self._evaluated()[1]

    def _evaluated(self) -> tuple[Tensor, Tensor]:
        """Log weights, and log densities of the components."""
        dtype = widest(self.z, self.logits, *self.components.numbers)
        log_weights = self.logits.to(dtype).log_softmax(-1)
        z = self.z.to(dtype) if self.components.numbers else self.z
        return log_weights, self.components.to(dtype).log_prob(z, log_weights)

    @property
    def densities(self) -> tuple[Tensor, Tensor]:
        r"""Logarithms of :math:`\pi_j q_j`, ``(*B, S, K)``, and of q, ``(*B, S, 1)``."""
        if self.known_densities is None:
            self.known_densities = self._densities()
            if self.twin is not None:
                joint, log_prob = (detach_provenance(x).detach() for x in self.known_densities)
                # the density is handed out, and may be changed in place
                self.twin.known_densities = joint, log_prob.clone()
        return self.known_densities

    def _densities(self) -> tuple[Tensor, Tensor]:
        compiled = self.components.compiled(self.z)
        densities = None if compiled is None else compiled.densities(self.logits, self.z)
        if densities is not None:
            return densities
        log_weights, each = self._evaluated()
        log_joint = log_weights.unsqueeze(-2) + each
        if log_joint.numel() < MANY:
            return log_joint, log_joint.logsumexp(-1, keepdim=True)
        least = log_joint.detach().amax(-1, keepdim=True) + LEAST_EXPONENT[log_joint.dtype]
        return log_joint, log_joint.clamp_min(least).logsumexp(-1, keepdim=True)

    @property
    def log_weights(self) -> Tensor:
        """Normalized, ``(*B, K)``."""
        if self._log_weights is None:
            self._log_weights = self.logits.log_softmax(-1)
        return self._log_weights

    @property
    def log_prob(self) -> Tensor:
        """Of the mixture, ``(*B, S, 1)``."""
        return self.densities[1]

    @property
    def responsibilities(self) -> Tensor:
        r""":math:`r_j = \pi_j q_j / q`, ``(*B, S, K)``."""
        if self._responsibilities is None:
            log_joint, log_prob = self.densities
            exponent = log_joint - log_prob
            if exponent.numel() < MANY:
                self._responsibilities = exponent.exp()
            else:
                least = LEAST_EXPONENT[exponent.dtype]
                bounded = exponent.clamp_min(least).exp()
                self._responsibilities = threshold(bounded, math.exp(least + 0.01), 0.0)
        return self._responsibilities

    @property
    def groups(self) -> Tensor:
        """Labels of the groups of overlapping components, ``(*B, K)``."""
        return self.grouping.labels

    def cast(self) -> SampleRecord:
        """The record in the precision of its densities."""
        dtype = self.log_prob.dtype
        z = self.z.to(dtype) if self.components.numbers else self.z
        components, logits = self.components.to(dtype), self.logits.to(dtype)
        if components is self.components and logits is self.logits and z is self.z:
            return self
        return SampleRecord(components, logits, z, self.grouping, self.densities)

    # gradients of the logits by single samples

    def transported(self, contributions: Tensor, groups: Tensor | None = None) -> Tensor:
        r""":math:`\pi_j (A_j - \sum_{k \in C} (\pi_k / \pi_C) A_k)`, of one group unless told."""
        within = within_group(self.log_weights, groups).to(contributions)
        weights = self.log_weights.exp().unsqueeze(-2).to(contributions)
        contributions = contributions.masked_fill(weights == 0, 0)
        return weights * (contributions - contributions @ within.mT)

    def scored(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        r"""The score function between groups and within them, for a cost of one.

        :math:`\pi_j (r_C / \pi_C - 1)` and :math:`r_j - r_C \pi_j / \pi_C`, each ``(*B, S, K)``.
        """
        shares = group_shares(
            self.responsibilities, self.log_weights.unsqueeze(-2), groups.unsqueeze(-2)
        )
        return shares - self.log_weights.exp().unsqueeze(-2), self.responsibilities - shares
