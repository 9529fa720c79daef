"""The base class of the mixtures whose components are rows of tensors."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple, TypeVar

import torch
from pyro.ops.provenance import detach_provenance
from torch import Size, Tensor

from pyro_mixtures.distributions.blending import Blending, Draws
from pyro_mixtures.distributions.mixture_distribution import (
    WEIGHT_GRADIENTS,
    MixtureDistribution,
)
from pyro_mixtures.distributions.parametric import ParametricDistribution, samples_first
from pyro_mixtures.distributions.validation import check_choice
from pyro_mixtures.distributions.weights import draw_index, within_group
from pyro_mixtures.velocity.clustering import plainly
from pyro_mixtures.velocity.pathwise import needs_gradient, pathwise, scored_pathwise
from pyro_mixtures.velocity.precision import at_least_single, double, double_dtype

ParametricMixtureT = TypeVar("ParametricMixtureT", bound="ParametricMixture")


class ParametricMixture(ParametricDistribution, MixtureDistribution):
    r"""A mixture whose components are given by tensors with a row for each of them.

    A family names its component parameters in ``component_parameters`` (with the shape of each
    behind the batch, in letters; the last may be None), lists its ``transports`` and supplies
    pure functions of samples ``(*B, S, D)`` and parameters that have the full batch shape ``B``:

    - ``_draw(index, *components)``: samples of the components ``index (*B, S)``, ``(*B, S, D)``;
    - ``_log_components(z, log_weights, *components)``: log densities, ``(*B, S, K)``;
    - ``_component_vjp(z, grad, responsibilities, *components)``: the components' gradients;
    - ``_component_distance(*components)``: for the grouping, ``(*B, K, K)``.

    A transport is a function ``(z, grad, log_prob, within, *components, precision=dtype)`` that
    returns the weights' contributions ``(*B, S, K)``: see
    :func:`~pyro_mixtures.velocity.displacement.displacement`. One that looks at values is
    :func:`~pyro_mixtures.velocity.opaque.opaque`.
    """

    component_parameters: ClassVar[dict[str, str]]
    transports: ClassVar[dict[str, Callable[..., Tensor]]]

    def __init__(
        self,
        components: Mapping[str, Tensor | None],
        component_logits: Tensor,
        transport: str,
        weight_gradient: str,
        validate_args: bool | None = None,
    ) -> None:
        check_choice("transport", transport, tuple(self.transports))
        check_choice("weight_gradient", weight_gradient, WEIGHT_GRADIENTS)
        self.transport, self.weight_gradient = transport, weight_gradient
        super().__init__({**components, "component_logits": component_logits}, validate_args)
        if self._validate_args:
            self._check_logits()

    @classmethod
    def _parameter_shapes(cls) -> dict[str, str]:
        return {**cls.component_parameters, "component_logits": "K"}

    def _check_logits(self) -> None:
        if not float(self.component_logits.detach().amax(-1).abs().amax()) < math.inf:
            raise ValueError(
                "Expected component_logits below +inf with a finite entry in each mixture, but got"
                f" {self.component_logits}"
            )

    def expand(self, batch_shape, _instance=None):
        new = super().expand(batch_shape, _instance)
        new.transport, new.weight_gradient = self.transport, self.weight_gradient
        return new

    @property
    def _components(self) -> tuple[Tensor, ...]:
        values = (getattr(self, name) for name in self.component_parameters)
        return tuple(value for value in values if value is not None)

    @property
    def _field_parameters(self) -> tuple[Tensor, ...]:
        """Those of the transport, if it learns."""
        return ()

    def _blended(self: ParametricMixtureT, blending: Blending) -> ParametricMixtureT:
        """A copy that blends transport and score function within each group as was learned.

        That protects from heavy tails, so groups may be chains.
        """
        new = copy.copy(self)  # without the last sample
        new.__dict__.pop("_labels", None)
        new._blending = blending
        if new._core is not new:
            new._unexpanded = new._core._blended(blending)
        return new

    def _draws_of(self, value: Tensor) -> Draws | None:
        drawn: _Drawn | None = self._known(value)
        return None if drawn is None else drawn.densities.draws

    def rsample(self, sample_shape=torch.Size()):
        core = self._core
        shape = torch.Size(sample_shape) + self.batch_shape
        count = shape[: len(shape) - len(core.batch_shape)].numel()
        with torch.no_grad():
            weights = core.component_logits.softmax(-1, dtype=double_dtype(core.component_logits))
            z = self._draw(draw_index(weights, count), *core._components)  # (*B, S, D)
        return self._reparameterized(core, z, shape)

    def reparameterize(self, value: Tensor) -> Tensor:
        """Give samples drawn elsewhere the gradients that ``rsample`` would give them.

        Args:
            value: samples of this mixture, ``(*X, D)``; their own gradient history is cut.

        Returns:
            A tensor equal to ``value``.
        """
        return self._reparameterized(*self._folded(value.detach()))

    def _reparameterized(self, core: ParametricMixture, z: Tensor, shape: Size) -> Tensor:
        """Samples ``(*B, S, D)`` of ``core``, with their gradients, as a value ``(*shape, D)``."""
        parameters = (core.component_logits, *core._components)
        known, receipt = _Densities(z), None
        learning = needs_gradient(core.component_logits, *core._field_parameters)
        transport = self.transports[self.transport] if learning else None
        vjp = functools.partial(self._vjp, transport, known)
        if self._has_score:
            groups: tuple[Tensor, ...] = ()
            if self.weight_gradient == "clustered":
                groups = (core._groups,)
                if core._blending is not None:
                    groups = (core._groups, core._blending.shares(core._groups))
                    if not torch.compiler.is_compiling():  # what is told has no place in a graph
                        known.draws = core._blending.draws()
            hybrid_vjp = functools.partial(self._vjp, None, known)
            scored_vjp = functools.partial(_scored_vjp, vjp, hybrid_vjp, len(parameters))
            z, receipt = scored_pathwise(z, scored_vjp, *parameters, *groups)
        else:
            z = pathwise(z, vjp, *parameters)
        value = samples_first(z).reshape(shape + self.event_shape)
        value = value.contiguous()  # some transforms of torch ask for it
        self._remember(value, _Drawn(known, receipt))
        return value

    def _receipt(self, value: Tensor) -> Tensor | None:
        drawn: _Drawn | None = self._known(value)
        return None if drawn is None else drawn.receipt

    def component_log_prob(self, value: Tensor) -> Tensor:
        r"""Log densities :math:`\log q_j(z)` of all components, ``(*X, D) -> (*X, K)``."""
        core, z, shape = self._folded(self._validated(value))
        z, logits, *components = at_least_single(z, core.component_logits, *core._components)
        densities = self._log_components(z, logits.log_softmax(-1), *components)
        return self._result(densities, value, shape)

    def log_prob(self, value):
        _, log_prob, shape = self._joint_log_prob(value)
        return self._result(log_prob, value, shape).squeeze(-1)

    def _log_prob_and_responsibilities(self, value: Tensor) -> tuple[Tensor, Tensor]:
        joint, log_prob, shape = self._joint_log_prob(value)
        responsibilities = self._result((joint - log_prob).exp(), value, shape)
        return self._result(log_prob, value, shape).squeeze(-1), responsibilities

    def _component_distances(self) -> Tensor:
        return plainly(self._component_distance, *double(*self._components))

    def _joint_log_prob(self, value: Tensor) -> tuple[Tensor, Tensor, Size]:
        r"""Logarithms of :math:`\pi_j q_j`, ``(*B, S, K)``, and q, and the value's batch shape.

        For the sample just drawn they are kept: its backward pass needs them, too.
        """
        core, z, shape = self._folded(self._validated(value))
        joint = self._log_joint(z, core.component_logits, *core._components)
        log_prob = joint.logsumexp(-1, keepdim=True)
        drawn: _Drawn | None = self._known(value)
        if drawn is not None:
            joint_values, values = detach_provenance(joint), detach_provenance(log_prob)
            drawn.densities.values = joint_values.detach(), values.detach()
        return joint, log_prob, shape

    @classmethod
    def _log_joint(cls, z: Tensor, logits: Tensor, *components: Tensor) -> Tensor:
        z, logits, *rest = at_least_single(z, logits, *components)
        log_weights = logits.log_softmax(-1)
        return log_weights.unsqueeze(-2) + cls._log_components(z, log_weights, *rest)

    def _result(self, x: Tensor, value: Tensor, shape: Size) -> Tensor:
        """``(*B, S, M)`` as ``(*shape, M)``, in the dtype that goes with a value."""
        dtype = torch.promote_types(value.dtype, self.component_logits.dtype)
        return samples_first(x).reshape(*shape, x.shape[-1]).to(dtype)

    @classmethod
    def _vjp(
        cls,
        transport: Callable[..., Tensor] | None,
        known: _Densities,
        z: Tensor,
        grad: Tensor,
        *parameters: Tensor,
        groups: Tensor | None = None,
        shares: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Gradients of the logits and the components from the gradient at the samples.

        ``transport`` is None where the weights get none of theirs from it. ``known`` serves if it
        is of these very samples. The transport moves within the groups, by its ``shares`` in them,
        if it is blended with the score function: ``known.draws`` is then told of what it found.
        """
        if known.z is z and known.values is not None:
            log_joint, log_prob = known.values
        else:
            log_joint = cls._log_joint(z, *parameters)
            log_prob = log_joint.logsumexp(-1, keepdim=True)  # (*B, S, 1)
        z, grad, logits, *components = (x.to(log_joint.dtype) for x in (z, grad, *parameters))
        gradients = cls._component_vjp(z, grad, (log_joint - log_prob).exp(), *components)
        if transport is None or logits.shape[-1] == 1:
            grad_logits = torch.zeros_like(logits)
        else:
            log_weights = logits.log_softmax(-1)
            within = within_group(log_weights, groups)
            precision = torch.promote_types(parameters[0].dtype, torch.float32)
            contributions = transport(z, grad, log_prob, within, *components, precision=precision)
            total = contributions.sum(-2, keepdim=True)  # (*B, 1, K)
            # of a component without weight, far away, it may have overflown
            total = total.masked_fill((log_weights == -math.inf).unsqueeze(-2), 0)
            average = (within.to(total) @ total.mT).squeeze(-1)  # (*B, K or 1)
            grad_logits = log_weights.exp() * (total.squeeze(-2) - average)
            if shares is not None:
                grad_logits = grad_logits * shares.to(grad_logits)
            if known.draws is not None and groups is not None:
                weights = log_weights.exp().unsqueeze(-2).to(contributions)
                contributions = contributions.masked_fill(weights == 0, 0)
                averages = contributions @ within.mT.to(contributions)
                known.draws.tell_transport(weights * (contributions - averages))
        return tuple(
            gradient.to(parameter.dtype)
            for gradient, parameter in zip((grad_logits, *gradients), parameters, strict=True)
        )


