"""Flows on mixtures, both made by networks of a context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyro.distributions.conditional import ConditionalDistribution, ConditionalTransform
from torch import Tensor, nn
from torch.distributions import Transform

from pyro_mixtures.distributions import MixtureDistribution, MixtureFlow
from pyro_mixtures.distributions.moving import modules_of, without_memory


@ConditionalDistribution.register  # as a base its metaclass would keep PyroModule out
class ConditionalMixtureFlow(nn.Module):
    r"""A network that makes a flow on a mixture of each context.

    .. math::
        y = T(z; c), \qquad z \sim \sum_{j=1}^K \pi_j(c) \, q_j(z \mid c)

    A mixture density network whose components may have any shape, if fitted by ``log_prob``; an
    amortized guide, if its samples are. Calling it and Pyro's ``condition`` do the same: contexts
    ``(*B, context_features)`` make a :class:`~pyro_mixtures.distributions.MixtureFlow` of batch
    shape ``B``. (Pyro's ``ConditionalTransformedDistribution`` makes flows without the mixture's
    score term, and is no module.)

    Args:
        base: a :class:`ConditionalMixture`, a :class:`ConditionalMixtureSameFamily`, or anything
            else whose ``condition(context)`` is a mixture of this package; or a mixture without
            batch shape, the same for all contexts, whose parameters are not those of the module.
        transforms: a transform, or a list of them, conditional ones of Pyro among them
            (``conditional_spline``, ``conditional_affine_coupling``), which take the context.
        options: ``validate_args`` of the flow.

    Raises:
        ValueError: for another base, and for transforms that are none; and when called, as
            ``MixtureFlow``.

    Example:
        >>> from pyro.distributions.transforms import conditional_affine_coupling
        >>> import torch
        >>> from pyro_mixtures.nn import ConditionalMixture
        >>> _ = torch.manual_seed(0)
        >>> base = ConditionalMixture(3, event_size=2, num_components=4)
        >>> network = ConditionalMixtureFlow(base, conditional_affine_coupling(2, 3))
        >>> q = network(torch.randn(10, 3))
        >>> q.rsample((5,)).shape, q.component_log_prob(torch.zeros(2)).shape
        (torch.Size([5, 10, 2]), torch.Size([10, 4]))
    """

    def __init__(
        self,
        base: Any,
        transforms: Transform | ConditionalTransform | Sequence[Transform | ConditionalTransform],
        **options: Any,
    ) -> None:
        super().__init__()
        is_mixture = isinstance(base, MixtureDistribution)  # whose condition is something else
        if bool(base.batch_shape) if is_mixture else not hasattr(base, "condition"):
            raise ValueError(
                "Expected base to make mixtures of contexts by a method condition(context), as"
                " ConditionalMixture does, or to be a mixture of pyro_mixtures.distributions"
                f" without batch shape, but got {base}"
            )
        given: list[Any] = (
            list(transforms) if isinstance(transforms, (list, tuple)) else [transforms]
        )
        for each in given:
            if not isinstance(each, (Transform, ConditionalTransform)):
                raise ValueError(
                    "Expected transforms of torch or Pyro, conditional ones or others, but got"
                    f" {type(each).__name__}"
                )
        self.base, self.transforms, self.options = base, given, options
        self._is_constant = is_mixture
        self.transform_modules = nn.ModuleList(modules_of(given))

    def forward(self, context: Tensor) -> MixtureFlow:
        """The flows of contexts ``(*B, context_features)``."""
        if self._is_constant:
            base = self.base.expand(context.shape[:-1])
        else:
            base = self.base.condition(context)
        made = [
            each.condition(context) if isinstance(each, ConditionalTransform) else each
            for each in self.transforms
        ]
        return MixtureFlow(base, made, **self.options)

    def condition(self, context: Tensor) -> MixtureFlow:
        """The flows of contexts ``(*B, context_features)``, by Pyro's name for that."""
        return self(context)

    def __getstate__(self):
        without_memory(each for each in self.transforms if isinstance(each, Transform))
        return super().__getstate__()
