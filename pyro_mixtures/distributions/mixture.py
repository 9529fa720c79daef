"""The base class of the mixtures: everything that does not depend on the components' family."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.score_parts import ScoreParts
from torch import Size, Tensor
from torch.distributions import constraints

from pyro_mixtures.distributions.independent_mixture import IndependentMixture, mask_tensor
from pyro_mixtures.distributions.validation import broadcast_shapes, check_choice, check_shapes
from pyro_mixtures.distributions.weights import draw_index, surely_all, within_group
from pyro_mixtures.velocity.clustering import complete_linkage, linkage_cut
from pyro_mixtures.velocity.pathwise import pathwise
from pyro_mixtures.velocity.precision import at_least_single, double, double_dtype

WEIGHT_GRADIENTS = ("pathwise", "clustered", "score")


class Mixture(TorchDistribution):
    r"""A mixture whose ``rsample`` carries gradients to its components and to its weights.

    .. math:: q(z) = \sum_j \pi_j q_j(z), \qquad \pi = \mathrm{softmax}(\text{logits})

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

    The weights' gradient is estimated as ``weight_gradient`` says:

    - ``"pathwise"``: by the transport alone; ``rsample`` on its own is unbiased for any cost. Its
      variance grows like exp(d^2 / 8) with the distance d of components in standard deviations,
      for the field carries mass through the gap: from about 4 on, ``"clustered"`` is better.
    - ``"clustered"``: by the transport within groups of overlapping components and by the score
      function between groups. ``rsample`` carries the first part *only*; the second is in
      ``score_parts``, which Pyro's ``Trace_ELBO`` reads. Elsewhere (a cost of your own,
      ``TraceMeanField_ELBO``, ``TraceGraph_ELBO``, a ``TransformedDistribution`` around the
      mixture) the gradient of the logits is biased; ``RenyiELBO`` refuses it in a guide written by
      hand.
    - ``"score"``: by the score function alone (the paper's hybrid estimator); the same warning.
    """

    has_rsample = True
    support = constraints.real_vector
    component_parameters: ClassVar[dict[str, str]]
    transports: ClassVar[dict[str, Callable[..., Tensor]]]

    component_logits: Tensor
    _last_sample: tuple[Tensor, int, _Densities] | None = None

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
        given = {**components, "component_logits": component_logits}
        parameters = {name: value for name, value in given.items() if value is not None}
        if len(parameters) < len(given):
            constraint = self.arg_constraints
            self.__dict__["arg_constraints"] = {name: constraint[name] for name in parameters}
        shapes = self._parameter_shapes()
        batch_shape, sizes = check_shapes(parameters, shapes)
        dtype = functools.reduce(torch.promote_types, (v.dtype for v in parameters.values()))
        for name, value in parameters.items():
            event_shape = tuple(sizes[letter] for letter in shapes[name])
            setattr(self, name, value.to(dtype).expand(batch_shape + event_shape))
        self.transport, self.weight_gradient = transport, weight_gradient
        if batch_shape.numel() == 0:
            validate_args = False  # torch's constraints fail for empty tensors
        super().__init__(batch_shape, torch.Size([sizes["D"]]), validate_args=validate_args)
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
        batch_shape = torch.Size(batch_shape)
        new = self._get_checked_instance(type(self), _instance)
        for name, letters in self._parameter_shapes().items():
            value = getattr(self, name)
            if value is not None:
                setattr(new, name, value.expand(batch_shape + value.shape[-len(letters) :]))
        new.__dict__["arg_constraints"] = self.arg_constraints
        new.transport, new.weight_gradient = self.transport, self.weight_gradient
        core = self._core
        if batch_shape[len(batch_shape) - len(core.batch_shape) :] == core.batch_shape:
            new._unexpanded = core
        super(Mixture, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def __getstate__(self):
        # a sample's graph can neither be copied nor pickled
        return {name: value for name, value in self.__dict__.items() if name != "_last_sample"}

    @property
    def _core(self) -> Mixture:
        """This mixture before ``expand`` added dimensions on the left.

        Those (a plate of particles, say) hold samples of one mixture, not many mixtures.
        """
        return self.__dict__.get("_unexpanded", self)

    @property
    def _components(self) -> tuple[Tensor, ...]:
        values = (getattr(self, name) for name in self.component_parameters)
        return tuple(value for value in values if value is not None)

    @property
    def num_components(self) -> int:
        """K."""
        return self.component_logits.shape[-1]

    @property
    def log_weights(self) -> Tensor:
        """Normalized logarithms of the weights, ``(*B, K)``."""
        return self.component_logits.log_softmax(-1)

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

    def _reparameterized(self, core: Mixture, z: Tensor, shape: Size) -> Tensor:
        """Samples ``(*B, S, D)`` of ``core``, with their gradients, as a value ``(*shape, D)``."""
        parameters = (core.component_logits, *core._components)
        groups = (core._same_group,) if self.weight_gradient == "clustered" else ()
        transport = None if self.weight_gradient == "score" else self.transports[self.transport]
        known = _Densities(z)
        vjp = functools.partial(self._vjp, transport, known, len(parameters))
        z = pathwise(z, vjp, *parameters, *groups)
        value = _samples_first(z).reshape(shape + self.event_shape)
        if not (torch.compiler.is_compiling() or value.is_inference()):  # no versions there
            self._last_sample = (value, value._version, known)
        return value

    def component_log_prob(self, value: Tensor) -> Tensor:
        r"""Log densities :math:`\log q_j(z)` of all components, ``(*X, D) -> (*X, K)``."""
        core, z, shape = self._folded(self._validated(value))
        z, logits, *components = at_least_single(z, core.component_logits, *core._components)
        densities = self._log_components(z, logits.log_softmax(-1), *components)
        return self._result(densities, value, shape)

    def responsibilities(self, value: Tensor) -> Tensor:
        r"""Posterior probabilities :math:`\pi_j q_j(z) / q(z)` of the components, ``(*X, K)``."""
        joint, log_prob, shape = self._joint_log_prob(value)
        return self._result((joint - log_prob).exp(), value, shape)

    def log_prob(self, value):
        _, log_prob, shape = self._joint_log_prob(value)
        return self._result(log_prob, value, shape).squeeze(-1)

    def score_parts(self, x, *args, **kwargs):
        r"""Pyro's terms of a surrogate objective.

        For ``weight_gradient`` other than ``"pathwise"`` the score function's product with the
        cost completes the gradient of the logits. It has the gradient of
        :math:`\sum_C r_C \log \pi_C` with :math:`r_C = \sum_{j \in C} r_j` held fixed.
        """
        if not self.has_rsample:  # set so by has_rsample_(False)
            return super().score_parts(x)
        joint, log_prob, shape = self._joint_log_prob(x)
        density = self._result(log_prob, x, shape).squeeze(-1)
        if not self._has_score:
            return ScoreParts(density, 0, density)  # type: ignore[arg-type]
        responsibilities = self._result((joint - log_prob).detach().exp(), x, shape)
        return ScoreParts(density, self._group_score(responsibilities), density)

    def to_event(self, reinterpreted_batch_ndims=None):
        event = super().to_event(reinterpreted_batch_ndims)
        if event is self or self.weight_gradient == "pathwise":
            return event
        return IndependentMixture(self, event.reinterpreted_batch_ndims)

    def mask(self, mask):
        if self.weight_gradient != "pathwise":
            mask = mask_tensor(mask, self.batch_shape, self.component_logits)
        return super().mask(mask)

    def _group_score(self, responsibilities: Tensor) -> Tensor:
        r"""The score function, ``(*X, K) -> (*X,)``.

        It is :math:`\sum_j c_j \log \pi_j` with constants :math:`c_j = r_C \pi_j / \pi_C`, which
        stays finite for zero weights.
        """
        log_weights = self._core.log_weights
        if self.weight_gradient == "score":
            share = responsibilities.to(log_weights)  # (*X, K)
        else:
            weights = log_weights.detach().exp().unsqueeze(-2)  # (*B, 1, K)
            same = self._core._same_group.to(weights)
            group_weight = (weights @ same).clamp_min(torch.finfo(weights.dtype).tiny)
            group = responsibilities.to(weights).unsqueeze(-2) @ same  # r_C, (*X, 1, K)
            share = (group * (weights / group_weight)).squeeze(-2)
        return (share * log_weights.masked_fill(share == 0, 0)).sum(-1)

    def _joint_log_prob(self, value: Tensor) -> tuple[Tensor, Tensor, Size]:
        r"""Logarithms of :math:`\pi_j q_j`, ``(*B, S, K)``, and q, and the value's batch shape.

        For the sample just drawn they are kept: its backward pass needs them, too.
        """
        core, z, shape = self._folded(self._validated(value))
        joint = self._log_joint(z, core.component_logits, *core._components)
        log_prob = joint.logsumexp(-1, keepdim=True)
        if self._last_sample is not None:
            sample, version, known = self._last_sample
            if value is sample and value._version == version:  # not changed in place
                known.values = joint.detach(), log_prob.detach()
        return joint, log_prob, shape

    @classmethod
    def _log_joint(cls, z: Tensor, logits: Tensor, *components: Tensor) -> Tensor:
        z, logits, *rest = at_least_single(z, logits, *components)
        log_weights = logits.log_softmax(-1)
        return log_weights.unsqueeze(-2) + cls._log_components(z, log_weights, *rest)

    def _validated(self, value: Tensor) -> Tensor:
        if self._validate_args and value.numel():  # torch's constraints fail for empty tensors
            self._validate_sample(value)
        return value

    def _result(self, x: Tensor, value: Tensor, shape: Size) -> Tensor:
        """``(*B, S, M)`` as ``(*shape, M)``, in the dtype that goes with a value."""
        dtype = torch.promote_types(value.dtype, self.component_logits.dtype)
        return _samples_first(x).reshape(*shape, x.shape[-1]).to(dtype)

    def _folded(self, value: Tensor) -> tuple[Mixture, Tensor, Size]:
        """The mixture to use for a value, the value as ``(*B, S, D)`` of it, and its own batch."""
        core = self._core
        shape = broadcast_shapes(value.shape[:-1], self.batch_shape)
        batch = shape[len(shape) - len(core.batch_shape) :]
        if batch != core.batch_shape:
            core = core.expand(batch)
        if value.shape[:-1] != shape:
            value = value.expand(shape + self.event_shape)
        count = shape[: len(shape) - len(batch)].numel()
        value = value.reshape(count, *batch, *self.event_shape)
        return core, value.movedim(0, -2) if batch else value, shape

    @property
    def _has_score(self) -> bool:
        """Whether a score term is due: not for components that are all one group."""
        if self.weight_gradient == "clustered":
            return not surely_all(self._core._same_group)
        return self.weight_gradient == "score"

    @property
    def _same_group(self) -> Tensor:
        """Which pairs of components overlap and so share a group, ``(*B, K, K)``.

        Any grouping is unbiased that does not depend on the sample, so one that was kept while the
        parameters moved on is, too.
        """
        if "_groups" not in self.__dict__:
            if torch.compiler.is_compiling():  # which knows no inference mode to leave
                self._groups = self._find_groups()
            else:
                with torch.inference_mode(False):
                    self._groups = self._find_groups()
        return self._groups

    def _find_groups(self) -> Tensor:
        try:
            with torch.no_grad():
                distance = self._component_distance(*double(*self._components))
                labels = complete_linkage(distance, linkage_cut(self.event_shape[0]))
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            raise NotImplementedError(
                "weight_gradient='clustered' looks at values, which torch.func.vmap does not let"
                " it; use 'pathwise' or 'score', or a batch shape instead of vmap"
            ) from error
        return labels.unsqueeze(-1) == labels.unsqueeze(-2)

    @classmethod
    def _vjp(
        cls,
        transport: Callable[..., Tensor] | None,
        known: _Densities,
        count: int,
        z: Tensor,
        grad: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        """Gradients of the logits and the components from the gradient at the samples.

        ``transport`` is None where the weights get theirs from the score function alone. ``known``
        serves if it is of these very samples. The first ``count`` of the ``tensors`` are the
        parameters; a last one holds the groups, if there are any.
        """
        parameters, groups = tensors[:count], tensors[count:]
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
            within = within_group(log_weights, *groups)
            precision = torch.promote_types(parameters[0].dtype, torch.float32)
            contributions = transport(z, grad, log_prob, within, *components, precision=precision)
            total = contributions.sum(-2, keepdim=True)  # (*B, 1, K)
            # of a component without weight, far away, it may have overflown
            total = total.masked_fill((log_weights == -math.inf).unsqueeze(-2), 0)
            average = (total * within).sum(-1)  # (*B, K or 1)
            grad_logits = log_weights.exp() * (total.squeeze(-2) - average)
        return tuple(
            gradient.to(parameter.dtype)
            for gradient, parameter in zip((grad_logits, *gradients), parameters, strict=True)
        )


class _Densities:
    r"""Samples and, once they are known, logarithms of :math:`\pi_j q_j` and of q there."""

    def __init__(self, z: Tensor) -> None:
        self.z = z
        self.values: tuple[Tensor, Tensor] | None = None  # (*B, S, K) and (*B, S, 1)


def _samples_first(x: Tensor) -> Tensor:
    """``(*B, S, M) -> (S, *B, M)``."""
    return x if x.dim() == 2 else x.movedim(-2, 0)