def _scored_vjp(
    vjp: Callable[..., tuple[Tensor, ...]],
    hybrid_vjp: Callable[..., tuple[Tensor, ...]],
    count: int,
    z: Tensor,
    grad: Tensor,
    *tensors: Tensor,
    used: bool,
) -> tuple[Tensor, ...]:
    """Gradients of samples that have a score term beside them, by whether that is ``used``.

    The first ``count`` of the ``tensors`` are the parameters. The groups follow and, if it is
    blended with the score function, the transport's shares in them. Without groups the score
    function stands for the transport.
    """
    parameters, groups = tensors[:count], tensors[count:]
    if not used:  # the samples carry the whole gradient
        return vjp(z, grad, *parameters)
    if not groups:
        return hybrid_vjp(z, grad, *parameters)
    labels, shares = (*groups, None)[:2]
    return vjp(z, grad, *parameters, groups=labels, shares=shares)


class _Densities:
    r"""Samples and, once they are known, logarithms of :math:`\pi_j q_j` and of q there.

    If they are blended, ``draws`` is to be told of their gradients.
    """

    def __init__(self, z: Tensor) -> None:
        self.z = z
        self.values: tuple[Tensor, Tensor] | None = None  # (*B, S, K) and (*B, S, 1)
        self.draws: Draws | None = None


class _Drawn(NamedTuple):
    """What is known of a sample; its graph knows the densities, and has the receipt."""

    densities: _Densities
    receipt: Tensor | None
