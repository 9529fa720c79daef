"""Mixtures whose samples carry gradients to the components and to the weights."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from pyro.distributions.score_parts import ScoreParts
from torch import Size, Tensor

from pyro_mixtures.components import Apart, Components
from pyro_mixtures.distributions.finite_mixture import FiniteMixture
from pyro_mixtures.numerics.pathwise_function import needs_gradient, pathwise, scored_pathwise
from pyro_mixtures.numerics.precision import double_dtype, is_transformed, records_graph
from pyro_mixtures.numerics.validation import check_choice
from pyro_mixtures.samples.blending import Blending, Draws
from pyro_mixtures.samples.gradients import Rule, sample_gradients
from pyro_mixtures.samples.groups import Grouping, KeptGroups
from pyro_mixtures.samples.record import SampleRecord
from pyro_mixtures.samples.remembering import recall, remember
from pyro_mixtures.samples.score_parts import (
    IndependentParts,
    ScoreTerm,
    mask_tensor,
    parts_without_gradient,
)
from pyro_mixtures.samples.shapes import folded, unfolded
from pyro_mixtures.samples.weights import draw_index, group_shares, surely_one_group

WEIGHT_GRADIENTS = ("clustered", "pathwise", "hybrid")

MixtureT = TypeVar("MixtureT", bound="MixtureDistribution")


class MixtureDistribution(FiniteMixture):
    r"""A mixture whose ``rsample`` carries gradients to its components and to its weights.

    .. math:: q(z) = \sum_j \pi_j q_j(z), \qquad \pi = \mathrm{softmax}(\text{logits})

    The weights' gradient is estimated as ``weight_gradient`` says, and is unbiased under every
    objective, whatever that makes of ``score_parts``:

    - ``"clustered"``: by the transport within groups of overlapping components and by the score
      function between groups. ``rsample`` carries the first part and ``score_parts`` the second,
      which ``Trace_ELBO``, ``TraceEnum_ELBO``, ``BaselinedTrace_ELBO`` and
      ``ImportanceWeighted_ELBO`` use. A loss that does not (a cost of your own, any other
      objective) makes the samples carry the whole gradient, as with ``"pathwise"``: the backward
      pass finds out which of the two it is (:mod:`~pyro_mixtures.numerics.score_use`). Components
      of which no means and standard deviations are known make one group.
    - ``"pathwise"``: by the transport alone. Its variance grows like exp(d^2 / 8) with the
      distance d of components in standard deviations, for the field carries mass through the gap.
    - ``"hybrid"``: by the score function alone, where it is used (the paper's hybrid estimator).

    One thing the backward pass cannot see: a loss that adds to an objective with the score term a
    term of your own of the same sample. The score function then lacks the cost of that term.

    Attributes:
        transport: the name of the field that moves weight, one of ``transports``. ``"auto"`` means
            the one of least variance, which is the first of them; of diagonal Normals in one
            dimension, where there is but one field, it is ``"telescoping"``, which needs no nodes.
        weight_gradient: see above.
        blending: what was learned of the shares of transport and score function within groups, or
            None (:class:`~pyro_mixtures.samples.blending.Blending`).
        kept_groups: keeps the groups of many components while these are trained, or None; it is
            for a mixture before ``expand``.
    """

    has_rsample = True
    transport: str
    weight_gradient: str
    blending: Blending | None = None
    kept_groups: KeptGroups | None = None

    def _set_up(
        self, components: Components, logits: Tensor, transport: str, weight_gradient: str
    ) -> None:
        """What every mixture is made of; the shapes are the caller's."""
        self.components, self.component_logits = components, logits
        check_choice("transport", transport, ("auto", *self.transports))
        transport = components.best_transport if transport == "auto" else transport
        check_choice("weight_gradient", weight_gradient, WEIGHT_GRADIENTS)
        self.transport, self.weight_gradient = transport, weight_gradient
        if not components.has_rsample:
            self.has_rsample = False

    def _check_components(self, weight_gradient: str) -> None:
        """Raise an error for those that cannot have such a gradient."""
        if self._validate_args or isinstance(self.components, Apart):
            self.components.check(exchange=weight_gradient != "hybrid")

    def _expand_into(self, new: Any, batch_shape: Size) -> None:
        """Give a mixture that is to be this one, expanded, what all have beside its parameters."""
        new.transport, new.weight_gradient = self.transport, self.weight_gradient
        new.blending, new.kept_groups = self.blending, self.kept_groups
        expanded = new.core is new
        new.components = self.components.expand(batch_shape) if expanded else new.core.components

    @property
    def transports(self) -> Mapping[str, Any]:
        """The fields that can move weight, by name."""
        return self.components.transports

    @property
    def grouping(self) -> Grouping:
        known: Grouping | None = self.__dict__.get("_grouping")
        if known is None or known.kept is not self.kept_groups:
            chained = self.blending is not None
            self._grouping = known = Grouping(self.components, chained, self.kept_groups)
        return known

    @property
    def groups(self) -> Tensor:
        """Labels of the groups of overlapping components, ``(*B, K)``."""
        labels = self.core.grouping.labels
        same = labels.shape == self.component_logits.shape
        return labels if same else labels.expand(self.component_logits.shape)

    def blended(self: MixtureT, blending: Blending | None) -> MixtureT:
        """A copy that blends transport and score function within each group as was learned.

        That protects from heavy tails, so groups may be chains.
        """
        return _copied(self, blending=blending)

    def with_weight_gradient(self: MixtureT, weight_gradient: str) -> MixtureT:
        """A copy with another ``weight_gradient``, which shares the parameters.

        Raises:
            ValueError: for an unknown ``weight_gradient``.
            NotImplementedError: for components that it does not serve.

        Example:
            >>> from pyro_mixtures.distributions import MixtureOfDiagNormals
            >>> q = MixtureOfDiagNormals(torch.zeros(2, 1), torch.ones(2, 1), torch.zeros(2))
            >>> q.with_weight_gradient("pathwise").weight_gradient, q.weight_gradient
            ('pathwise', 'clustered')
        """
        check_choice("weight_gradient", weight_gradient, WEIGHT_GRADIENTS)
        self._check_components(weight_gradient)
        new = _copied(self, weight_gradient=weight_gradient, blending=None)
        new.__dict__.pop("has_rsample", None)
        if not new.components.has_rsample:
            new.has_rsample = False
        return new

    # samples

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        z, _, shape = self._draw(sample_shape)
        return self._value(z, shape)

    @torch.no_grad()
    def sample_with_index(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Samples without gradient, and the components that they were drawn from.

        Args:
            sample_shape: X, of the draws.

        Returns:
            Samples ``(*X, *B, *E)`` and numbers of components ``(*X, *B)``. The probabilities of
            these, given a sample from anywhere, are its :meth:`responsibilities`.

        Example:
            >>> from pyro_mixtures.distributions import MixtureOfDiagNormals
            >>> _ = torch.manual_seed(0)
            >>> locs = torch.tensor([[-9.0], [9.0]])
            >>> q = MixtureOfDiagNormals(locs, torch.ones(2, 1), torch.zeros(2))
            >>> z, index = q.sample_with_index((4,))
            >>> torch.equal(index, (z.squeeze(-1) > 0).long())
            True
        """
        z, index, shape = self._draw(sample_shape)
        return self._value(z, shape), unfolded(index.unsqueeze(-1), shape)

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        with torch.no_grad():
            z, _, shape = self._draw(sample_shape)
        return self._moving(self.core, z, shape, inside=True)

    def _draw(self, sample_shape) -> tuple[Tensor, Tensor, Size]:
        """Samples ``(*B, S, D)``, their components, and the shape of the batch."""
        core, shape = self.core, torch.Size(sample_shape) + self.batch_shape
        count = shape[: len(shape) - len(core.batch_shape)].numel()
        compiled = core.components.compiled()
        drawn = None if compiled is None else compiled.draw(core.component_logits, count)
        if drawn is None:
            weights = core.component_logits.softmax(-1, dtype=double_dtype(core.component_logits))
            index = draw_index(weights, count)
            drawn = core.components.draw(index), index
        return *drawn, shape

    def _value(self, z: Tensor, shape: Size) -> Tensor:
        """``(*B, S, D) -> (*shape, *E)``."""
        value = self._event(unfolded(z, torch.Size([*shape, z.shape[-1]])))
        return value if value.is_contiguous() else value.contiguous()  # transforms of torch ask

    def reparameterize(self, value: Tensor) -> Tensor:
        """Give samples drawn elsewhere the gradients that ``rsample`` would give them.

        Args:
            value: samples of this mixture, ``(*X, *E)``; their own gradient history is cut.

        Returns:
            A tensor equal to ``value``.
        """
        return self._moving(*folded(self, value.detach()), inside=False)

    def _moving(self, core: Any, z: Tensor, shape: Size, inside: bool) -> Tensor:
        """Samples ``(*B, S, D)`` of ``core`` as a value ``(*shape, *E)`` with gradients."""
        if not core.components.has_rsample:
            raise NotImplementedError(
                "Expected densities of one support for samples with gradients, but got"
                f" {core.components.name}, which have the score function alone: use sample"
            )
        components, logits = core.components.moving(), core.component_logits
        record = SampleRecord(components, logits, z, core.grouping)
        learns = needs_gradient(*components.field_parameters)
        has_weights = learns or needs_gradient(logits)
        rule = Rule(
            self.weight_gradient,
            self.transports[self.transport] if has_weights else None,
            learns,
            None if core.blending is None else core.blending.draws(),
            inside,
            len(components.parameters),
        )
        vjp, receipt = functools.partial(sample_gradients, record, rule), None
        parameters = (logits, *components.parameters)
        has_score = self.weight_gradient != "pathwise" and self.num_components > 1
        if has_score and needs_gradient(logits):
            # not to be found again, by values that are hidden here
            hidden = records_graph() or is_transformed()
            passed = _groups_and_shares(core, rule.draws) if hidden else ()
            moving, receipt = scored_pathwise(z, vjp, *parameters, *passed)
        else:
            moving = pathwise(z, vjp, *parameters)
        value = self._value(moving, shape)
        remember(self, value, Drawn(record, receipt, rule.draws))
        return value

    def _evaluated(self, value):
        drawn: Drawn | None = recall(self, value)
        if drawn is None:
            return super()._evaluated(value)
        record, shape = self._record(value)  # what valid parameters drew is valid
        record.twin = drawn.record
        return record, shape

    def score_parts(self, x: Tensor, *args: Any, **kwargs: Any) -> ScoreParts:
        r"""Pyro's terms of a surrogate objective.

        At a sample of this mixture whose ``weight_gradient`` is not ``"pathwise"`` the score
        function's product with the cost completes the gradient of the logits. It has the gradient
        of :math:`\sum_C r_C \log \pi_C` with :math:`r_C = \sum_{j \in C} r_j` held fixed. Any
        other value has no gradient to complete, and no score term.
        """
        if not self.has_rsample:  # set so by has_rsample_(False)
            return parts_without_gradient(self.log_prob(x), x)
        return self.score_term(x).parts(x)

    def score_term(self, value: Tensor) -> ScoreTerm:
        """The density, and the score term if the value is a sample of this mixture."""
        drawn: Drawn | None = recall(self, value)
        if drawn is None or drawn.receipt is None or self._is_one_group:
            return ScoreTerm(self.log_prob(value))
        record, shape = self._evaluated(value)
        log_prob = self._result(record.log_prob, value, shape).squeeze(-1)
        responsibilities = self._result(record.responsibilities, value, shape).detach()
        return ScoreTerm(log_prob, self._score(responsibilities, drawn.draws), drawn.receipt)

    @property
    def _is_one_group(self) -> bool:
        """Whether the transport does it all; recorded graphs cannot know."""
        alone = self.weight_gradient == "clustered" and self.core.blending is None
        return alone and surely_one_group(self.core.groups)

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> Any:
        event = super().to_event(reinterpreted_batch_ndims)
        if event is self or (self.weight_gradient == "pathwise" and self.has_rsample):
            return event
        return IndependentParts(self, event.reinterpreted_batch_ndims)

    def mask(self, mask: Tensor | bool) -> Any:
        if self.weight_gradient != "pathwise":
            mask = mask_tensor(mask, self.batch_shape, self.device)
        return super().mask(mask)

    def _score(self, responsibilities: Tensor, draws: Draws | None) -> Tensor:
        r"""The score function, ``(*X, K) -> (*X,)``.

        It is :math:`\sum_j c_j \log \pi_j` with constants :math:`c_j = r_C \pi_j / \pi_C`, which
        stays finite for zero weights; blended with a transport of share a,
        :math:`c_j = a r_C \pi_j / \pi_C + (1 - a) r_j`.
        """
        log_weights = self.core.log_weights
        if self.weight_gradient == "hybrid":
            return _weighted_sum(responsibilities, log_weights)
        groups = self.core.groups
        share = group_shares(responsibilities, log_weights, groups)
        if draws is None:
            return _weighted_sum(share, log_weights)
        own = responsibilities - share
        score = _weighted_sum(share + (1 - draws.shares(groups).to(own)) * own, log_weights)
        if score.requires_grad and not torch.compiler.is_compiling():  # which tells nobody
            score.register_hook(lambda cost: draws.tell_score(cost.unsqueeze(-1) * own))
        return score


def _groups_and_shares(core: MixtureDistribution, draws: Draws | None) -> tuple[Tensor, ...]:
    if core.weight_gradient != "clustered":
        return ()
    return (core.groups,) if draws is None else (core.groups, draws.shares(core.groups))


def _copied(mixture: MixtureT, **options: Any) -> MixtureT:
    """A copy with other options, that knows no groups yet."""
    new = copy.copy(mixture)
    new.__dict__.pop("_grouping", None)
    new.__dict__.update(options)
    if mixture.core is not mixture:
        new.core = _copied(mixture.core, **options)
    return new


def _weighted_sum(shares: Tensor, log_weights: Tensor) -> Tensor:
    """``sum_j c_j log(pi_j)`` where zero times minus infinity is zero, ``(*X, K) -> (*X,)``."""
    return (shares * log_weights.masked_fill(shares == 0, 0)).sum(-1)


class Drawn(NamedTuple):
    """What a sample keeps of itself; its graph has the record, and the receipt has its graph."""

    record: SampleRecord
    receipt: Tensor | None
    draws: Draws | None
